"""Gives words their times: aligns the text of a window with its audio, and fits segments to words.

Follows openai/whisper's `timing.py`, with two differences. Words are separated within each segment,
so that the words of a segment always make up its text. And onsets are known (`alignment.py`), so
that pauses are distinct from speech: words with a pause need not be cut to a likely length.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import nan

import numpy as np

from whisper_npu.runtime.engines.protocol import Backend, Float32Array
from whisper_npu.runtime.features.log_mel import FRAMES_PER_SECOND
from whisper_npu.runtime.options import APPEND_PUNCTUATIONS, PREPEND_PUNCTUATIONS
from whisper_npu.runtime.results import Segment, Word
from whisper_npu.runtime.text.tokenizer import TIMESTAMP_STEP, Tokenizer
from whisper_npu.runtime.timestamps.alignment import TokenTimes, token_times

FRAMES_PER_POSITION = round(FRAMES_PER_SECOND * TIMESTAMP_STEP)

# Measured with base and tiny.en on 80 sentences of two synthetic voices, whose word times are
# known. With less than `_PAUSE` between a word and the next, nineteen in twenty went on without a
# break; before a break or the end, a word sounded 0.07 to 0.19 s longer than aligned.
_PAUSE = 0.25  # seconds
_FADE = 0.14  # seconds

_LONGEST_TYPICAL_WORD = 0.7  # seconds; a larger median comes from badly aligned words
_TRUSTED_BY = 0.5  # seconds by which a segment's own timestamp may overrule a word's time


@dataclass(frozen=True)
class WordTiming:
    """An aligned word, in seconds from the start of its window.

    Attributes:
        word: its text, with a leading space.
        start: in seconds.
        end: in seconds.
        probability: mean probability of its tokens.
    """

    word: str
    start: float
    end: float
    probability: float = nan

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.end - self.start


def add_word_timestamps(
    segments: Sequence[Segment],
    audio: Float32Array,
    *,
    backend: Backend,
    tokenizer: Tokenizer,
    language: str,
    sot_sequence: Sequence[int],
    n_frames: int,
    in_recording: Callable[[float, float], tuple[float, float]],
    attention_delay: float,
    not_before: float = 0.0,
    prepend_punctuations: str = PREPEND_PUNCTUATIONS,
    append_punctuations: str = APPEND_PUNCTUATIONS,
) -> list[Segment]:
    """Add words to the segments of one window.

    A segment then begins with its first word and ends with its last word, unless its own timestamps
    are the better guess.

    Args:
        segments: all segments decoded from the window, in order, times from the start of the
            recording.
        audio: float32 `(1, n_audio_ctx, n_audio_state)`, the window as `backend.encode` returns it.
        backend: the model.
        tokenizer: its tokens.
        language: language code of the text; it decides where words end.
        sot_sequence: the tokens that begin its transcript (`tokenizer.sot_sequence`).
        n_frames: frames of 10 ms of real audio in the window, without padding.
        in_recording: turns start and end in the window into those in the recording, in seconds.
        attention_delay: the model's (`alignment.attention_delay`), in seconds.
        not_before: end of the last word of the window before, in seconds from the start of the
            recording; windows may overlap a little, words must not.
        prepend_punctuations: marks merged with the word after them.
        append_punctuations: marks merged with the word before them.

    Returns:
        the segments with `words`; `last_word_end` of them is the end of the last word.

    Raises:
        ModelError: the model folder cannot give word times.
    """
    eot = tokenizer.special.eot
    timings = find_alignment(
        [[token for token in segment.tokens if token < eot] for segment in segments],
        audio,
        backend=backend,
        tokenizer=tokenizer,
        language=language,
        sot_sequence=sot_sequence,
        n_frames=n_frames,
        attention_delay=attention_delay,
    )
    merged = [
        merge_punctuation(of_segment, prepend_punctuations, append_punctuations)
        for of_segment in timings
    ]
    sounding = adjust_word_boundaries(merged, n_frames / FRAMES_PER_SECOND)
    typical = typical_duration(sounding)
    timed = []
    for segment, of_segment in zip(segments, sounding, strict=True):
        words = [
            Word(
                start=round(max(not_before, start), 2),
                end=round(max(not_before, end), 2),
                word=timing.word,
                probability=timing.probability,
            )
            for timing in of_segment
            for start, end in [in_recording(timing.start, timing.end)]
        ]
        timed.append(fit_to_segment(segment, words, typical))
    return timed


def last_word_end(segments: Sequence[Segment]) -> float | None:
    """Return the end of the last word of some segments; without words, of the last segment."""
    for segment in reversed(segments):
        if segment.words:
            return segment.words[-1].end
    return segments[-1].end if segments else None


def find_alignment(
    text_tokens: Sequence[Sequence[int]],
    audio: Float32Array,
    *,
    backend: Backend,
    tokenizer: Tokenizer,
    language: str,
    sot_sequence: Sequence[int],
    n_frames: int,
    attention_delay: float,
) -> list[list[WordTiming]]:
    """Return the words of a window's text, with their times in the window.

    Args:
        text_tokens: the text of each segment, without special tokens and timestamps.
        audio: float32 `(1, n_audio_ctx, n_audio_state)`.
        backend: the model.
        tokenizer: its tokens.
        language: language code of the text.
        sot_sequence: the tokens that begin its transcript.
        n_frames: frames of 10 ms of real audio in the window.
        attention_delay: seconds from a sound to the attention to it.

    Returns:
        the words of each segment; their texts make up the segment's text.
    """
    text = [token for of_segment in text_tokens for token in of_segment]
    if not text:
        return [[] for _ in text_tokens]
    special = tokenizer.special
    before = [*sot_sequence, special.no_timestamps]
    # The end of text only affects the statistics: a full context may cut it off.
    tokens = [*before, *text, special.eot][: backend.n_text_ctx]
    probabilities, attentions = backend.align(audio, np.array([tokens], np.int64))
    n_positions = max(1, n_frames // FRAMES_PER_POSITION)
    times = token_times(attentions[0], len(text), len(before), n_positions)
    of_text = probabilities[0, len(before) - 1 :]
    timings: list[list[WordTiming]] = []
    first = 0
    for of_segment in text_tokens:
        stop = first + len(of_segment)
        part = TokenTimes(times.starts[first:stop], times.ends[first:stop])
        words, groups = time_words(of_segment, part, tokenizer, language, attention_delay)
        edges = np.cumsum([first, *map(len, groups)])
        timings.append(
            [
                replace(word, probability=float(of_text[a:b].mean()))
                for word, (a, b) in zip(words, pairwise(edges), strict=True)
            ]
        )
        first = stop
    return timings


def time_words(
    text: Sequence[int],
    times: TokenTimes,
    tokenizer: Tokenizer,
    language: str,
    attention_delay: float,
) -> tuple[list[WordTiming], list[list[int]]]:
    """Return the words of a text, and the tokens of each.

    Args:
        text: tokens without special tokens and timestamps.
        times: when each of them was spoken.
        tokenizer: the model's.
        language: language code of the text; it decides where words end.
        attention_delay: seconds from a sound to the attention to it.

    Returns:
        words without a probability yet, and their tokens.
    """
    starts, ends = (
        np.maximum(0.0, positions * TIMESTAMP_STEP - attention_delay)
        for positions in (times.starts, times.ends)
    )
    words, groups = tokenizer.split_to_words(list(text), language)
    edges = np.cumsum([0, *map(len, groups)])
    timings = [
        WordTiming(word, float(starts[first]), float(ends[stop - 1]))
        for word, (first, stop) in zip(words, pairwise(edges), strict=True)
    ]
    return timings, groups


def adjust_word_boundaries(
    timings: Sequence[Sequence[WordTiming]], window_end: float
) -> list[list[WordTiming]]:
    """Return words that last as long as they sound.

    The model finishes a word before its sound ends, and attends to the next word a little after it
    begins. So a word ends half way to the next word; before a pause it fades out.

    Args:
        timings: the aligned words of each segment of a window, in order.
        window_end: where the audio of the window ends, in seconds from its start.
    """
    aligned = [timing for of_segment in timings for timing in of_segment]
    starts = [timing.start for timing in aligned]
    ends = [max(timing.end, min(timing.end + _FADE, window_end)) for timing in aligned]
    for i, (timing, following) in enumerate(pairwise(aligned)):
        if following.start - timing.end < _PAUSE:
            ends[i] = starts[i + 1] = (timing.end + following.start) / 2
    times = zip(starts, ends, strict=True)
    return [
        [
            replace(timing, start=start, end=end)
            for timing, (start, end) in zip(of_segment, times, strict=False)
        ]
        for of_segment in timings
    ]


def typical_duration(timings: Sequence[Sequence[WordTiming]]) -> float:
    """Return the median length of words longer than 0, in seconds."""
    durations = [t.duration for of_segment in timings for t in of_segment if t.duration > 0]
    return min(_LONGEST_TYPICAL_WORD, float(np.median(durations))) if durations else 0.0


def merge_punctuation(
    timings: Sequence[WordTiming], prepended: str, appended: str
) -> list[WordTiming]:
    """Attach punctuation to its word, which keeps its times.

    Args:
        timings: the words of a segment, in order.
        prepended: marks that belong to the word after them, if a space comes before.
        appended: marks that belong to the word before them.
    """
    joined: list[WordTiming] = []  # in reverse
    for timing in reversed(timings):
        if joined and timing.word.startswith(" ") and timing.word.strip() in prepended:
            joined[-1] = replace(joined[-1], word=timing.word + joined[-1].word)
        else:
            joined.append(timing)
    merged: list[WordTiming] = []
    for timing in reversed(joined):
        if merged and not merged[-1].word.endswith(" ") and timing.word in appended:
            merged[-1] = replace(merged[-1], word=merged[-1].word + timing.word)
        else:
            merged.append(timing)
    return merged


def fit_to_segment(segment: Segment, words: Sequence[Word], typical: float) -> Segment:
    """Fit a segment and its words to each other.

    The segment begins and ends with its words. If a word at its edge reaches far beyond the
    segment's own timestamp, the timestamp wins: the alignment has then given the word audio that
    is not speech.

    Args:
        segment: as decoded.
        words: as aligned.
        typical: typical length of a word here, in seconds.
    """
    if not words:
        return replace(segment, words=())
    fitted = list(words)
    start, end = segment.start, segment.end
    first = fitted[0]
    if first.start + _TRUSTED_BY < start < first.end:
        start = round(max(first.start, min(first.end - typical, start)), 2)
        fitted[0] = replace(first, start=start)
    else:
        start = first.start
    last = fitted[-1]
    if last.start < end < last.end - _TRUSTED_BY:
        end = round(min(last.end, max(last.start + typical, end)), 2)
        fitted[-1] = replace(last, end=end)
    else:
        end = last.end
    return replace(segment, start=start, end=end, words=tuple(fitted))
