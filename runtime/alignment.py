"""When each token was spoken: dynamic time warping over the attention of the alignment heads.

Certain cross-attention heads of Whisper follow the speech. Their weights, cleaned up, form a matrix
of tokens by audio positions, and the best monotonic path through it gives every token a stretch of
audio (openai/whisper, `timing.py`). The stretches leave no gap: a pause belongs to the token behind
it. What the token really attends to within its stretch tells where it begins (`_onsets`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from whisper_npu.runtime.backend import Float32Array

Float64Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.intp]

MEDIAN_WIDTH = 7  # audio positions of 20 ms
_BLOCK_ROWS = 32  # filtered at once: what fits in the processor's second cache

_DIAGONAL, _UP, _LEFT = range(3)


# How long after a sound the alignment heads attend to it, in seconds, by those heads, which tell
# published checkpoints apart. Measured on 50 LibriSpeech recordings, by the shift that best puts
# words on a rise of the log-mel energy (base 0.00 to 0.02, tiny.en 0.14 to 0.18), and on one clip
# whose words were timed by another recogniser (base -0.01, tiny.en 0.14).
_DELAYS: dict[tuple[tuple[int, int], ...], float] = {
    ((1, 0), (2, 0), (2, 5), (3, 0), (3, 1), (3, 2), (3, 3), (3, 4)): 0.14,  # tiny.en
    ((3, 1), (4, 2), (4, 3), (4, 7), (5, 1), (5, 2), (5, 4), (5, 6)): 0.0,  # base
}
UNKNOWN_DELAY = 0.04  # within 0.1 s of either


def attention_delay(generation_config: Mapping[str, Any]) -> float:
    """How long after a sound a model's alignment heads attend to it, in seconds.

    Args:
        generation_config: the model's, which names its `alignment_heads`.
    """
    heads = generation_config.get("alignment_heads") or ()
    return _DELAYS.get(tuple(sorted((layer, head) for layer, head in heads)), UNKNOWN_DELAY)


@dataclass(frozen=True)
class TokenTimes:
    """When tokens were spoken, in audio positions of 20 ms; neither ever goes back.

    Attributes:
        starts: int `(tokens,)`, where each begins, pauses before it left out.
        ends: int `(tokens,)`, where the stretch of each ends and that of the next begins.
    """

    starts: IntArray
    ends: IntArray


def token_times(
    cross_attentions: Float32Array, n_text_tokens: int, n_before: int, n_positions: int
) -> TokenTimes:
    """When each token of a text was spoken.

    Args:
        cross_attentions: float32 `(heads, n, n_audio_ctx)`, what the positions of `n` tokens attend
            to: `n_before` tokens that steer, `n_text_tokens` of text, perhaps an end of text.
        n_text_tokens: tokens of text.
        n_before: tokens before them, at least 1.
        n_positions: audio positions that hold sound; the rest is padding.
    """
    weights = cross_attentions[:, :, :n_positions]
    weights = weights / weights.sum(axis=-1, keepdims=True)
    # The position of a token predicts the next one: the rows begin one before the text.
    rows = slice(n_before - 1, n_before + n_text_tokens)
    matrix = median_filter(_standardize(weights)[:, rows], MEDIAN_WIDTH).mean(axis=0)
    tokens, positions = warp(-matrix.astype(np.float64))
    bounds = positions[np.flatnonzero(np.diff(tokens, prepend=-1))]
    return TokenTimes(starts=_onsets(weights[:, rows].mean(axis=0), bounds), ends=bounds[1:])


def _standardize(weights: Float32Array) -> Float32Array:
    """Weights standardized over the tokens: who attends to an audio position more than others."""
    spread = weights.std(axis=-2, keepdims=True)
    spread[spread == 0] = 1  # every token attends to it alike: it says nothing
    standardized: Float32Array = (weights - weights.mean(axis=-2, keepdims=True)) / spread
    return standardized


def _onsets(weights: Float32Array, bounds: IntArray) -> IntArray:
    """Where each token begins within its stretch.

    A token attends to the onset of its sound, and hardly at all to a pause before it: half of its
    attention lies before the onset and half behind, but for the delay that `attention_delay` knows.

    Args:
        weights: float32 `(tokens + 1, positions)`, standing for their attention; the last row is
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
    """Median of `width` neighbours along the last axis, the ends reflected.

    The last axis stays as it is where it is too short to be reflected.

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
    """Element by element, the median of an odd number of arrays.

    The least and the greatest of more than half of the values cannot be the median: they are
    dropped and the next value is taken in, until one remains. Comparing whole arrays is several
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
    """Element by element, all values but the least and the greatest."""
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
    """The cheapest path from the first to the last cell that never goes back (DTW).

    A step goes one row down, one column right, or both. Of ways that are equally cheap the one is
    taken whose last step goes right, else both.

    Args:
        cost: float64 `(rows, columns)`, at least one of each.

    Returns:
        the rows and the columns of the cells on the path, in order.
    """
    n_rows, n_columns = cost.shape
    # Cells of one anti-diagonal do not depend on each other. Shearing turns them into rows:
    # sheared[d, i] is cost[i, d - i].
    sheared = np.full((n_rows + n_columns - 1, n_rows), np.inf)
    for i in range(n_rows):
        sheared[i : i + n_columns, i] = cost[i]
    steps = np.empty(sheared.shape, np.uint8)
    # Costs up to the last two diagonals; element i + 1 belongs to row i, element 0 to none.
    before = np.full(n_rows + 1, np.inf)
    last = np.full(n_rows + 1, np.inf)
    before[0] = 0.0  # the way into the first cell is free
    for diagonal, costs in enumerate(sheared):
        both, down, right = before[:-1], last[:-1], last[1:]
        cheapest = np.minimum(np.minimum(both, down), right)
        step = steps[diagonal]
        step[:] = _DIAGONAL
        step[down < both] = _UP
        step[right == cheapest] = _LEFT
        before, last = last, np.concatenate(([np.inf], cheapest + costs))
    return _trace_back(steps, n_rows, n_columns)


def _trace_back(
    steps: npt.NDArray[np.uint8], n_rows: int, n_columns: int
) -> tuple[IntArray, IntArray]:
    """The path that led to the last cell; `steps` `(diagonals, rows)` says how each was reached."""
    row, column = n_rows - 1, n_columns - 1
    path = [(row, column)]
    while row or column:
        # The borders leave no choice.
        step = _UP if column == 0 else _LEFT if row == 0 else steps[row + column, row]
        row -= step != _LEFT
        column -= step != _UP
        path.append((row, column))
    rows, columns = np.array(path[::-1], np.intp).T
    return rows, columns
