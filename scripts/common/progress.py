"""Shows the progress of a batch: one bar on a terminal, else one line per minute."""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from threading import Event, RLock, Thread
from typing import TYPE_CHECKING, NoReturn, Self, TextIO

from whisper_npu.scripts.common.console import controls

if TYPE_CHECKING:
    from tqdm import tqdm

    from whisper_npu.runtime.transcription.stream import TranscriptionStream

_REDRAWN_EVERY = 0.25  # seconds
_TOLD_EVERY = 60.0  # seconds between lines if there is no bar
_BAR = "{percentage:3.0f}%|{bar:20}| {desc}"


class Progress:
    """The progress of a batch of recordings.

    The length of a recording is known when it is opened. Until then it is estimated from the size
    of its file. Decoding many windows together takes long; meanwhile the bar moves at the speed so
    far. A context manager.
    """

    def __init__(
        self,
        files: Sequence[Path],
        out: TextIO | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare the progress; nothing is drawn yet.

        Args:
            files: the recordings, `-` for standard input.
            out: the stream to draw on; by default standard error.
            clock: returns seconds from any origin.
        """
        self._out = sys.stderr if out is None else out
        self._clock = clock
        self._sizes = [_size(file) for file in files]
        self._streams: list[TranscriptionStream | None] = []  # of the opened recordings, in order
        self._ended: dict[int, float] = {}  # seconds of audio in finished recordings, by place
        self._n_failed = 0
        self.status = ""
        self._is_finishing = False
        self._began = clock()
        self._decoding_since: float | None = None
        self._last = (0.0, self._began)  # seconds done at the last look, and its time
        self._shown = 0.0
        self._has_told = False
        self._lock = RLock()
        self._over = Event()
        self._bar: tqdm[NoReturn] | None = None

    def __enter__(self) -> Self:
        if self._out.isatty():
            from tqdm import tqdm  # noqa: PLC0415 - only imported where it is shown

            tqdm.monitor_interval = 0  # this class draws the bar
            file = _Drawing(self._out)
            self._bar = tqdm(total=1, file=file, bar_format=_BAR, dynamic_ncols=True, leave=False)
        Thread(target=self._repeat, name="progress", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        with self._lock:
            if self._bar is not None:
                self._bar.close()
                self._bar = None

    def _repeat(self) -> None:
        told, was_finishing = self._clock(), False
        while not self._over.wait(_REDRAWN_EVERY):
            begins_to_finish = self._is_finishing and not was_finishing
            if self._bar is not None or self._clock() - told >= _TOLD_EVERY or begins_to_finish:
                self.draw()
                told, was_finishing = self._clock(), self._is_finishing

    def finish(self, status: str) -> None:
        """From now on, show the progress up to the end of what was read: no more will be decoded.

        A signal handler may call it.
        """
        self.status = status
        self._is_finishing = True

    def opened(self, stream: "TranscriptionStream | Exception") -> None:
        """Note that the next recording was opened, or failed to open."""
        if self._decoding_since is None:
            self._decoding_since = self._clock()
        self._streams.append(None if isinstance(stream, Exception) else stream)

    def ended(self, place: int, seconds: float, *, failed: bool = False) -> None:
        """Note that the recording at `place` has ended, after `seconds` of audio."""
        self._ended[place] = seconds
        self._streams[place] = None  # frees the stream, which holds the whole text
        self._n_failed += failed

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Clear the line of the bar for other text, which must end with a line end."""
        with self._lock:
            if self._bar is not None:
                self._bar.clear()  # it is drawn again soon
            yield

    def draw(self) -> None:
        """Draw the bar again, or print the progress in a line."""
        with self._lock:
            if self._over.is_set():
                return
            fraction, text = self._describe()
            if self._bar is not None:
                self._bar.n = fraction
                self._bar.set_description_str(text)
                return
            self._has_told = True
            print(f"{fraction:4.0%} {text}", file=self._out, flush=True)

    def summary(self) -> str | None:
        """The work done, in one line; None for a short run, which showed no progress."""
        if not (self._has_told or self._out.isatty()):
            return None
        audio, elapsed = sum(self._ended.values()), self._clock() - self._began
        n_files = len(self._ended)
        speed = f"{audio / elapsed:.3g} x real time" if elapsed else "at once"
        failed = f", {self._n_failed} failed" if self._n_failed else ""
        files = f"{n_files} file{'' if n_files == 1 else 's'}"
        return f"{files}, {words(audio)} of audio in {words(elapsed)} ({speed}){failed}"

    def _describe(self) -> tuple[float, str]:
        done, total = self._seconds_done(), self._seconds_in_all()
        parts = [self.status] if self.status else []
        if done and total:
            elapsed = self._clock() - (self._decoding_since or self._began)
            if not self._is_finishing:  # else the time left might not fit into the line
                parts.append(f"{words(done)} of {words(max(total, done))}")
            parts.append(f"{words(max(0.0, total - done) * elapsed / done)} left")
            parts.append(f"{done / elapsed:.3g} x real time" if elapsed else "")
        elif done:
            parts.append(words(done))
        if len(self._sizes) > 1:
            parts.append(f"{len(self._ended)} of {len(self._sizes)} files")
        if self._n_failed:
            parts.append(f"{self._n_failed} failed")
        return (min(1.0, done / total) if total else 0.0), ", ".join(filter(None, parts))

    def _seconds_done(self) -> float:
        """Seconds of audio done; between two steps they are estimated by the speed so far."""
        done = read = sum(self._ended.values())
        for stream in self._open_streams():
            done, read = done + stream.seconds_done, read + stream.seconds_read
        now, (before, since) = self._clock(), self._last
        if done != before or self._decoding_since is None:
            self._last = (done, now)
        elif since > self._decoding_since:
            speed = done / (since - self._decoding_since)
            done = max(done, min(read, done + (now - since) * speed))
        self._shown = max(self._shown, done)
        return self._shown

    def _seconds_in_all(self) -> float | None:
        """Estimated seconds of all recordings that will be decoded; None if unknown."""
        lengths = dict(self._ended)
        if self._is_finishing:
            return sum(lengths.values()) + sum(each.seconds_read for each in self._open_streams())
        for place, stream in enumerate(self._streams):
            length = None if stream is None else stream.duration_estimate
            if stream is not None and length is not None and isfinite(length):
                lengths.setdefault(place, max(length, stream.seconds_read))
        if any(size is None for place, size in enumerate(self._sizes) if place not in lengths):
            return None
        known = sum(self._sizes[place] or 0 for place in lengths)
        unknown = sum(size or 0 for place, size in enumerate(self._sizes) if place not in lengths)
        if unknown and not known:
            return None
        return sum(lengths.values()) * (1 + unknown / known if unknown else 1)

    def _open_streams(self) -> "list[TranscriptionStream]":
        streams = enumerate(self._streams)
        return [stream for place, stream in streams if stream and place not in self._ended]


def _size(file: Path) -> int | None:
    """Bytes of a file, 0 for a missing file; None for standard input and other pipes."""
    try:
        if str(file) == "-" or file.is_fifo():
            return None
        return file.stat().st_size
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return 0


class _Drawing:
    """A terminal to draw a bar on; text of the bar is escaped, control characters are not."""

    def __init__(self, terminal: TextIO) -> None:
        self._terminal = terminal
        self.write = controls(terminal)
        self.encoding = terminal.encoding

    def flush(self) -> None:
        self._terminal.flush()

    def fileno(self) -> int:
        return self._terminal.fileno()


class BesideProgress(logging.StreamHandler[TextIO]):
    """Logs to standard error, on separate lines beside the progress."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(sys.stderr)
        self._progress = progress

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        with self._progress.paused():
            super().emit(record)


def log_beside(progress: Progress, *, debug: bool) -> None:
    """Make the package log to standard error, on separate lines beside the progress.

    Args:
        progress: the progress, whose bar is cleared for each line.
        debug: whether details are logged, too.
    """
    logger = logging.getLogger("whisper_npu")
    handler = BesideProgress(progress)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.handlers = [handler]
    logger.setLevel(logging.DEBUG if debug else logging.INFO)


def words(seconds: float) -> str:
    """A length of time: `3 h 20 min`, `2 min 10 s`, `8.4 s`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"
