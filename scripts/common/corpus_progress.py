"""Shows how far a corpus is: a line that is redrawn on a terminal, else a line per minute."""

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

from whisper_npu.scripts.common.console import controls
from whisper_npu.scripts.common.progress import words

if TYPE_CHECKING:
    from whisper_npu.corpus.run import Progress

_TOLD_EVERY = 60.0  # seconds
_CLEAR = "\r\x1b[K"


class Meter:
    """Shows the progress of a corpus."""

    def __init__(
        self,
        price_per_hour: float | None = None,
        out: TextIO | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare the progress; nothing is shown yet.

        Args:
            price_per_hour: price of an hour of all machines; None shows no cost.
            out: the stream to write to; by default standard error.
            clock: returns seconds from any origin.
        """
        self._price = price_per_hour
        self._out = sys.stderr if out is None else out
        self._clock = clock
        self._told: float | None = None

    def show(self, progress: "Progress") -> None:
        """Show the progress if it is time to."""
        is_last = progress.done == progress.items
        line = describe(progress, self._price)
        if self._out.isatty():
            controls(self._out)(_CLEAR)
            print(line, end="\n" if is_last else "", file=self._out, flush=True)
        elif self._told is None or is_last or self._clock() - self._told >= _TOLD_EVERY:
            self._told = self._clock()
            print(line, file=self._out, flush=True)


def describe(progress: "Progress", price_per_hour: float | None) -> str:
    """The progress in one line."""
    if not progress.items:
        return f"{progress.rows} rows in the manifest, and nothing to transcribe"
    if not progress.done:
        return (
            f"{progress.rows} rows in the manifest; {progress.items} recordings, "
            f"{words(progress.seconds)}, to transcribe with {progress.actors} "
            f"process{'' if progress.actors == 1 else 'es'}"
        )
    total = max(progress.seconds, progress.seconds_done)
    left = max(0.0, total - progress.seconds_done) if progress.done < progress.items else 0.0
    speed = progress.seconds_done / progress.elapsed if progress.elapsed else 0.0
    parts = [
        f"{words(progress.seconds_done)} of {words(total)}",
        f"{progress.done} of {progress.items} recordings",
        f"{speed:.3g} hours per hour",
    ]
    if speed and left:
        parts.append(f"{words(left / speed)} left")
    if price_per_hour is not None and speed:
        spent = progress.elapsed / 3600 * price_per_hour
        parts.append(f"cost {spent:.2f} of {spent + left / speed / 3600 * price_per_hour:.2f}")
    if progress.failed:
        parts.append(f"{progress.failed} failed")
    return ", ".join(parts)
