"""Partial texts during decoding, and iterators over items that a background thread produces."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Condition, Lock
from typing import Protocol, TypeVar

from whisper_npu.runtime.decoding.fallback import WindowCallback
from whisper_npu.runtime.features.windows import Window
from whisper_npu.runtime.text.tokenizer import Tokenizer

_CUT_CHARACTER = "\ufffd"  # decoding an incomplete character gives this
_AHEAD = 8  # items that a thread produces before it waits for its consumer

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)


@dataclass(frozen=True, slots=True)
class Partial:
    """The text of a window after a decoding step.

    Attributes:
        start: Seconds from the start of the recording at which the window begins.
        end: Seconds from the start of the recording at which the window ends.
        text: Text so far, of the likeliest beam or sample. It begins anew when the window is
            decoded again.
        temperature: Temperature of the attempt.
        channel: Channel or track in which it is said, if there are several; see `Segment`.
    """

    start: float
    end: float
    text: str
    temperature: float
    channel: str | None = None


PartialCallback = Callable[[Partial], None]


class Reports:
    """Passes the partial texts of a recording to a callback, one at a time, until it fails.

    Several threads may decode windows of a recording, together with windows of other recordings.

    Attributes:
        error: the error that the callback raised; then this recording has failed, others go on.
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
                except Exception as error:  # the recording's thread raises it
                    self.error = error


def partial_reporter(
    tokenizer: Tokenizer, windows: Sequence[Window], reports: Sequence[Reports | None]
) -> WindowCallback | None:
    """A callback for tokens that reports them as text; None if there are no reports.

    Args:
        tokenizer: the model's tokenizer.
        windows: the windows being decoded, in the order of their numbers.
        reports: for each window, takes its text after every step that added a token.
    """
    eot = tokenizer.special.eot
    if not any(reports):
        return None

    def on_tokens(number: int, temperature: float, tokens: tuple[int, ...]) -> None:
        report, window = reports[number], windows[number]
        if report is None or tokens[-1] == eot:  # an ended window waits for the rest of its batch
            return
        text = tokenizer.decode(tokens).rstrip(_CUT_CHARACTER)
        report.give(Partial(window.offset, window.end_time, text, temperature))

    return on_tokens


class AbandonedError(Exception):
    """No consumer waits for the items of `in_background` any more."""


class Emit(Protocol[T_contra]):
    """Passes an item to the consumer; see `in_background`."""

    def __call__(self, item: T_contra, *, wait: bool = True) -> None:
        """Pass an item on; with `wait`, after the consumer has taken all but a few items.

        Raises:
            AbandonedError: the consumer has stopped.
        """
        ...


def in_background(produce: Callable[[Emit[T]], None]) -> Iterator[T]:
    """Run `produce` in a thread that stays a few items ahead, and yield the items it emits.

    If the consumer stops early, the thread ends at its next item, by an `AbandonedError` that
    passes through `produce`. Closing the iterator waits for that.

    Raises:
        Exception: the error that `produce` raises, after the items before it.
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
