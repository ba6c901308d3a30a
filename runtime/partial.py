"""Text while it is being decoded, and iterators over what a thread of its own produces."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Event, Semaphore
from typing import TypeVar

from whisper_npu.runtime.fallback import WindowCallback
from whisper_npu.runtime.speech_windows import Window
from whisper_npu.runtime.tokenizer import Tokenizer

_CUT_CHARACTER = "\ufffd"  # what the first bytes of a character decode to
_AHEAD = 8  # items a thread produces before it waits for its consumer

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Partial:
    """The text of a window, one decoding step further.

    Attributes:
        start: Seconds from the start of the recording at which the window begins.
        end: Seconds from the start of the recording at which it ends.
        text: Its text so far: that of the likeliest beam or sample where there are several. It
            begins anew when the window is decoded again.
        temperature: Temperature it is being decoded at.
    """

    start: float
    end: float
    text: str
    temperature: float


PartialCallback = Callable[[Partial], None]


def partial_reporter(
    tokenizer: Tokenizer, windows: Sequence[Window], report: PartialCallback
) -> WindowCallback:
    """A callback for tokens that reports them as text.

    Args:
        tokenizer: of the model.
        windows: being decoded, in the order of their numbers.
        report: takes the text after every step that added a token.
    """
    eot = tokenizer.special.eot

    def on_tokens(number: int, temperature: float, tokens: tuple[int, ...]) -> None:
        if tokens[-1] == eot:  # has ended, and waits for the rest of its batch
            return
        window = windows[number]
        text = tokenizer.decode(tokens).rstrip(_CUT_CHARACTER)
        report(Partial(window.offset, window.end_time, text, temperature))

    return on_tokens


class AbandonedError(Exception):
    """Nobody waits for a thread's items any more."""


def in_background(produce: Callable[[Callable[[T], None]], None]) -> Iterator[T]:
    """What `produce` hands to its argument, run in a thread that stays a few items ahead.

    Where the consumer stops early, the thread ends at its next item, by an `AbandonedError` that
    passes through `produce`; closing the iterator waits for that.

    Raises:
        Exception: whatever `produce` raises, after the items before it.
    """
    items: SimpleQueue[T | Future[None]] = SimpleQueue()
    room = Semaphore(_AHEAD)
    abandoned = Event()

    def emit(item: T) -> None:
        room.acquire()
        if abandoned.is_set():
            raise AbandonedError
        items.put(item)

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="whisper-npu") as thread:
        future = thread.submit(produce, emit)
        future.add_done_callback(items.put)
        try:
            while not isinstance(item := items.get(), Future):
                room.release()
                yield item
        finally:
            abandoned.set()
            room.release()
        future.result()
