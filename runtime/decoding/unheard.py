"""Finds speech that a text leaves out: a missing beginning, a gap, half a word a second.

A window's text may hold the loud speaker's words only, and still look like a good text. The times
reveal the loss: where the speech detector finds speech, the text must have words.
"""

from collections.abc import Sequence
from dataclasses import replace

from whisper_npu.runtime.decoding.decode import DecodedWindow
from whisper_npu.runtime.decoding.loop_detection import spoken_length
from whisper_npu.runtime.features.log_mel import FRAMES_PER_SECOND
from whisper_npu.runtime.features.windows import Stretch
from whisper_npu.runtime.text.segments import TokenSegment, split_at_timestamps
from whisper_npu.runtime.text.tokenizer import TIMESTAMP_STEP, Tokenizer
from whisper_npu.runtime.timestamps.words import WordTiming

NEGLIGIBLE_SPEECH = 1.0  # seconds at the end of a window that may be noise, or the last word

# The longest duration of a word and of its letters: longer speech has further words in it. Single
# words get generous limits; the words of a segment share its time.
_WORD, _LETTER = 0.6, 0.15  # seconds
_WORD_OF_SEGMENT, _LETTER_OF_SEGMENT = 0.3, 0.13  # seconds
_NEAR = 0.25  # seconds by which a word's times may be wrong
# Share of a window's speech from which many short gaps together count.
_SPARSE = 0.25
_INEXACT = 1.5  # factor on the threshold for segments: sampled times are less exact


def find_unheard(
    decoded: DecodedWindow,
    speech: Sequence[Stretch],
    n_frames: int,
    tokenizer: Tokenizer,
    least: float,
    *,
    is_continued: bool,
) -> tuple[Stretch, ...]:
    """The stretches of speech in a window that its text does not account for.

    Args:
        decoded: the window.
        speech: where the detector finds speech in it.
        n_frames: frames of 10 ms of audio in it.
        tokenizer: the model's tokenizer.
        least: seconds of speech without a word that count.
        is_continued: whether the caller decodes the rest after the text.
    """
    if decoded.words is not None and (decoded.words or not decoded.tokens):
        return unheard_by_words(decoded.words, speech, least)
    begin = tokenizer.special.timestamp_begin
    segments, advance = split_at_timestamps(
        decoded.tokens, begin, n_frames, keep_open_end=is_continued
    )
    first = segments[0]
    if first.tokens and first.tokens[0] >= begin:  # a single segment has been given start 0
        segments[0] = replace(first, start=(first.tokens[0] - begin) * TIMESTAMP_STEP)
    end = advance / FRAMES_PER_SECOND
    if is_continued and any(token < begin for token in decoded.tokens):
        text_end = segments[-1].end
        end = text_end if text_end >= NEGLIGIBLE_SPEECH else end
    return unheard_by_segments(segments, tokenizer, speech, end, least)


def unheard_by_words(
    words: Sequence[WordTiming], speech: Sequence[Stretch], least: float
) -> tuple[Stretch, ...]:
    """The stretches of speech without a word.

    Args:
        words: words of a window's text, timed by alignment.
        speech: where the detector finds speech in the window.
        least: seconds of speech without a word that count.

    Returns:
        the stretches, in order.
    """
    spoken = [
        (word.start - _NEAR, min(word.end, word.start + _longest(word.word)) + _NEAR)
        for word in words
        if any(char.isalnum() for char in word.word)
    ]
    end = max((stop for _, stop in speech), default=0.0)
    return _gaps(spoken, speech, end, least)


def unheard_by_segments(
    segments: Sequence[TokenSegment],
    tokenizer: Tokenizer,
    speech: Sequence[Stretch],
    end: float,
    least: float,
) -> tuple[Stretch, ...]:
    """The stretches of speech without a segment, or with too few words in the segment.

    Args:
        segments: segments of a window, by their timestamps.
        tokenizer: the model's tokenizer.
        speech: where the detector finds speech in the window.
        end: seconds into the window up to which its text must account for speech.
        least: seconds of speech without a word that count; they are multiplied by 1.5 here, as
            only segments are timed.

    Returns:
        the stretches, in order.
    """
    spoken = []
    for segment in segments:
        text = tokenizer.decode(segment.tokens).strip()
        if any(char.isalnum() for char in text):
            longest = _WORD_OF_SEGMENT * len(text.split()) + _LETTER_OF_SEGMENT * spoken_length(
                text
            )
            spoken.append((segment.start, _spoken_until(segment, longest, speech)))
    return _gaps(spoken, speech, end, _INEXACT * least)


def _spoken_until(segment: TokenSegment, longest: float, speech: Sequence[Stretch]) -> float:
    """The latest end of a segment's words, if they take `longest` seconds of speech."""
    for start, stop in speech:
        spoken = min(stop, segment.end) - max(start, segment.start)
        if spoken >= longest:
            return max(start, segment.start) + longest
        longest -= max(0.0, spoken)
    return segment.end


def seconds_of(stretches: Sequence[Stretch]) -> float:
    """The total length of stretches, in seconds."""
    return sum(stop - start for start, stop in stretches)


def _longest(word: str) -> float:
    return _WORD + _LETTER * spoken_length(word.strip())


def _gaps(
    spoken: Sequence[Stretch], speech: Sequence[Stretch], end: float, least: float
) -> tuple[Stretch, ...]:
    every, reached = [], 0.0  # the speech in each gap
    for start, stop in (*spoken, (end, end)):
        missed = [
            (max(first, reached), min(last, start))
            for first, last in speech
            if min(last, start) > max(first, reached)
        ]
        if missed:
            every.append(missed)
        reached = max(reached, stop)
    long = [missed for missed in every if seconds_of(missed) >= least]
    if not long:
        total = sum(map(seconds_of, every))
        is_sparse = total >= 2 * least and total >= _SPARSE * seconds_of(speech)
        long = every if is_sparse else []
    return tuple((missed[0][0], missed[-1][1]) for missed in long)
