"""The progress of a corpus, in one line."""

import contextlib
import io
import re

import pytest

from whisper_npu.scripts.common.corpus_progress import Meter, describe


def progress(**facts):
    from whisper_npu.corpus.run import Progress

    return Progress(**{"rows": 9, "items": 4, "seconds": 7200.0, "actors": 1, **facts})


def test_at_the_beginning():
    assert describe(progress(), None) == (
        "9 rows in the manifest; 4 recordings, 2 h 0 min, to transcribe with 1 process; figures "
        "follow after the first block"
    )
    assert describe(progress(items=0), None) == "9 rows in the manifest, and nothing to transcribe"
    assert describe(progress(rows=1, items=1), None).startswith(
        "1 row in the manifest; 1 recording, 2 h 0 min, to transcribe"
    )


def test_under_way():
    done = progress(done=1, failed=1, seconds_done=1800.0, elapsed=90.0)
    assert describe(done, None) == (
        "30 min 0 s of 2 h 0 min, 1 of 4 recordings, 20 hours per hour, 4 min 30 s left, 1 failed"
    )
    assert "cost 0.05 of 0.20," in describe(done, 2.0)


def test_at_the_end_nothing_is_left():
    done = progress(done=4, seconds_done=7000.0, elapsed=350.0)
    assert describe(done, 2.0) == (
        "1 h 57 min of 2 h 0 min, 4 of 4 recordings, 20 hours per hour, cost 0.19 of 0.19"
    )


def test_a_line_a_minute():
    now, out = [0.0], io.StringIO()
    meter = Meter(None, out, clock=lambda: now[0])
    for now[0], done in ((0.0, 0), (10.0, 1), (59.0, 2), (61.0, 3), (62.0, 4)):
        meter.show(progress(done=done, seconds_done=60.0 * done, elapsed=1.0))
    counts = [line.split(" of 4 ")[0].split()[-1] for line in out.getvalue().splitlines()[1:]]
    assert counts == ["3", "4"]


def test_parts_of_a_recording_count_before_it_is_done():
    line = describe(progress(items=1, seconds_done=1800.0, elapsed=90.0), None)
    assert line.startswith("30 min 0 s of 2 h 0 min, 0 of 1 recording,")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_is_redrawn():
    out = Terminal()
    meter = Meter(None, out)
    for done in (0, 1, 4):
        meter.show(progress(done=done, seconds_done=60.0 * done, elapsed=float(done)))
    begin, first, second = re.split(r"\n|\r\x1b\[K", out.getvalue().removesuffix("\n"))
    assert "to transcribe with 1 process" in begin  # stays: Ray prints after it
    assert "1 of 4" in first
    assert "4 of 4" in second
    assert out.getvalue().endswith("\n")


def test_what_is_done_before_the_work():
    out, terminal = io.StringIO(), Terminal()
    for each in (out, terminal):
        with Meter(None, each) as meter:
            meter.say("loading Ray")
            meter.say("starting Ray")
            meter.show(progress())
    begin = describe(progress(), None)
    assert out.getvalue().splitlines() == ["loading Ray ...", "starting Ray ...", begin]
    clear = "\r\x1b[K"
    assert terminal.getvalue() == f"loading Ray ...{clear}starting Ray ...{clear}{begin}\n"


@pytest.mark.parametrize("of_work", [True, False])
def test_the_line_is_cleared_for_an_error(of_work):
    out = Terminal()
    with contextlib.suppress(KeyboardInterrupt), Meter(None, out) as meter:
        if of_work:
            meter.show(progress(done=1, elapsed=1.0))
        else:
            meter.say("starting Ray")
        raise KeyboardInterrupt
    assert out.getvalue().endswith("\r\x1b[K")
