"""Shows how far a corpus is: a line that is redrawn on a terminal, else a line per minute."""

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Self, TextIO

from whisper_npu.scripts.common.console import controls
from whisper_npu.scripts.common.progress import words

if TYPE_CHECKING:
    from whisper_npu.corpus.run import Progress

_TOLD_EVERY = 60.0  # seconds
_CLEAR = "\r\x1b[K"


class Meter:
    """Shows the progress of a corpus. A context manager: other text may follow its end.

    Attributes:
        last: the last progress; None before the work begins.
    """

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
        self._is_drawn = False  # whether the terminal's line is to be cleared
        self.last: Progress | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def say(self, text: str) -> None:
        """Show what is done while no recording is transcribed."""
        self._print(f"{text} ...", stays=False)

    def show(self, progress: "Progress") -> None:
        """Show the progress if it is time to."""
        self.last = progress
        is_first, is_last = not progress.elapsed, progress.done == progress.items
        is_time = self._told is None or self._clock() - self._told >= _TOLD_EVERY
        if is_time or is_last or self._out.isatty():
            self._told = self._clock()
            # Ray prints a line of its own after the first.
            self._print(describe(progress, self._price), stays=is_first or is_last)

    def clear(self) -> None:
        """Clear the line on a terminal for other text."""
        if self._is_drawn:
            controls(self._out)(_CLEAR)
            self._out.flush()
        self._is_drawn = False

    def _print(self, line: str, *, stays: bool) -> None:
        """Print a line; on a terminal the next line takes its place, unless it stays."""
        self.clear()
        self._is_drawn = self._out.isatty() and not stays
        print(line, end="" if self._is_drawn else "\n", file=self._out, flush=True)


def counted(number: int, noun: str) -> str:
    """A number of things: `1 row`, `2 rows`."""
    return f"{number} {noun if number == 1 else f'{noun}s'}"


def describe(progress: "Progress", price_per_hour: float | None) -> str:
    """The progress in one line."""
    rows = f"{counted(progress.rows, 'row')} in the manifest"
    if not progress.items:
        return f"{rows}, and nothing to transcribe"
    if not progress.elapsed:
        return (
            f"{rows}; {counted(progress.items, 'recording')}, "
            f"{words(progress.seconds)}, to transcribe with {progress.actors} "
            f"process{'' if progress.actors == 1 else 'es'}; figures follow after the first block"
        )
    total = max(progress.seconds, progress.seconds_done)
    left = max(0.0, total - progress.seconds_done) if progress.done < progress.items else 0.0
    speed = progress.seconds_done / progress.elapsed if progress.elapsed else 0.0
    parts = [
        f"{words(progress.seconds_done)} of {words(total)}",
        f"{progress.done} of {counted(progress.items, 'recording')}",
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
