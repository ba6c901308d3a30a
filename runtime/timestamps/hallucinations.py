"""Finds text that is likely hallucinated, by words with unusual times.

openai/whisper's rules for its `hallucination_silence_threshold` (`transcribe.py`).
"""

from collections.abc import Sequence

from whisper_npu.runtime.options import APPEND_PUNCTUATIONS, PREPEND_PUNCTUATIONS
from whisper_npu.runtime.results import Segment, Word

_IMPROBABLE = 0.15
_SHORT = 0.133  # seconds
_LONG = 2.0  # seconds
_SCORE_PER_SHORT_SECOND = 15
_WORDS_JUDGED = 8
_ANOMALOUS_SCORE = 3.0
_EDGE = 2.0  # seconds from an edge of the window that count as silence there
_PUNCTUATION = PREPEND_PUNCTUATIONS + APPEND_PUNCTUATIONS


def word_anomaly_score(word: Word) -> float:
    """Rate how unusual a word is: very improbable, very short or very long; 0 for a usual word."""
    duration = word.end - word.start
    return (
        float(word.probability < _IMPROBABLE)
        + max(0.0, _SHORT - duration) * _SCORE_PER_SHORT_SECOND
        + max(0.0, duration - _LONG)
    )


def is_segment_anomaly(segment: Segment | None) -> bool:
    """Whether the first words of a segment are unusual overall; False without words."""
    if segment is None or not segment.words:
        return False
    judged = [word for word in segment.words if word.word not in _PUNCTUATION]
    judged = judged[:_WORDS_JUDGED]
    score = sum(word_anomaly_score(word) for word in judged)
    return score >= _ANOMALOUS_SCORE or score + 0.01 >= len(judged)


def first_hallucination(
    segments: Sequence[Segment],
    *,
    threshold: float,
    window_start: float,
    window_end: float,
    last_speech_end: float,
) -> int | None:
    """Return the first segment that looks hallucinated, with silence or similar segments around it.

    Args:
        segments: all segments of a window, with words.
        threshold: seconds without words that count as silence.
        window_start: seconds from the start of the recording.
        window_end: seconds from the start of the recording, without padding.
        last_speech_end: end of the last word before the window, in seconds.

    Returns:
        its index in `segments`; None if there is none.
    """
    for place, segment in enumerate(segments):
        if not segment.words:
            continue
        if is_segment_anomaly(segment):
            following = next((s for s in segments[place + 1 :] if s.words), None)
            next_start = following.start if following is not None else window_end
            silence_before = (
                segment.start - last_speech_end > threshold
                or segment.start < threshold
                or segment.start - window_start < _EDGE
            )
            silence_after = (
                next_start - segment.end > threshold
                or is_segment_anomaly(following)
                or window_end - segment.end < _EDGE
            )
            if silence_before and silence_after:
                return place
        last_speech_end = segment.end
    return None
