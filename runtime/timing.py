"""Where the time of a transcription goes, stage by stage."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class StageTimes:
    """Seconds spent and calls made per stage, in order of first use. Safe across threads."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._calls: dict[str, int] = {}
        self._lock = threading.Lock()

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the time the `with` block takes to `stage`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - start)

    def add(self, stage: str, seconds: float, calls: int = 1) -> None:
        """Add `seconds` spent in `calls` calls to `stage`."""
        with self._lock:
            self._seconds[stage] = self._seconds.get(stage, 0.0) + seconds
            self._calls[stage] = self._calls.get(stage, 0) + calls

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
        """One line: `encoder 0.210 s (1), decoder 0.153 s (27)`."""
        return ", ".join(
            f"{stage} {seconds:.3f} s ({self.calls[stage]})"
            for stage, seconds in self.seconds.items()
        )
