"""Turns of live audio: where they begin and end, and that no audio between is lost or doubled."""

import numpy as np
import pytest
from live_speech import listening_model, silence, speech

from whisper_npu import TurnAudio, TurnDetector, TurnEnded, TurnStarted, UsageError
from whisper_npu.runtime.audio.stream import SAMPLE_RATE
from whisper_npu.runtime.features.vad import CHUNK

TENTH = SAMPLE_RATE // 10


@pytest.fixture
def model(tmp_path):
    return listening_model(tmp_path)


def heard(turns, audio, chunk=TENTH):
    return [
        event
        for start in range(0, len(audio), chunk)
        for event in turns.hear(audio[start : start + chunk])
    ]


def places(events):
    return [(type(event), event.at) for event in events if not isinstance(event, TurnAudio)]


def given(events):
    return np.concatenate([event.samples for event in events if isinstance(event, TurnAudio)])


TWO = np.concatenate((silence(1), speech(0, 2), silence(2), speech(2, 3), silence(2)))


@pytest.mark.parametrize("chunk", [1, 511, TENTH, len(TWO)])
def test_turns_are_the_same_however_the_audio_is_cut(model, chunk):
    part = TWO if chunk > 1 else TWO[: 2 * SAMPLE_RATE]
    events = heard(TurnDetector(model), part, chunk)
    whole = heard(TurnDetector(model), part, len(part))
    assert places(events) == places(whole)
    np.testing.assert_array_equal(given(events), given(whole))


def test_a_turn_begins_before_its_speech_and_ends_after_the_pause(model):
    events = heard(TurnDetector(model, padding=0.3, silence=0.5), TWO)
    (first, begin), (last, end), (_, second), _ = places(events)
    assert (first, last) == (TurnStarted, TurnEnded)
    assert begin == pytest.approx(0.7 * SAMPLE_RATE, abs=CHUNK)
    assert end == pytest.approx((2.9 + 0.5) * SAMPLE_RATE, abs=2 * CHUNK)
    assert second == pytest.approx(4.7 * SAMPLE_RATE, abs=CHUNK)


def test_the_audio_of_turns_is_that_between_their_ends(model):
    events = heard(TurnDetector(model), TWO)
    (_, begin), (_, end), (_, second), (_, last) = places(events)
    between = np.concatenate((TWO[begin:end], TWO[second:last]))
    np.testing.assert_array_equal(given(events), between)


def test_a_click_is_no_turn(model):
    click = np.concatenate((silence(1), np.ones(CHUNK // 4, np.float32), silence(1)))
    assert heard(TurnDetector(model), click) == []


def test_a_longer_pause_belongs_to_the_turn(model):
    events = heard(TurnDetector(model, silence=2.5), TWO)
    assert [kind for kind, _ in places(events)] == [TurnStarted]


def test_turns_do_not_overlap(model):
    audio = np.concatenate((speech(0, 1), silence(0.2), speech(1, 2)))
    events = heard(TurnDetector(model, silence=0.1, padding=2), audio)
    (_, first), (_, end), (_, second), *_ = places(events)
    assert first == 0
    assert second == end


def test_cut_ends_a_turn_and_gives_the_rest(model):
    turns = TurnDetector(model)
    events = heard(turns, TWO[: 2 * SAMPLE_RATE], chunk=1000)
    assert turns.is_open
    rest = turns.cut()
    assert not turns.is_open
    (_, begin), *_ = places(events)
    np.testing.assert_array_equal(
        np.concatenate((given(events), rest)), TWO[begin : 2 * SAMPLE_RATE]
    )
    (_, again), *_ = places(heard(turns, TWO[2 * SAMPLE_RATE :], chunk=1000))
    assert again == 2 * SAMPLE_RATE


def test_memory_between_turns_does_not_grow(model):
    turns = TurnDetector(model, padding=0.3)
    for _ in range(100):
        turns.hear(silence(1))
    assert len(turns.cut()) < 0.5 * SAMPLE_RATE
    assert turns.n_samples == 100 * SAMPLE_RATE


@pytest.mark.parametrize(
    "wrong", [{"threshold": 0}, {"threshold": 1}, {"padding": -1}, {"silence": 0}]
)
def test_wrong_arguments(model, wrong):
    with pytest.raises(UsageError):
        TurnDetector(model, **wrong)
