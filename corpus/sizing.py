"""Chooses how many actors of how many threads transcribe, by what they do in the first blocks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa

MOST_THREADS = 4  # of an actor: more actors of fewer threads decode more at a time
_WORTH_TRYING = 7200.0  # seconds of audio: starting other actors costs some seconds of work
_BLOCKS_PER_ACTOR = 2  # of a trial
_BETTER = 1.05  # times as fast as the first: less is chance


@dataclass(frozen=True)
class Size:
    """A number of actors, and the threads of each."""

    actors: int
    threads: int


@dataclass(frozen=True)
class Trial:
    """A size, and the seconds of audio that it transcribed in a second."""

    size: Size
    speed: float


def sizes(processors: int, fitting: Callable[[int], int]) -> list[Size]:
    """The sizes that use all processors, those with most threads first.

    Args:
        processors: of the smallest machine.
        fitting: the number of actors of so many threads that fit on all machines.
    """
    most = min(MOST_THREADS, processors)
    found: dict[int, Size] = {}
    for threads in (most, *(count for count in (2, 1) if count < most)):
        found.setdefault(fitting(threads), Size(fitting(threads), threads))
    return list(found.values())


def n_trial_blocks(known: Sequence[Size], n_blocks: int, seconds: float) -> list[int]:
    """The number of blocks that each size is tried with; empty if trials are not worth it.

    Args:
        known: the sizes.
        n_blocks: of all the work.
        seconds: of audio of all the work.
    """
    counts = [_BLOCKS_PER_ACTOR * size.actors for size in known]
    is_worth = len(known) > 1 and seconds >= _WORTH_TRYING and sum(counts) <= n_blocks // 2
    return counts if is_worth else []


def measured(size: Size, done: Sequence[pa.Table]) -> Trial:
    """A trial from what the actors told of its blocks, their start and the loading left out."""
    told = pa.concat_tables(done).to_pylist()
    # Each actor has its own clock, and may be on another machine.
    elapsed = sum(row["elapsed"] for row in told) / size.actors
    return Trial(size, sum(row["seconds"] for row in told) / max(elapsed, 1e-3))


def best(trials: Sequence[Trial]) -> Size:
    """The fastest size; the first unless another is clearly faster."""
    fastest = max(trials, key=lambda trial: trial.speed)
    first = trials[0]
    return fastest.size if fastest.speed >= _BETTER * first.speed else first.size
