"""Where windows are cut: at pauses, or where speech is least probable."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pauses import SpeechAt

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


JOINED = Window(1000, 6000, ((1500, 2500), (3000, 5000)))  # 5, 5 and 10 s
# Two left-out pauses: 5 to 10 s and 10 to 20 s of the window are 25 to 30 s and 50 to 60 s.


class TestJoinedWindow:
    def test_pieces(self):
        assert JOINED.pieces == ((1000, 1500), (2500, 3000), (5000, 6000))
        assert JOINED.n_frames == 2000
        assert Window(3, 7).pieces == ((3, 7),)

    @pytest.mark.parametrize(
        ("number", "frame"),
        [
            (0, 1000),
            (499, 1499),
            (500, 2500),
            (999, 2999),
            (1000, 5000),
            (2000, 6000),
            (2100, 6100),
        ],
    )
    def test_frames(self, number, frame):
        assert JOINED.frame_at(number) == frame

    def test_a_stretch_up_to_a_pause_ends_there(self):
        """Whatever sums of lengths in seconds give: 0.1 + 0.2 is not 0.3."""
        window = Window(0, 1000, ((10, 400), (420, 800)))
        assert window.in_recording(0.2, 0.3) == pytest.approx((4.1, 4.2))
        assert window.in_recording(0.2, window.joins[1]) == pytest.approx((4.1, 4.2))

    def test_joins(self):
        assert JOINED.joins == pytest.approx((5.0, 10.0))
        assert Window(3, 7).joins == ()

    @pytest.mark.parametrize(
        ("word", "expected"),
        [
            ((1.0, 2.0), (11.0, 12.0)),
            ((4.0, 5.8), (14.0, 15.0)),  # no word lasts over a pause
            ((4.4, 6.0), (25.0, 26.0)),
            ((9.0, 12.0), (50.0, 52.0)),
            ((19.0, 20.5), (59.0, 60.5)),
        ],
    )
    def test_words_in_the_recording(self, word, expected):
        assert JOINED.word_in_recording(*word) == pytest.approx(expected)

    @pytest.mark.parametrize(
        ("stretch", "expected"),
        [
            ((1.0, 2.0), (11.0, 12.0)),
            ((6.0, 7.5), (26.0, 27.5)),
            ((12.0, 20.0), (52.0, 60.0)),
            ((1.0, 5.3), (11.0, 15.0)),  # into the padding after the pause: it ends before it
            ((4.8, 7.0), (25.0, 27.0)),  # from the padding before it: it begins after it
            ((4.7, 4.9), (14.7, 14.9)),  # all of it is there
            ((3.0, 8.0), (13.0, 28.0)),  # it really reaches over the pause
            ((3.0, 12.0), (13.0, 52.0)),
            ((19.0, 20.5), (59.0, 60.5)),  # beyond the end, as in any window
        ],
    )
    def test_times_in_the_recording(self, stretch, expected):
        assert JOINED.in_recording(*stretch) == pytest.approx(expected)

    def test_times_in_order(self):
        times = np.arange(0, 20, 0.05)
        starts, ends = np.transpose(
            [JOINED.in_recording(a, b) for a, b in zip(times, times + 0.05, strict=True)]
        )
        assert (starts <= ends).all()
        assert (ends[:-1] <= starts[1:] + 1e-6).all()

    def test_a_window_of_one_piece_only_moves_times(self):
        assert Window(200, 500).in_recording(1.0, 9.0) == (3.0, 11.0)

    @pytest.mark.parametrize("stretch", [(11.0, 12.0), (26.0, 27.5), (52.0, 60.0)])
    def test_times_in_the_window_and_back(self, stretch):
        assert JOINED.in_recording(*JOINED.in_window(*stretch)) == pytest.approx(stretch)

    @pytest.mark.parametrize(
        ("start", "end", "expected"),
        [
            (1200, 1400, Window(1200, 1400)),
            (1200, 2000, Window(1200, 1500)),  # up to within a pause
            (2000, 5500, Window(2500, 5500, ((3000, 5000),))),
            (1000, 6000, JOINED),
            (1500, 2500, Window(1500, 1500)),
        ],
    )
    def test_parts(self, start, end, expected):
        assert JOINED.part(start, end) == expected


@st.composite
def speech_maps(draw):
    """Stretches of speech in seconds, and the length of the recording."""
    stretches, at = [], draw(st.floats(0, 20))
    lengths = st.tuples(st.floats(0.15, 35), st.floats(0.05, 40))
    for length, pause in draw(st.lists(lengths, max_size=7)):
        stretches.append((at, at + length))
        at += length + pause
    return stretches, max(0.1, at + draw(st.floats(-5, 5)))


def chooser_for(stretches, seconds, long_pause, most=3000):
    """A chooser for noise that has speech there, and the speech as the detector finds it."""
    noise = np.random.default_rng(0).normal(0, 0.1, round(16_000 * seconds)).astype(np.float32)
    found, whole = (SpeechMap(SpeechAt(*stretches).detector()) for _ in range(2))
    whole.hear(noise)
    whole.finish()
    chooser = WindowChooser(FeatureStream(iter([noise]), 80, found), found, most, long_pause)
    return chooser, whole.spans(0, seconds)


class TestJoining:
    """What follows a long pause."""

    @staticmethod
    def windows(*stretches, seconds=100.0, joins=True, long_pause=3.0):
        chooser, _ = chooser_for(stretches, seconds, long_pause)
        found, seek = [], 0
        while (window := chooser.next(seek, cut_at_pause=True, joins=joins)) is not None:
            found.append(window)
            seek = window.end
        return [
            [tuple(round(frame / 100, 1) for frame in piece) for piece in window.pieces]
            for window in found
        ]

    def test_speech_that_fits_is_joined(self):
        assert self.windows((1, 6), (12, 18), (40, 44)) == [
            [(0.6, 6.4), (11.6, 18.4), (39.6, 44.4)]
        ]

    def test_only_if_asked_for(self):
        alone = [[(0.6, 6.4)], [(11.6, 18.4)], [(39.6, 44.4)]]
        assert self.windows((1, 6), (12, 18), (40, 44), joins=False) == alone

    def test_speech_that_does_not_fit_begins_a_window(self):
        assert self.windows((1, 13), (20, 36), (40, 44)) == [
            [(0.6, 13.4)],
            [(19.6, 36.4), (39.6, 44.4)],
        ]

    def test_speech_longer_than_a_window_is_not_cut_for_it(self):
        first, *_ = self.windows((1, 6), (12, 60))
        assert first == [(0.6, 6.4)]

    def test_not_over_a_very_long_pause(self):
        assert self.windows((1, 6), (40, 44)) == [[(0.6, 6.4)], [(39.6, 44.4)]]

    def test_a_window_with_pauses_ends_within_two_minutes(self):
        """Else a minute of scattered words could keep a quarter of an hour of audio in memory."""
        words = [(at, at + 1) for at in range(10, 300, 25)]
        found = self.windows(*words, seconds=310.0)
        assert [(pieces[0][0], pieces[-1][1]) for pieces in found] == [
            (9.6, 111.4),
            (134.6, 236.4),
            (259.6, 286.4),
        ]

    @pytest.mark.parametrize(("decibels", "n_windows"), [(-8, 1), (8, 1), (-16, 2), (16, 2)])
    def test_only_speech_of_the_same_level(self, decibels, n_windows):
        noise = np.random.default_rng(0).normal(0, 0.01, 16_000 * 20).astype(np.float32)
        noise[16_000 * 9 :] *= 10 ** (decibels / 20)
        speech = SpeechMap(SpeechAt((1, 6), (12, 18)).detector())
        chooser = WindowChooser(FeatureStream(iter([noise]), 80, speech), speech, 3000)
        found, seek = [], 0
        while (window := chooser.next(seek, cut_at_pause=True, joins=True)) is not None:
            found.append(window)
            seek = window.end
        assert len(found) == n_windows

    def test_speech_up_to_the_end_of_the_recording(self):
        assert self.windows((1, 6), (12, 20), seconds=20.0) == [[(0.6, 6.4), (11.6, 20.0)]]

    def test_short_pauses_stay_in_the_window(self):
        assert self.windows((1, 6), (8, 10), (15, 16)) == [[(0.6, 10.4), (14.6, 16.4)]]

    def test_short_pauses_that_end_windows(self):
        """No piece reaches into the speech after it, however short the pause that ends it."""
        found = self.windows((1, 6), (12, 15), (15.3, 20), seconds=40.0, long_pause=0.3)
        assert found == [[(0.6, 6.4), (11.6, 15.2)], [(15.2, 20.4)]]

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(speech_maps(), st.sampled_from([3.0, 2.0, 1.0, 0.5, 0.3]), st.sampled_from([3000, 1000]))
    def test_any_speech_is_in_one_piece(self, speech, long_pause, most):
        """Pieces are in order, apart, not too long, and together have all speech."""
        stretches, seconds = speech
        chooser, spans = chooser_for(stretches, seconds, long_pause, most)
        pieces, seek = [], 0
        while (window := chooser.next(seek, cut_at_pause=True, joins=True)) is not None:
            assert seek <= window.start < window.end
            assert window.n_frames <= most
            assert all(end - start <= 3000 for start, end in window.pauses)
            inside = chooser.speech(window)
            assert all(0 <= start < end <= window.n_frames / 100 + 0.04 for start, end in inside)
            assert all(one[1] <= other[0] + 1e-6 for one, other in pairwise(inside))
            pieces += window.pieces
            seek = window.end
        assert all(start < end for start, end in pieces)
        assert all(one[1] <= other[0] for one, other in pairwise(pieces))
        covered = np.zeros(round(100 * seconds) + 10, bool)
        for start, end in pieces:
            covered[start:end] = True
        for start, end in spans:
            assert covered[round(100 * start) + 4 : round(100 * end) - 4].all()

    def test_features_are_those_of_the_pieces(self):
        noise = np.random.default_rng(0).normal(0, 0.1, 16_000 * 20).astype(np.float32)
        stream = FeatureStream(iter([noise]), 80)
        whole = stream.window(0, 2000)
        joined = stream.joined([(100, 300), (800, 900)], 400)
        peak = np.concatenate((whole[:, 100:300], whole[:, 800:900]), axis=1)
        np.testing.assert_allclose(joined[:, :300].max(), peak.max(), atol=0.05)
        assert np.corrcoef(joined[:, :300].ravel(), peak.ravel())[0, 1] > 0.999
        assert (joined[:, 300:] == joined.min()).all()
