"""Text while it is being decoded, and iterators over what a thread of its own produces."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Condition, Lock
from typing import Protocol, TypeVar

from whisper_npu.runtime.decoding.fallback import WindowCallback
from whisper_npu.runtime.features.windows import Window
from whisper_npu.runtime.text.tokenizer import Tokenizer

_CUT_CHARACTER = "\ufffd"  # what the first bytes of a character decode to
_AHEAD = 8  # items a thread produces before it waits for its consumer

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)


@dataclass(frozen=True, slots=True)
class Partial:
    """The text of a window, one decoding step further.

    Attributes:
        start: Seconds from the start of the recording at which the window begins.
        end: Seconds from the start of the recording at which it ends.
        text: Its text so far: that of the likeliest beam or sample where there are several. It
            begins anew when the window is decoded again.
        temperature: Temperature it is being decoded at.
        channel: Where it is said, of several channels or tracks; see `Segment`.
    """

    start: float
    end: float
    text: str
    temperature: float
    channel: str | None = None


PartialCallback = Callable[[Partial], None]


class Reports:
    """Hands the partial texts of a recording to a callback, one at a time, until it fails.

    Windows of a recording are decoded in several threads, beside windows of others.

    Attributes:
        error: what the callback raised; the recording has failed then, the others go on.
    """

    def __init__(self, callback: PartialCallback) -> None:
        self._callback = callback
        self._lock = Lock()
        self.error: Exception | None = None

    def give(self, partial: Partial) -> None:
        """Report a text, unless an earlier report has failed."""
        with self._lock:
            if self.error is None:
                try:
                    self._callback(partial)
                except Exception as error:  # whatever it is, the recording's thread raises it
                    self.error = error


def partial_reporter(
    tokenizer: Tokenizer, windows: Sequence[Window], reports: Sequence[Reports | None]
) -> WindowCallback | None:
    """A callback for tokens that reports them as text; None where nobody wants it.

    Args:
        tokenizer: of the model.
        windows: being decoded, in the order of their numbers.
        reports: take the text of each after every step that added a token.
    """
    eot = tokenizer.special.eot
    if not any(reports):
        return None

    def on_tokens(number: int, temperature: float, tokens: tuple[int, ...]) -> None:
        report, window = reports[number], windows[number]
        if report is None or tokens[-1] == eot:  # has ended, and waits for the rest of its batch
            return
        text = tokenizer.decode(tokens).rstrip(_CUT_CHARACTER)
        report.give(Partial(window.offset, window.end_time, text, temperature))

    return on_tokens


class AbandonedError(Exception):
    """Nobody waits for what is being decoded any more."""


class Emit(Protocol[T_contra]):
    """Hands an item to whoever iterates over what is produced; see `in_background`."""

    def __call__(self, item: T_contra, *, wait: bool = True) -> None:
        """Hand it on; `wait`: until only a few are there that were not taken.

        Raises:
            AbandonedError: nobody will take it.
        """
        ...


def in_background(produce: Callable[[Emit[T]], None]) -> Iterator[T]:
    """What `produce` hands to its argument, run in a thread that stays a few items ahead.

    Where the consumer stops early, the thread ends at its next item, by an `AbandonedError` that
    passes through `produce`; closing the iterator waits for that.

    Raises:
        Exception: whatever `produce` raises, after the items before it.
    """
    items: deque[T] = deque()
    changed = Condition()
    is_abandoned = is_done = False

    def emit(item: T, *, wait: bool = True) -> None:
        with changed:
            changed.wait_for(lambda: is_abandoned or not wait or len(items) < _AHEAD)
            if is_abandoned:
                raise AbandonedError
            items.append(item)
            changed.notify_all()

    def done(_: Future[None]) -> None:
        nonlocal is_done
        with changed:
            is_done = True
            changed.notify_all()

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="whisper-npu") as thread:
        future = thread.submit(produce, emit)
        future.add_done_callback(done)
        try:
            while True:
                with changed:
                    changed.wait_for(lambda: items or is_done)
                    if not items:
                        break
                    item = items.popleft()
                    changed.notify_all()
                yield item
        finally:
            with changed:
                is_abandoned = True
                changed.notify_all()
        future.result()
