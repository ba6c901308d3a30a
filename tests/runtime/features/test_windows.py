"""Where windows are cut: at pauses, or where speech is least probable."""

import numpy as np
import pytest

from whisper_npu.runtime.features.log_mel import FRAMES_PER_SECOND
from whisper_npu.runtime.features.stream import FeatureStream
from whisper_npu.runtime.features.vad import CHUNKS_PER_SECOND, SpeechMap
from whisper_npu.runtime.features.windows import Window, WindowChooser


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


class TestBesideSpeechLeftOut:
    """A window of 28 s, with a pause in it."""

    @staticmethod
    def cut(judged, *stretch):
        chooser = WindowChooser(FeatureStream(iter(()), 80), Judged(judged), 3000, 2.0)
        return chooser.cut_beside(Window(0, 2800), [stretch]) / FRAMES_PER_SECOND

    @pytest.mark.parametrize("stretch", [(0.3, 12.0), (12.4, 27.9)])
    def test_at_the_pause_beside_it(self, speech, stretch):
        speech[at(12) : at(12.5)] = 0.0
        assert self.cut(speech, *stretch) == pytest.approx(12.25, abs=0.1)

    def test_a_pause_far_from_it_does_not_count(self, speech):
        speech[at(2.5) : at(3.5)] = 0.0
        speech[at(13) : at(13.1)] = 0.6
        assert self.cut(speech, 0.3, 12.0) == pytest.approx(13, abs=0.2)

    @pytest.mark.parametrize("stretch", [(0.0, 28.0), (0.4, 27.5), (0.0, 1.5), (26.5, 28.0)])
    def test_near_the_middle_where_it_is_all_of_the_window_or_an_end(self, speech, stretch):
        assert self.cut(speech, *stretch) == pytest.approx(14, abs=2.1)
