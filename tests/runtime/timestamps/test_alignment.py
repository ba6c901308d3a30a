"""The path through the attention, against slow and simple versions of the same."""

from itertools import pairwise

import numpy as np
import pytest
from scipy import ndimage

from whisper_npu.runtime.timestamps.alignment import (
    UNKNOWN_DELAY,
    attention_delay,
    median_filter,
    token_times,
    warp,
)


def cheapest_by_trying_all(cost: np.ndarray) -> float:
    """The cost of the best path, every path tried."""

    def from_cell(row: int, column: int) -> float:
        if (row, column) == (cost.shape[0] - 1, cost.shape[1] - 1):
            return float(cost[row, column])
        steps = [(row + 1, column), (row, column + 1), (row + 1, column + 1)]
        inside = [(i, j) for i, j in steps if i < cost.shape[0] and j < cost.shape[1]]
        return float(cost[row, column]) + min(from_cell(*cell) for cell in inside)

    return from_cell(0, 0)


def path_cell_by_cell(cost: np.ndarray) -> list[tuple[int, int]]:
    """The path as openai/whisper's `dtw_cpu` finds it, ties included."""
    n, m = cost.shape
    total = np.full((n + 1, m + 1), np.inf)
    total[0, 0] = 0
    came = {}
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            both, down, right = total[i - 1, j - 1], total[i - 1, j], total[i, j - 1]
            if both < down and both < right:
                came[i, j] = (i - 1, j - 1)
            elif down < both and down < right:
                came[i, j] = (i - 1, j)
            else:
                came[i, j] = (i, j - 1)
            total[i, j] = cost[i - 1, j - 1] + total[came[i, j]]
    cell, path = (n, m), []
    while cell[0] > 0 and cell[1] > 0:
        path.append((cell[0] - 1, cell[1] - 1))
        cell = came[cell]
    return path[::-1]


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (2, 2), (4, 6), (6, 4), (5, 5)])
def test_path_is_the_cheapest_of_all(shape: tuple[int, int]) -> None:
    random = np.random.default_rng(shape[0] * 10 + shape[1])
    for _ in range(20):
        cost = random.standard_normal(shape)
        rows, columns = warp(cost)
        cells = list(zip(rows.tolist(), columns.tolist(), strict=True))
        assert cells[0] == (0, 0)
        assert cells[-1] == (shape[0] - 1, shape[1] - 1)
        assert all(
            (b[0] - a[0], b[1] - a[1]) in {(0, 1), (1, 0), (1, 1)} for a, b in pairwise(cells)
        )
        assert cost[rows, columns].sum() == pytest.approx(cheapest_by_trying_all(cost))


@pytest.mark.parametrize("shape", [(1, 40), (40, 1), (12, 80), (80, 12), (60, 150)])
def test_path_is_the_references(shape: tuple[int, int]) -> None:
    random = np.random.default_rng(sum(shape))
    rows, columns = warp(random.standard_normal(shape))
    expected = path_cell_by_cell(np.random.default_rng(sum(shape)).standard_normal(shape))
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == expected


def test_path_is_the_cheapest_where_many_are() -> None:
    random = np.random.default_rng(5)
    for _ in range(50):
        cost = random.integers(0, 3, (5, 6)).astype(np.float64)
        rows, columns = warp(cost)
        assert cost[rows, columns].sum() == cheapest_by_trying_all(cost)


def test_steps_right_come_last_where_many_paths_are_cheapest() -> None:
    rows, columns = warp(np.zeros((3, 5)))
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == path_cell_by_cell(
        np.zeros((3, 5))
    )


@pytest.mark.parametrize("width", [1, 3, 5, 7, 9])
@pytest.mark.parametrize("shape", [(5,), (1, 12), (3, 41), (2, 40, 100)])
def test_median_filter_is_scipys(width: int, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(width).standard_normal(shape).astype(np.float32)
    expected = ndimage.median_filter(values, (*[1] * (len(shape) - 1), width), mode="mirror")
    np.testing.assert_array_equal(median_filter(values, width), expected)


def test_median_filter_leaves_what_is_too_short_to_reflect() -> None:
    values = np.array([[3, 1, 2]], np.float32)
    np.testing.assert_array_equal(median_filter(values, 7), values)


def test_delay_is_that_of_the_heads() -> None:
    base = [(5, 6), (3, 1), (4, 2), (4, 3), (4, 7), (5, 1), (5, 2), (5, 4)]
    assert attention_delay(base) == 0
    assert attention_delay(base[1:]) == UNKNOWN_DELAY
    assert attention_delay([]) == UNKNOWN_DELAY


def _attentions(spans: list[tuple[int, int]], n_positions: int, n_before: int = 3) -> np.ndarray:
    """Two heads whose text tokens attend to given spans, and to little else; padding is loud."""
    rows = np.full((2, n_before + len(spans) + 1, n_positions), 1e-4, np.float32)
    for token, (first, stop) in enumerate(spans):
        rows[:, n_before - 1 + token, first:stop] = 1
    rows[:, n_before - 1 + len(spans), spans[-1][1] :] = 1  # the end of text takes the rest
    return rows / rows.sum(-1, keepdims=True)


def test_tokens_take_the_audio_they_attend_to() -> None:
    times = token_times(_attentions([(0, 21), (21, 50), (50, 71)], 100), 3, 3, 100)
    assert times.ends.tolist() == [21, 50, 71]
    assert times.starts.tolist() == [10, 35, 60]  # half of the attention lies before the middle


def test_a_pause_belongs_to_no_token() -> None:
    """The stretch of a token takes in the pause before it, its start does not."""
    spans = [(0, 20), (60, 64), (64, 90)]
    times = token_times(_attentions(spans, 100), 3, 3, 100)
    assert 58 <= times.starts[1] <= 62
    assert times.ends[0] < 60


def test_padding_is_not_looked_at() -> None:
    spans = [(0, 20), (20, 50), (50, 70)]
    padded = np.concatenate((_attentions(spans, 100), np.full((2, 7, 50), 9, np.float32)), axis=2)
    times = token_times(padded, 3, 3, 100)
    assert times.ends.tolist() == [20, 50, 70]


def test_more_tokens_than_audio() -> None:
    times = token_times(_attentions([(0, 1)] * 12, 4), 12, 3, 4)
    assert len(times.starts) == len(times.ends) == 12
    assert (np.diff(times.ends) >= 0).all()
    assert (times.starts <= times.ends).all()
    assert times.ends[-1] <= 4


def test_attention_that_says_nothing_gives_finite_times() -> None:
    flat = np.full((2, 8, 30), 1 / 30, np.float32)
    times = token_times(flat, 4, 3, 30)
    assert (np.diff([0, *times.ends]) >= 0).all()
