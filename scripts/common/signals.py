"""Handles signals that end a program, so that partial files are removed first."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

EXIT_INTERRUPTED = 128 + signal.SIGINT

# Sent by a service manager, and by a terminal that is closed. Windows has no SIGHUP.
_ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))

# Seconds that native code such as a compiler may go on, in which Python handles no signal.
_GRACE = 10.0


class Terminated(BaseException):
    """The program was told to end; like KeyboardInterrupt it is no `Exception`."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Raise `Terminated` at the first SIGTERM or SIGHUP; later ones are ignored.

    Signals that the caller handles or ignores (`nohup`) stay as they are.
    """

    def end(number: int, _frame: FrameType | None) -> None:
        handled.set()
        for each in ours:
            signal.signal(each, signal.SIG_IGN)
        raise Terminated(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handled = threading.Event()
    ours = [each for each in _ENDING if signal.getsignal(each) == signal.SIG_DFL]
    for each in ours:
        signal.signal(each, end)
    try:
        with _ended_all_the_same(ours, handled):
            yield
    finally:
        for each in ours:
            signal.signal(each, signal.SIG_DFL)


@contextmanager
def _ended_all_the_same(numbers: Sequence[int], handled: threading.Event) -> Iterator[None]:
    """End the process if Python does not handle one of these signals in time."""
    if sys.platform == "win32":  # its pipes have no writes without waiting
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def watch() -> None:
        while number := os.read(reader, 1):
            if number[0] in numbers and not handled.wait(_GRACE):
                os._exit(128 + number[0])
        os.close(reader)

    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=watch, name="signals", daemon=True).start()
    try:
        yield
    finally:
        handled.set()
        signal.set_wakeup_fd(before)
        os.close(writer)


@contextmanager
def on_interrupt(action: Callable[[], None]) -> Iterator[None]:
    """Make the first Ctrl-C call `action`; the second has its usual effect."""

    def interrupted(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)
        action()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
