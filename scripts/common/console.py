"""The standard streams: nothing printed controls the terminal, and a failed write has a name.

File names, tags and model folders come from anywhere. A control character in one of them could move
the cursor, retitle the window or erase what was printed before.
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

# Control characters except the tab and the line end. Tentative text and progress bars need some:
# `controls` lets them through.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# A message is one line, and no mark in it turns the direction of what follows (CVE-2021-42574).
_NOT_IN_A_LINE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


class StandardOutputError(WhisperNpuError):
    """Standard output cannot be written: unlike an `OutputError` it ends a whole batch."""

    exit_code = 1


class StandardOutputGoneError(StandardOutputError):
    """The reader of standard output went away, as `head` does once it has its lines."""


def escape(text: str) -> str:
    r"""Spell out control characters, as JSON does: `\u001b`. Line ends and tabs stay."""
    return _CONTROLS.sub(_spelled, text)


def one_line(text: object) -> str:
    """A text from outside as a part of one line: line ends and direction marks are spelled out."""
    return _NOT_IN_A_LINE.sub(_spelled, str(text))


def _spelled(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"


def error(message: object) -> None:
    """Print one line on standard error: what went wrong."""
    print(f"error: {one_line(message)}", file=sys.stderr)


def warning(message: object) -> None:
    """Print one line on standard error: what the user should know."""
    print(f"warning: {one_line(message)}", file=sys.stderr)


def note(message: object) -> None:
    """Print one line on standard error: what is going on."""
    print(one_line(message), file=sys.stderr)


class ConsoleStream(io.TextIOWrapper):
    """Standard output that escapes control characters, and whose failures are our errors.

    Raises:
        StandardOutputGoneError: nobody reads it any more.
        StandardOutputError: it cannot be written, because the disk is full for example.
    """

    def write(self, text: str) -> int:
        """Write text, control characters spelled out."""
        self._attempt(super().write, escape(text))
        return len(text)

    def write_controls(self, text: str) -> None:
        """Write text as it is: what moves the cursor."""
        self._attempt(super().write, text)

    def flush(self) -> None:
        """Hand what was written to the system."""
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
    """Standard error; where it cannot be written, nobody can be told, and the work goes on."""

    def _attempt(self, action: Callable[..., object], *arguments: str) -> None:
        with contextlib.suppress(OSError):
            action(*arguments)


def controls(stream: TextIO) -> Callable[[str], object]:
    """What writes control characters; the caller has escaped all text that is not his own."""
    return stream.write_controls if isinstance(stream, ConsoleStream) else stream.write


def guard_streams() -> None:
    """Make standard output and standard error `ConsoleStream`s.

    A stream that is closed (`>&-`, as services have it) becomes the null device: what is printed is
    not wanted. Else `None` would stand for it, Python would print errors to standard output, and
    the next file to be opened would have its number, into which C libraries print.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is given out, and all below are taken.
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = _guarded(sys.stdout, ConsoleStream)
    sys.stderr = _guarded(sys.stderr, ErrorStream)


def _guarded(stream: TextIO | None, kind: type[ConsoleStream]) -> TextIO:
    if stream is None:
        return Path(os.devnull).open("w", encoding="utf-8")
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    encoding, in_lines = stream.encoding, stream.line_buffering
    # What a console cannot show is spelled out.
    return kind(
        stream.detach(), encoding=encoding, errors="backslashreplace", line_buffering=in_lines
    )


def drop_output() -> None:
    """Send the rest of standard output, which cannot be written, to the null device."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
