"""Finds out when each token was spoken: dynamic time warping over the alignment heads' attention.

Some cross-attention heads of Whisper follow the speech. Their cleaned weights form a matrix of
tokens by audio positions. The best monotonic path through it gives every token a stretch of audio
(openai/whisper, `timing.py`). The stretches leave no gap: a pause belongs to the token after it.
The attention of the token within its stretch shows where it begins (`_onsets`).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from whisper_npu.runtime.engines.protocol import Float32Array

Float64Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.intp]

MEDIAN_WIDTH = 7  # audio positions of 20 ms
_BLOCK_ROWS = 16  # filtered at once: so few rows that memory is reused

# How long after a sound the alignment heads attend to it, in seconds. The heads identify published
# checkpoints. Measured on 50 LibriSpeech recordings, by the shift that best puts words on a rise of
# the log-mel energy (base 0.00 to 0.02, tiny.en 0.14 to 0.18), and on one clip whose words were
# timed by another recogniser (base -0.01, tiny.en 0.14).
_DELAYS: dict[tuple[tuple[int, int], ...], float] = {
    ((1, 0), (2, 0), (2, 5), (3, 0), (3, 1), (3, 2), (3, 3), (3, 4)): 0.14,  # tiny.en
    ((3, 1), (4, 2), (4, 3), (4, 7), (5, 1), (5, 2), (5, 4), (5, 6)): 0.0,  # base
}
UNKNOWN_DELAY = 0.04  # within 0.1 s of both


def attention_delay(heads: Iterable[tuple[int, int]]) -> float:
    """Return how long after a sound the alignment heads attend to it, in seconds.

    Args:
        heads: the model's alignment heads, by layer and index.
    """
    return _DELAYS.get(tuple(sorted(heads)), UNKNOWN_DELAY)


@dataclass(frozen=True)
class TokenTimes:
    """When tokens were spoken, in audio positions of 20 ms; the times never decrease.

    Attributes:
        starts: int `(tokens,)`, where each token begins, after any pause before it.
        ends: int `(tokens,)`, where each token's stretch ends and the next stretch begins.
    """

    starts: IntArray
    ends: IntArray


def token_times(
    cross_attentions: Iterable[Float32Array],
    n_text_tokens: int,
    n_before: int,
    n_positions: int,
    median_width: int = MEDIAN_WIDTH,
) -> TokenTimes:
    """Find out when each token of a text was spoken.

    Args:
        cross_attentions: for each head float32 `(n, n_audio_ctx)`, the attention of `n` tokens:
            `n_before` tokens that steer, `n_text_tokens` of text, perhaps an end of text.
        n_text_tokens: tokens of text.
        n_before: tokens before the text, at least 1.
        n_positions: audio positions that hold sound; the rest is padding.
        median_width: of the filter over positions.
    """
    # The position of a token predicts the next token: the rows begin one before the text.
    rows = slice(n_before - 1, n_before + n_text_tokens)
    shape = (n_text_tokens + 1, n_positions)
    matrix, attended = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    n_heads = 0
    for of_head in cross_attentions:  # one by one, so that they stay in the processor's cache
        weights = of_head[:, :n_positions]
        weights = weights / weights.sum(axis=-1, keepdims=True)
        attended += weights[rows]
        matrix += median_filter(_standardize(weights, rows), median_width)
        n_heads += 1
    tokens, positions = warp(-(matrix / n_heads).astype(np.float64))
    bounds = positions[np.flatnonzero(np.diff(tokens, prepend=-1))]
    return TokenTimes(starts=_onsets(attended, bounds), ends=bounds[1:])


def _standardize(weights: Float32Array, rows: slice) -> Float32Array:
    """Standardize some rows over all rows: which token attends to a position more than others."""
    mean, spread = weights.mean(axis=0), weights.std(axis=0)
    spread[spread == 0] = 1  # every token attends to this position alike
    standardized: Float32Array = weights[rows] - mean
    standardized /= spread
    return standardized


def _onsets(weights: Float32Array, bounds: IntArray) -> IntArray:
    """Return where each token begins within its stretch.

    A token attends to the onset of its sound, and hardly to a pause before it. Half of its
    attention lies before the onset and half after it, except for the delay of `attention_delay`.

    Args:
        weights: float32 `(tokens + 1, positions)`, a measure of their attention; the last row is
            the end of text.
        bounds: int `(tokens + 1,)`, where their stretches begin.
    """
    onsets = bounds[:-1].copy()
    for i, (first, stop) in enumerate(pairwise(bounds)):
        attention = np.cumsum(weights[i, first:stop])
        if len(attention):
            onsets[i] += np.searchsorted(attention, attention[-1] / 2)
    return onsets


def median_filter(values: Float32Array, width: int) -> Float32Array:
    """Filter with the median of `width` neighbours along the last axis, the ends reflected.

    Values stay unchanged if the last axis is too short to be reflected.

    Args:
        values: float32 `(..., n)`.
        width: an odd number.
    """
    n = values.shape[-1]
    margin = width // 2
    if n <= margin:
        return values
    filtered = np.empty((values.size // n, n), np.float32)
    rows = values.reshape(-1, n)
    for start in range(0, len(rows), _BLOCK_ROWS):
        block = rows[start : start + _BLOCK_ROWS]
        padded = np.pad(block, ((0, 0), (margin, margin)), mode="reflect")
        filtered[start : start + _BLOCK_ROWS] = _median(
            [padded[:, i : i + n] for i in range(width)]
        )
    return filtered.reshape(values.shape)


def _median(arrays: list[Float32Array]) -> Float32Array:
    """Return the median of an odd number of arrays, element by element.

    The least and the greatest of more than half of the values cannot be the median: they are
    dropped and the next value is added, until one value remains. Comparing whole arrays is several
    times faster than sorting each neighbourhood.
    """
    in_play = len(arrays) // 2 + 2
    kept, waiting = arrays[:in_play], arrays[in_play:]
    while len(kept) > 1:
        kept = _without_extremes(kept)
        if waiting:
            kept.append(waiting.pop())
    return kept[0]


def _without_extremes(arrays: list[Float32Array]) -> list[Float32Array]:
    """Return all values except the least and the greatest, element by element."""
    least, *rest = arrays
    for i, array in enumerate(rest):
        rest[i] = np.maximum(least, array)
        least = np.minimum(least, array)
    greatest, *rest = rest
    for i, array in enumerate(rest):
        rest[i] = np.minimum(greatest, array)
        greatest = np.maximum(greatest, array)
    return rest


def warp(cost: Float64Array) -> tuple[IntArray, IntArray]:
    """Find the cheapest path from the first to the last cell that never goes back (DTW).

    A step goes one row down, one column right, or both. Among equally cheap paths, a last step to
    the right comes first, then a step in both directions.

    Args:
        cost: float64 `(rows, columns)`, at least one of each.

    Returns:
        the rows and the columns of the cells on the path, in order.
    """
    n_rows, n_columns = cost.shape
    columns = np.arange(n_columns)
    entered = np.zeros(cost.shape, np.int32)  # column where the best path entered the row
    comes_down = np.empty(cost.shape, bool)  # whether it came from straight above
    total = np.cumsum(cost[0])
    for i in range(1, n_rows):
        both = np.concatenate(([np.inf], total[:-1]))
        comes_down[i] = total < both
        # A path that enters at column k costs, up to column j, its cost so far and the row's cells
        # from k to j: the sum up to j, less the sum up to k.
        up_to = np.cumsum(cost[i])
        before = np.concatenate(([0.0], up_to[:-1]))
        entering = np.minimum(total, both) - before
        cheapest = np.minimum.accumulate(entering)
        is_better = entering < np.concatenate(([np.inf], cheapest[:-1]))
        np.maximum.accumulate(np.where(is_better, columns, 0), out=entered[i])
        total = cheapest + up_to
    stretches = []  # from the last row to the first
    column = n_columns - 1
    for i in reversed(range(n_rows)):
        first = int(entered[i, column])
        stretches.append(columns[first : column + 1])
        column = first if comes_down[i, first] else first - 1
    lengths = [len(stretch) for stretch in reversed(stretches)]
    return np.repeat(np.arange(n_rows), lengths), np.concatenate(stretches[::-1])
