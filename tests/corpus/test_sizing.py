"""How many actors of how many threads: what is tried, when, and what is chosen."""

import pyarrow as pa
import pytest

from whisper_npu.corpus import engine
from whisper_npu.corpus.run import CorpusJob, Progress, _work
from whisper_npu.corpus.sizing import Size, Trial, best, measured, n_trial_blocks, sizes
from whisper_npu.corpus.worker import DONE, ModelSettings

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


def told(seconds, elapsed):
    row = {"items": 1, "failed": 0, "seconds": seconds, "elapsed": elapsed}
    return pa.Table.from_pylist([row], schema=DONE)


def test_speed_of_actors_side_by_side():
    trial = measured(Size(2, 1), [told(300.0, 10.0), told(300.0, 20.0)])
    assert trial.speed == pytest.approx(600 / 15)


def test_the_first_size_stays_unless_another_is_clearly_faster():
    first, second = TWO_CORES
    assert best([Trial(first, 100.0), Trial(second, 104.0)]) == first
    assert best([Trial(first, 100.0), Trial(second, 106.0)]) == second
    assert best([Trial(first, 100.0), Trial(second, 50.0)]) == first


class Actors:
    """Takes the place of Ray: notes which blocks were given out, and how.

    Attributes:
        speeds: seconds of audio that each number of actors transcribes in a second.
        given: the actors, their threads and the blocks, of each call.
    """

    def __init__(self, speeds):
        self.speeds, self.given = speeds, []

    def map_in_actors(self, blocks, arguments, *, actors, threads):
        settings, *_ = arguments
        assert settings.load["threads"] == threads
        self.given.append((actors, threads, list(blocks)))
        for _ in blocks:
            yield told(600.0, actors * 600 / self.speeds[actors])


@pytest.fixture
def work(monkeypatch):
    """A function that does 20 blocks of work; returns what was given out, and all progress."""

    def run(speeds, *, seconds=12_000.0, n_blocks=20, **job):
        actors = Actors(speeds)
        for name, value in {
            "map_in_actors": actors.map_in_actors,
            "put": list,
            "processors": lambda: 2,
            "processors_of_a_machine": lambda: 2,
            "memory": lambda: 1 << 40,
        }.items():
            monkeypatch.setattr(engine, name, value)
        monkeypatch.setattr("whisper_npu.corpus.run.work_blocks", lambda *_: range(n_blocks))
        monkeypatch.setattr("whisper_npu.corpus.run.can_cut", lambda _: False)
        load = {"threads": job.pop("threads", 0)}
        settings = ModelSettings(model="none", load=load)
        begin = Progress(rows=n_blocks, items=n_blocks, seconds=seconds)
        made = CorpusJob(manifest="m", output="o", settings=settings, **job)
        return actors.given, list(_work(made, None, None, None, None, begin))

    return run


@pytest.mark.parametrize(("speeds", "chosen"), [({1: 50, 2: 30}, (1, 2)), ({1: 50, 2: 90}, (2, 1))])
def test_large_work_goes_on_with_the_faster_size(work, speeds, chosen):
    given, progress = work(speeds)
    assert [(actors, threads) for actors, threads, _ in given] == [(1, 2), (2, 1), chosen]
    assert [len(blocks) for _, _, blocks in given] == [2, 4, 14]
    assert sorted(block for _, _, blocks in given for block in blocks) == list(range(20))
    assert given[2][2][0] == 0  # long recordings first
    last = progress[-1]
    assert (last.done, last.seconds_done) == (20, 12_000)
    assert [(trial.size.actors, round(trial.speed)) for trial in last.trials] == [*speeds.items()]
    assert (last.actors, last.threads) == chosen


@pytest.mark.parametrize(
    ("job", "expected"),
    [
        ({"seconds": 600.0}, (1, 2, 20)),
        ({"actors": 2}, (2, 2, 20)),
        ({"threads": 1}, (2, 1, 20)),
        ({"seconds": 600.0, "n_blocks": 1}, (1, 2, 1)),
    ],
)
def test_small_work_and_given_numbers_are_not_tried(work, job, expected):
    ((actors, threads, blocks),), progress = work({1: 50, 2: 90}, **job)
    assert (actors, threads, len(blocks)) == expected
    assert progress[-1].trials == ()
