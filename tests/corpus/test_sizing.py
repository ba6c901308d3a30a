"""How many actors of how many threads: what is tried, when, and what is chosen."""

import pyarrow as pa
import pytest

from whisper_npu.corpus.sizing import Size, Trial, best, measured, n_trial_blocks, sizes
from whisper_npu.corpus.worker import DONE

TWO_CORES = [Size(1, 2), Size(2, 1)]


@pytest.mark.parametrize(
    ("processors", "expected"),
    [
        (1, [(1, 1)]),
        (2, [(1, 2), (2, 1)]),
        (3, [(1, 3), (3, 1)]),  # one actor of two would leave one idle
        (8, [(2, 4), (4, 2), (8, 1)]),
        (64, [(16, 4), (32, 2), (64, 1)]),
    ],
)
def test_the_sizes_use_all_processors(processors, expected):
    found = sizes(processors, lambda threads: max(1, processors // threads))
    assert [(size.actors, size.threads) for size in found] == expected


def test_a_size_that_memory_does_not_allow_is_not_tried():
    assert sizes(8, lambda threads: min(3, 8 // threads)) == [Size(2, 4), Size(3, 2)]


def test_trials_need_much_work():
    assert n_trial_blocks(TWO_CORES, 100, 7200.0) == [2, 4]
    assert n_trial_blocks(TWO_CORES, 100, 7199.0) == []
    assert n_trial_blocks(TWO_CORES, 11, 7200.0) == []  # they would be most of the work
    assert n_trial_blocks(TWO_CORES[:1], 100, 7200.0) == []


def told(seconds, began, ended):
    row = {"items": 1, "failed": 0, "seconds": seconds, "began": began, "ended": ended}
    return pa.Table.from_pylist([row], schema=DONE)


def test_speed_of_actors_side_by_side():
    trial = measured(Size(2, 1), [told(300.0, 10.0, 20.0), told(300.0, 12.0, 25.0)])
    assert trial.speed == pytest.approx(600 / 15)


def test_the_first_size_stays_unless_another_is_clearly_faster():
    first, second = TWO_CORES
    assert best([Trial(first, 100.0), Trial(second, 104.0)]) == first
    assert best([Trial(first, 100.0), Trial(second, 106.0)]) == second
    assert best([Trial(first, 100.0), Trial(second, 50.0)]) == first
