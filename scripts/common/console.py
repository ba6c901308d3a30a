"""Standard streams that escape control characters and report a failed write as an error.

File names, tags and model folders may come from anywhere. Their control characters could move the
cursor, retitle the window or erase printed text.
"""

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from whisper_npu.errors import WhisperNpuError

# Control characters except the tab and the line end. Tentative text and progress bars need some,
# which they write with `controls`.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# A message is one line, and no mark in it changes the direction of the text after it
# (CVE-2021-42574).
_NOT_IN_A_LINE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


class StandardOutputError(WhisperNpuError):
    """Standard output cannot be written; unlike an `OutputError` this ends the whole batch."""

    exit_code = 1


class StandardOutputGoneError(StandardOutputError):
    """The reader of standard output went away, as `head` does after its lines."""


def escape(text: str) -> str:
    r"""Escape control characters as JSON does: `\u001b`. Line ends and tabs stay."""
    return _CONTROLS.sub(_spelled, text)


def one_line(text: object) -> str:
    """A text as part of one line: control characters, line ends and direction marks are escaped."""
    return _NOT_IN_A_LINE.sub(_spelled, str(text))


def _spelled(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"


def error(message: object) -> None:
    """Print an error on standard error, in one line."""
    print(f"error: {one_line(message)}", file=sys.stderr)


def warning(message: object) -> None:
    """Print a warning on standard error, in one line."""
    print(f"warning: {one_line(message)}", file=sys.stderr)


def note(message: object) -> None:
    """Print a note on the work in progress on standard error, in one line."""
    print(one_line(message), file=sys.stderr)


class ConsoleStream(io.TextIOWrapper):
    """Standard output that escapes control characters and raises this package's errors.

    Raises:
        StandardOutputGoneError: its reader went away.
        StandardOutputError: it cannot be written, because the disk is full for example.
    """

    def write(self, text: str) -> int:
        """Write text with its control characters escaped."""
        self._attempt(super().write, escape(text))
        return len(text)

    def write_controls(self, text: str) -> None:
        """Write text unchanged, to move the cursor."""
        self._attempt(super().write, text)

    def flush(self) -> None:
        """Pass the written text to the system."""
        if not self.closed:
            self._attempt(super().flush)

    def _attempt(self, action: Callable[..., object], *arguments: str) -> None:
        try:
            action(*arguments)
        except BrokenPipeError:
            raise StandardOutputGoneError("the reader of standard output went away") from None
        except OSError as problem:
            reason = problem.strerror or problem
            raise StandardOutputError(f"standard output cannot be written: {reason}") from None


class ErrorStream(ConsoleStream):
    """Standard error; if it cannot be written, the error is ignored and the work goes on."""

    def _attempt(self, action: Callable[..., object], *arguments: str) -> None:
        with contextlib.suppress(OSError):
            action(*arguments)


def controls(stream: TextIO) -> Callable[[str], object]:
    """The function that writes control characters; the caller escapes text from outside."""
    return stream.write_controls if isinstance(stream, ConsoleStream) else stream.write


def guard_streams() -> None:
    """Make standard output and standard error `ConsoleStream`s.

    A closed stream (`>&-`, as for services) becomes the null device, because its output is not
    wanted. Otherwise it would be `None`, Python would print errors to standard output, and the next
    opened file would get its number, to which C libraries print.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The system gives out the lowest free number, and all lower numbers are in use.
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = _guarded(sys.stdout, ConsoleStream)
    sys.stderr = _guarded(sys.stderr, ErrorStream)


def _guarded(stream: TextIO | None, kind: type[ConsoleStream]) -> TextIO:
    if stream is None:
        return Path(os.devnull).open("w", encoding="utf-8")
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    encoding, in_lines = stream.encoding, stream.line_buffering
    # Characters that a console cannot show are escaped.
    return kind(
        stream.detach(), encoding=encoding, errors="backslashreplace", line_buffering=in_lines
    )


def drop_output() -> None:
    """Send further output to the null device, because standard output cannot be written."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
