"""Where windows are cut: at pauses, or where speech is least probable."""

import numpy as np
import pytest

from whisper_npu.runtime.feature_stream import FeatureStream
from whisper_npu.runtime.features import FRAMES_PER_SECOND
from whisper_npu.runtime.speech_windows import WindowChooser
from whisper_npu.runtime.vad import CHUNKS_PER_SECOND, SpeechMap


class Judged(SpeechMap):
    """A detector's judgement of half a minute, made up."""

    def __init__(self, probabilities):
        super().__init__(None)
        self.probabilities = np.asarray(probabilities, np.float32)

    def between(self, start, end):
        first, stop = (round(time * CHUNKS_PER_SECOND) for time in (start, end))
        return self.probabilities[first:stop], first / CHUNKS_PER_SECOND


def cut(judged, seconds=28.0):
    chooser = WindowChooser(FeatureStream(iter(()), 80), Judged(judged), 3000, 2.0)
    return chooser.best_cut(0, round(seconds * FRAMES_PER_SECOND)) / FRAMES_PER_SECOND


@pytest.fixture
def speech():
    return np.full(round(30 * CHUNKS_PER_SECOND), 0.9, np.float32)


def at(seconds):
    return round(seconds * CHUNKS_PER_SECOND)


def test_the_latest_pause(speech):
    for start in (8, 20):
        speech[at(start) : at(start + 1)] = 0.0
    assert cut(speech) == pytest.approx(20.5, abs=0.1)


def test_without_a_pause_where_speech_is_least_probable(speech):
    speech[at(22) : at(22.1)] = 0.6
    assert cut(speech) == pytest.approx(22, abs=0.2)


def test_without_speech_too(speech):
    """Neither silence nor speech, as the detector hears it: no stretch of speech begins there."""
    speech[:] = 0.4
    speech[at(24)] = 0.36
    assert cut(speech) == pytest.approx(24, abs=0.1)
