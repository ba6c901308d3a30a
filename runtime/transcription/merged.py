"""Transcribes the channels or tracks of a recording separately, and merges them into one stream.

The group sees one recording. Its next window comes from the channel that is planned least far. So
all channels are decoded together, and segments come in order of time before any channel ends.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from heapq import merge
from threading import Lock
from typing import Protocol

from whisper_npu.runtime.coverage import Coverage
from whisper_npu.runtime.results import Segment, Transcription
from whisper_npu.runtime.timing import StageTimes
from whisper_npu.runtime.transcription.group import Group, Recording
from whisper_npu.runtime.transcription.partial import (
    AbandonedError,
    Emit,
    Partial,
    PartialCallback,
    in_background,
)
from whisper_npu.runtime.transcription.stream import TranscriptionStream
from whisper_npu.runtime.transcription.window_decoding import WindowRequest, WindowResult


class Channel(Recording, Protocol):
    """The transcription of one channel or track.

    Attributes:
        group: The group that decodes its windows.
    """

    group: Group

    @property
    def channel(self) -> str:
        """The name of the channel."""
        ...

    @property
    def _state(self) -> str:
        """See `TranscriptionStream`."""
        ...

    @property
    def duration_estimate(self) -> float | None:
        """See `TranscriptionStream`."""
        ...

    def __iter__(self) -> Iterator[Segment]:
        """See `TranscriptionStream`; in order of time."""
        ...

    def reported_by(self, callback: PartialCallback) -> AbstractContextManager[None]:
        """Pass partial texts to `callback` while a block runs."""
        ...

    @property
    def seconds_read(self) -> float:
        """See `TranscriptionStream`."""
        ...

    @property
    def seconds_done(self) -> float:
        """See `TranscriptionStream`."""
        ...

    @property
    def is_partial(self) -> bool:
        """See `TranscriptionStream`."""
        ...

    def result(self) -> Transcription:
        """See `TranscriptionStream`."""
        ...

    def partial_result(self) -> Transcription:
        """See `TranscriptionStream`."""
        ...

    def stop(self) -> None:
        """See `TranscriptionStream`."""
        ...

    def close(self) -> None:
        """See `TranscriptionStream`."""
        ...


class MergedStream(TranscriptionStream):
    """Several channels of a recording, in one group."""

    def __init__(self, channels: Sequence[Channel]) -> None:
        """Decode nothing yet.

        Args:
            channels: The channels, at least two.
        """
        self._channels = channels
        self._planned: deque[Channel] = deque()  # the channel of each planned window, in order
        self._under_way: Counter[Channel] = Counter()
        self._reached = dict.fromkeys(channels, 0.0)  # seconds up to which each is planned

    @property
    def _state(self) -> str:
        """See `TranscriptionStream`; that of the first channel which is not complete."""
        states = [channel._state for channel in self._channels]
        return next((state for state in states if not state.endswith("complete")), states[0])

    @property
    def group(self) -> Group:
        """The group that decodes the windows of all channels."""
        return self._channels[0].group

    @group.setter
    def group(self, group: Group) -> None:
        for channel in self._channels:
            channel.group = group

    @property
    def duration_estimate(self) -> float | None:
        """See `TranscriptionStream`."""
        known = [each.duration_estimate for each in self._channels]
        return max((seconds for seconds in known if seconds is not None), default=None)

    @property
    def seconds_read(self) -> float:
        """See `TranscriptionStream`; the largest value of the channels."""
        return max(channel.seconds_read for channel in self._channels)

    @property
    def seconds_done(self) -> float:
        """See `TranscriptionStream`; the mean of the channels."""
        return sum(channel.seconds_done for channel in self._channels) / len(self._channels)

    @property
    def is_partial(self) -> bool:
        """See `TranscriptionStream`."""
        return any(channel.is_partial for channel in self._channels)

    @property
    def times(self) -> StageTimes:
        """See `TranscriptionStream`."""
        total = StageTimes()
        for channel in self._channels:
            total.add_share(channel.times, 1)
        return total

    @property
    def has_ended(self) -> bool:
        """See `Recording`."""
        return all(channel.has_ended for channel in self._channels)

    @property
    def n_expected(self) -> int:
        """See `Recording`."""
        return sum(channel.n_expected for channel in self._channels)

    def next_window(self) -> WindowRequest | None:
        """See `Recording`."""
        for channel in sorted(self._channels, key=self._reached.__getitem__):
            if channel.has_ended:
                continue
            request = channel.next_window()
            if request is not None:
                self._reached[channel] = request.window.end_time
                self._planned.append(channel)
                self._under_way[channel] += 1
                return request
            if not self._under_way[channel]:
                channel.end()
        return None

    def prefetch(self, room: int) -> list[WindowRequest]:
        """See `Recording`."""
        requests: list[WindowRequest] = []
        for channel in self._channels:
            requests += channel.prefetch(room - len(requests))
        return requests

    def accept(self, result: WindowResult | None) -> None:
        """See `Recording`."""
        channel = self._planned.popleft()
        self._under_way[channel] -= 1
        channel.accept(result)

    def end(self) -> None:
        """See `Recording`."""
        for channel in self._channels:
            channel.end()

    def stop(self) -> None:
        """See `TranscriptionStream`."""
        for channel in self._channels:
            channel.stop()

    def close(self) -> None:
        """See `TranscriptionStream`."""
        for channel in self._channels:
            channel.close()

    def _iterate(self) -> Iterator[Segment]:
        """See `TranscriptionStream`; in order of time."""
        try:
            for place, segment in enumerate(merge(*self._channels, key=lambda each: each.start)):
                yield replace(segment, id=place)
        except Exception:  # if one channel fails, the recording has failed
            self.close()
            raise

    def updates(self) -> Iterator[Partial | Segment]:
        """See `TranscriptionStream`."""

        def produce(emit: Emit[Partial | Segment]) -> None:
            with ExitStack() as stack:
                report = one_at_a_time(lambda partial: emit(partial, wait=False))
                for channel in self._channels:
                    stack.enter_context(channel.reported_by(report))
                try:
                    for segment in self:
                        emit(segment)
                except AbandonedError:
                    self.close()

        return in_background(produce)

    def result(self) -> Transcription:
        """See `TranscriptionStream`. Its language is that of the channel with most text."""
        for _ in self:
            pass
        return _merged({channel.channel: channel.result() for channel in self._channels})

    def partial_result(self) -> Transcription:
        """See `TranscriptionStream`."""
        return _merged({channel.channel: channel.partial_result() for channel in self._channels})


def _merged(results: Mapping[str, Transcription]) -> Transcription:
    """One result from the results of channels, by name."""
    main = max(results.values(), key=lambda result: len(result.text))
    in_order = merge(*(each.segments for each in results.values()), key=lambda each: each.start)
    segments = [replace(segment, id=place) for place, segment in enumerate(in_order)]
    if len({result.language for result in results.values()}) > 1:
        segments = [
            replace(segment, language=segment.language or results[channel].language)
            for segment in segments
            if (channel := segment.channel) is not None
        ]
    return replace(
        main,
        text="".join(segment.text for segment in segments).strip(),
        segments=tuple(segments),
        duration=max(result.duration for result in results.values()),
        warnings=tuple(_all_warnings(results)),
        coverage=Coverage.of_channels({name: each.coverage for name, each in results.items()}),
    )


def one_at_a_time(callback: Callable[[Partial], None]) -> PartialCallback:
    """A wrapper of `callback` that never calls it from two threads at once."""
    lock = Lock()

    def call(partial: Partial) -> None:
        with lock:
            callback(partial)

    return call


def _all_warnings(results: Mapping[str, Transcription]) -> Iterator[str]:
    """Common warnings of all channels once, the others with the channel's name."""
    common = set.intersection(*(set(result.warnings) for result in results.values()))
    yield from (warning for warning in next(iter(results.values())).warnings if warning in common)
    for name, result in results.items():
        yield from (f"{name}: {each}" for each in result.warnings if each not in common)
