"""Finds loops: Whisper repeats one phrase over and over where speech is hard to hear."""

import unicodedata
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from whisper_npu.runtime.engines.protocol import Int64Array

_LOOP_REPEATS = 5  # least repetitions of a phrase in a loop
_LOOP_TOKENS = 15  # least tokens in a loop
_PHRASE_TOKENS = 5  # a shorter phrase may well be said twice in a row
_DOUBLED_TOKENS = 3  # of a phrase that is all of a text: "No matter." and not "No."

# A text that has repeated itself for this many tokens does so until the context is full. No
# repetition by people in half a minute takes as many tokens.
_ENDLESS_TOKENS = 96


def is_loop(tokens: Sequence[int]) -> bool:
    """Whether the tokens end in, or hold, one phrase repeated `_LOOP_REPEATS` times in a row."""
    return any(
        _longest_run(tokens, period) >= max(_LOOP_REPEATS * period, _LOOP_TOKENS) - period
        for period in range(1, len(tokens) // _LOOP_REPEATS + 1)
    )


def says_twice(tokens: Sequence[int]) -> bool:
    """Whether text tokens hold a phrase of at least `_PHRASE_TOKENS` tokens twice in a row."""
    return any(
        _longest_run(tokens, period) >= period
        for period in range(_PHRASE_TOKENS, len(tokens) // 2 + 1)
    )


def ends_twice(tokens: Sequence[int]) -> bool:
    """Whether text tokens end in a phrase said twice.

    The phrase has `_PHRASE_TOKENS` tokens or more, or `_DOUBLED_TOKENS` if nothing comes before it.
    """
    most = len(tokens) // 2
    periods = [*range(_PHRASE_TOKENS, most + 1)]
    if most >= _DOUBLED_TOKENS and 2 * most == len(tokens):
        periods.append(most)
    return any(list(tokens[-2 * n : -n]) == list(tokens[-n:]) for n in periods)


def is_endless(tokens: Int64Array) -> npt.NDArray[np.bool_]:
    """Tells for each row whether it only repeats one phrase; `is_loop` holds for such rows.

    Args:
        tokens: int64 `(rows, n)`, the tokens of each row so far.

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
    """The number of letters of an alphabet that take as long to say as `text`.

    A syllable sign counts as three letters, and so does a digit.
    """
    signs = sum(
        char.isdigit() or (char.isalpha() and unicodedata.east_asian_width(char) == "W")
        for char in text
    )
    return len(text) + 2 * signs


def _longest_run(tokens: Sequence[int], period: int) -> int:
    """The most tokens in a row that each equal the token `period` places before."""
    longest = run = 0
    for i in range(period, len(tokens)):
        run = run + 1 if tokens[i] == tokens[i - period] else 0
        longest = max(longest, run)
    return longest
