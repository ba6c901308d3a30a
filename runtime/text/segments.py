"""Cuts the tokens of a window into segments at their timestamps."""

from collections.abc import Sequence
from dataclasses import dataclass

from whisper_npu.runtime.features.log_mel import FRAMES_PER_SECOND
from whisper_npu.runtime.text.tokenizer import TIMESTAMP_STEP


@dataclass(frozen=True)
class TokenSegment:
    """Tokens between two timestamps; `start` and `end` are seconds into the window."""

    start: float
    end: float
    tokens: tuple[int, ...]


def split_at_timestamps(
    tokens: tuple[int, ...], timestamp_begin: int, n_frames: int, *, keep_open_end: bool = False
) -> tuple[list[TokenSegment], int]:
    """Split a window into segments, and find the start of the next window.

    Two timestamps in a row end a segment and begin the next segment. Text after the last such pair
    is unfinished: the next window begins there and decodes it again. A window that ends on a single
    timestamp has no speech after it (openai/whisper, `transcribe.py`).

    Args:
        tokens: the sampled tokens.
        timestamp_begin: the token of 0.00 s.
        n_frames: frames of audio in the window.
        keep_open_end: take unfinished text as a segment that ends with the window, for windows
            that end in a pause: no later window decodes this text again.

    Returns:
        the segments, and the frames to advance.
    """
    is_stamp = [token >= timestamp_begin for token in tokens]
    pairs = [i for i in range(1, len(tokens)) if is_stamp[i - 1] and is_stamp[i]]
    ends_on_single = is_stamp[-2:] == [False, True]

    def seconds(token: int) -> float:
        return (token - timestamp_begin) * TIMESTAMP_STEP

    if not pairs:
        stamps = [token for token in tokens if token > timestamp_begin]
        end = seconds(stamps[-1]) if stamps else n_frames / FRAMES_PER_SECOND
        return [TokenSegment(0.0, end, tokens)], n_frames

    cuts = [*pairs, len(tokens)] if ends_on_single else pairs
    segments = []
    for begin, stop in zip([0, *cuts], cuts, strict=False):
        part = tokens[begin:stop]
        segments.append(TokenSegment(seconds(part[0]), seconds(part[-1]), part))
    if ends_on_single:
        return segments, n_frames
    if keep_open_end and any(token < timestamp_begin for token in tokens[cuts[-1] :]):
        rest = tokens[cuts[-1] :]
        segments.append(TokenSegment(seconds(rest[0]), n_frames / FRAMES_PER_SECOND, rest))
        return segments, n_frames
    advance = round(seconds(tokens[cuts[-1] - 1]) * FRAMES_PER_SECOND)
    return segments, max(1, min(advance, n_frames))


def without_timestamps(segments: Sequence[TokenSegment], timestamp_begin: int) -> TokenSegment:
    """Join the segments of a window, at least one, to a single segment that holds text alone."""
    tokens = [token for segment in segments for token in segment.tokens if token < timestamp_begin]
    return TokenSegment(0.0, segments[-1].end, tuple(tokens))
