"""Finds phrases that are said over and over, as Whisper does with speech that is hard to hear."""

import unicodedata
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from whisper_npu.runtime.engines.protocol import Int64Array

_LOOP_REPEATS = 5  # a phrase said this often in a row...
_LOOP_TOKENS = 15  # ...over at least this many tokens is a loop, not speech
_PHRASE_TOKENS = 5  # what may be said twice in a row without raising doubts is shorter

# A text that has repeated itself for this many tokens does so until the context is full. People
# say nothing so often in half a minute that would take as many.
_ENDLESS_TOKENS = 96


def is_loop(tokens: Sequence[int]) -> bool:
    """Whether the tokens end in, or hold, one phrase repeated `_LOOP_REPEATS` times in a row."""
    return any(
        _longest_run(tokens, period) >= max(_LOOP_REPEATS * period, _LOOP_TOKENS) - period
        for period in range(1, len(tokens) // _LOOP_REPEATS + 1)
    )


def says_twice(tokens: Sequence[int]) -> bool:
    """Whether tokens, of text alone, hold a phrase of `_PHRASE_TOKENS` or more twice in a row."""
    return any(
        _longest_run(tokens, period) >= period
        for period in range(_PHRASE_TOKENS, len(tokens) // 2 + 1)
    )


def is_endless(tokens: Int64Array) -> npt.NDArray[np.bool_]:
    """Which rows have come to nothing but one phrase, over and over; `is_loop` holds for them.

    Args:
        tokens: int64 `(rows, n)`, what each has said so far.

    Returns:
        bool `(rows,)`.
    """
    endless = np.zeros(len(tokens), bool)
    last = tokens[:, -_ENDLESS_TOKENS:]
    for period in range(1, _ENDLESS_TOKENS // (_LOOP_REPEATS - 1) + 1):
        if tokens.shape[1] < _ENDLESS_TOKENS + period:
            break
        before = tokens[:, -_ENDLESS_TOKENS - period : -period]
        endless |= (last == before).all(axis=1)
    return endless


def spoken_length(text: str) -> int:
    """Letters of an alphabet that take as long to say.

    A sign for a syllable counts as three, and so does a digit.
    """
    signs = sum(
        char.isdigit() or (char.isalpha() and unicodedata.east_asian_width(char) == "W")
        for char in text
    )
    return len(text) + 2 * signs


def _longest_run(tokens: Sequence[int], period: int) -> int:
    """How many tokens in a row are the same as those `period` before them."""
    longest = run = 0
    for i in range(period, len(tokens)):
        run = run + 1 if tokens[i] == tokens[i - period] else 0
        longest = max(longest, run)
    return longest
