import time

import pytest

from whisper_npu.runtime.timing import StageTimes


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


def test_time_inside_a_stage_counts_once(clock) -> None:
    times = StageTimes()
    with times.measure("features"):
        clock.now += 1
        with times.measure("audio decoding"):
            clock.now += 10
            with times.measure("resampling"):
                clock.now += 100
        clock.now += 2
        with times.measure("audio decoding"):
            clock.now += 20
    with times.measure("encoder"):
        clock.now += 1000
    assert times.seconds == {
        "resampling": 100,
        "audio decoding": 30,
        "features": 3,
        "encoder": 1000,
    }
    assert times.calls["audio decoding"] == 2


def test_a_stage_that_fails_is_counted_too(clock) -> None:
    times = StageTimes()

    def fail():
        with times.measure("inner"):
            clock.now += 5
            raise ZeroDivisionError

    with times.measure("outer"):
        with pytest.raises(ZeroDivisionError):
            fail()
        clock.now += 7
    assert times.seconds == {"inner": 5, "outer": 7}
