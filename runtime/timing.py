"""Measures the time of a transcription, stage by stage."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class StageTimes:
    """Seconds and calls per stage, in order of first use. Safe across threads.

    No second counts twice: the time of a stage inside another counts for the inner stage alone.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._calls: dict[str, int] = {}
        self._lock = threading.Lock()
        self._thread = threading.local()  # per thread: seconds of stages inside the current stage

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the time of the `with` block to `stage`, without that of stages inside it."""
        inside_outer = getattr(self._thread, "inside", 0.0)
        self._thread.inside = 0.0
        start = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - start
            self.add(stage, elapsed - self._thread.inside)
            self._thread.inside = inside_outer + elapsed

    def add(self, stage: str, seconds: float, calls: int = 1) -> None:
        """Add `seconds` spent in `calls` calls to `stage`."""
        with self._lock:
            self._seconds[stage] = self._seconds.get(stage, 0.0) + seconds
            self._calls[stage] = self._calls.get(stage, 0) + calls

    def add_share(self, other: "StageTimes", share: float) -> None:
        """Add `share` of the seconds of `other`, and all of its calls."""
        calls = other.calls
        for stage, seconds in other.seconds.items():
            self.add(stage, share * seconds, calls[stage])

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by stage."""
        with self._lock:
            return dict(self._seconds)

    @property
    def calls(self) -> dict[str, int]:
        """Calls by stage."""
        with self._lock:
            return dict(self._calls)

    def __str__(self) -> str:
        """Return one line: `encoder 0.210 s (1), decoder 0.153 s (27)`."""
        return ", ".join(
            f"{stage} {seconds:.3f} s ({self.calls[stage]})"
            for stage, seconds in self.seconds.items()
        )
