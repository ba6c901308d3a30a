"""Bounds the time for which bulk work makes way for more urgent work."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

_AT_FIRST = 1.0  # seconds
_PER_SECOND = 3.0  # of work: bulk work keeps a quarter of the time, however much else there is


class Allowance:
    """How long one decoding may pause; for the thread that decodes."""

    def __init__(self) -> None:
        """Begin now."""
        self._began = time.monotonic()
        self._paused = 0.0
        self._pausing_since: float | None = None

    @property
    def left(self) -> float:
        """Seconds that it may pause from now on; not above 0 if it has to work."""
        now = time.monotonic()
        since = now if self._pausing_since is None else self._pausing_since
        paused = self._paused + now - since
        worked = now - self._began - paused
        return _AT_FIRST + _PER_SECOND * worked - paused

    @contextmanager
    def spend(self) -> Iterator[None]:
        """Count the time of the block as a pause."""
        self._pausing_since = time.monotonic()
        try:
            yield
        finally:
            self._paused += time.monotonic() - self._pausing_since
            self._pausing_since = None
