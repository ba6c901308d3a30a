"""Decodes several recordings together, and returns their streams in the given order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from threading import Event
from typing import Protocol, TypeVar

from whisper_npu.errors import AudioError
from whisper_npu.runtime.transcription.group import Group, Recording
from whisper_npu.runtime.transcription.scheduler import Scheduler


class Stream(Recording, Protocol):
    """A recording that can be closed."""

    def close(self) -> None:
        """Cancel the windows that are not decoded."""
        ...


SourceT = TypeVar("SourceT")
StreamT = TypeVar("StreamT", bound=Stream)


class StreamsInOrder(Iterator[StreamT | AudioError]):
    """Each recording's stream, or the error that opening it raised. Safe for several threads."""

    def __init__(
        self,
        scheduler: Scheduler,
        batch_size: int,
        sources: Iterable[SourceT],
        open_stream: Callable[[SourceT, Group], StreamT],
    ) -> None:
        """Open nothing yet.

        Args:
            scheduler: the model's scheduler.
            batch_size: see `Group`.
            sources: the recordings, opened when there is room for their windows.
            open_stream: opens a recording that is decoded in the given group; an `AudioError`
                is returned in place of its stream.
        """
        self._opened: deque[StreamT | AudioError] = deque()
        self._closed = Event()
        group: Group = Group(
            scheduler,
            batch_size,
            _open_all(
                sources, lambda source: open_stream(source, group), self._opened, self._closed
            ),
        )
        self._group = group

    def __repr__(self) -> str:
        """How many streams wait to be taken."""
        return f"<StreamsInOrder: {len(self._opened)} streams opened ahead>"

    def __next__(self) -> StreamT | AudioError:
        """The next recording; decodes others until there is room for it.

        Raises:
            DeviceError: the device failed.
            StopIteration: there is none.
        """
        with self._group.turn():
            while not self._opened and self._group.advance():
                pass
            if not self._opened:
                raise StopIteration
            return self._opened.popleft()

    def close(self) -> None:
        """Close the recordings whose streams were not returned; the other streams go on."""
        self._closed.set()
        while self._opened:
            stream = self._opened.popleft()
            if not isinstance(stream, AudioError):
                stream.close()
        if not self._group.is_inside:
            self._group.close()

    def __del__(self) -> None:
        """Close the remaining recordings, if the loop was left early."""
        if hasattr(self, "_group"):  # else making it failed
            self.close()


def _open_all(
    sources: Iterable[SourceT],
    open_stream: Callable[[SourceT], StreamT],
    opened: deque[StreamT | AudioError],
    closed: Event,
) -> Iterator[StreamT]:
    """Open recordings one by one; it holds no reference to their `StreamsInOrder`."""
    for source in sources:
        if closed.is_set():
            return
        try:
            stream = open_stream(source)
        except AudioError as error:
            opened.append(error)
            continue
        opened.append(stream)
        yield stream
