"""openai/whisper's rules for hallucinated text, on segments made for the purpose."""

from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from whisper_npu.runtime.coverage import Coverage
from whisper_npu.runtime.features.windows import Window
from whisper_npu.runtime.results import Segment, Word
from whisper_npu.runtime.timestamps.hallucinations import (
    first_hallucination,
    is_segment_anomaly,
    word_anomaly_score,
)
from whisper_npu.runtime.transcription.session import Text, TranscriptionSession
from whisper_npu.runtime.transcription.window_decoding import WindowResult


def _word(start: float, end: float, probability: float = 0.9, text: str = " word") -> Word:
    return Word(start=start, end=end, word=text, probability=probability)


def _segment(*words: Word) -> Segment:
    start, end = (words[0].start, words[-1].end) if words else (0.0, 1.0)
    text = "".join(word.word for word in words)
    return Segment(0, 0, start, end, text, (), 0.0, -0.1, 1.0, 0.0, words)


@pytest.mark.parametrize(
    ("word", "score"),
    [
        (_word(1, 1.4), 0),
        (_word(1, 1.4, 0.1), 1),
        (_word(1, 1.033), 1.5),
        (_word(1, 4), 1),
        (_word(1, 4, 0.1), 2),
        (_word(1, 1, 0.1), 1 + 0.133 * 15),
    ],
)
def test_word_anomaly_score(word: Word, score: float) -> None:
    assert word_anomaly_score(word) == pytest.approx(score)


def test_segment_anomaly_is_that_of_its_first_words() -> None:
    usual = [_word(i, i + 0.4) for i in range(8)]
    odd = [_word(i, i + 0.02, 0.1) for i in range(8, 16)]
    assert not is_segment_anomaly(_segment(*usual))
    assert is_segment_anomaly(_segment(*odd))
    assert not is_segment_anomaly(_segment(*usual, *odd))
    assert is_segment_anomaly(_segment(_word(0, 0.4, 0.1)))  # one odd word of one
    assert not is_segment_anomaly(_segment(_word(0, 0.4, 0.1), _word(1, 1.4)))
    assert not is_segment_anomaly(None)
    assert not is_segment_anomaly(replace(_segment(), words=()))
    assert not is_segment_anomaly(replace(_segment(), words=None))


def test_punctuation_does_not_count_as_a_word() -> None:
    mark = _word(0.4, 0.4, 0.1, ".")
    assert not is_segment_anomaly(_segment(_word(0, 0.4), mark, mark))


def _find(*segments: Segment, threshold: float = 2.0, last_speech_end: float = 10.0) -> int | None:
    return first_hallucination(
        segments,
        threshold=threshold,
        window_start=10.0,
        window_end=40.0,
        last_speech_end=last_speech_end,
    )


def test_hallucination_needs_silence_on_both_sides() -> None:
    speech = _segment(*(_word(t, t + 0.4) for t in np.arange(12.5, 15, 0.5)))
    odd = _segment(_word(20, 20.02, 0.1), _word(21, 21.02, 0.1))
    later = _segment(*(_word(t, t + 0.4) for t in np.arange(25, 30, 0.5)))
    near_before = _segment(*(_word(t, t + 0.4) for t in np.arange(15, 19.4, 0.5)))
    near_behind = _segment(*(_word(t, t + 0.4) for t in np.arange(22, 24, 0.5)))
    assert _find(speech, odd, later) == 1
    assert _find(speech, odd) == 1  # nothing but the end of the window behind it
    assert _find(speech, near_before, odd, later) is None
    assert _find(speech, odd, near_behind) is None
    assert _find(speech, odd, later, threshold=6.0) is None
    assert _find(speech, later) is None
    assert _find() is None


def test_hallucinations_in_a_row_are_found_from_the_first() -> None:
    speech = _segment(*(_word(t, t + 0.4) for t in np.arange(12.5, 15, 0.5)))
    first = _segment(_word(20, 20.02, 0.1))
    second = _segment(_word(20.5, 20.52, 0.1))
    assert _find(speech, first, second) == 1
    assert _find(speech, _segment(), first, second) == 2


def test_edges_of_the_window_count_for_silence() -> None:
    odd_early = _segment(_word(11, 11.02, 0.1))
    assert _find(odd_early, last_speech_end=10.9) == 0
    odd_late = _segment(_word(39, 39.02, 0.1))
    assert _find(odd_late, last_speech_end=12.0) == 0


def test_what_is_hallucinated_is_accounted_for_within_its_window() -> None:
    """Its words may fade out after the rest of the window; found first is not said first."""
    session = SimpleNamespace(coverage=Coverage())
    result = SimpleNamespace(
        window=Window(0, 1000), outcome=SimpleNamespace(decoded=SimpleNamespace(unheard=()))
    )
    hallucinated = [_segment(_word(9, 10.14)), _segment(_word(2, 3))]
    TranscriptionSession.account(
        cast(TranscriptionSession, session),
        cast(WindowResult, result),
        10.0,
        Text([], hallucinated),
    )
    assert sum(session.coverage.seconds().values()) == pytest.approx(10)
    assert session.coverage.seconds()["dropped"] == pytest.approx(2)
