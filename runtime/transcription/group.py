"""Decodes the recordings of one call, round by round.

A round is the set of windows that the scheduler decodes at a time, from as many recordings of the
call as needed. It depends only on the recordings and their order, never on timing, so that a run
can be repeated. While streams decode one round, the next round is read and planned.

Several threads may ask for text of the same group. One lock orders them: the thread that holds it
plans rounds and waits for them; the others wait, and then look at the results.
"""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, pairwise
from threading import RLock, get_ident
from typing import Protocol

from whisper_npu.errors import UsageError
from whisper_npu.runtime.timing import StageTimes
from whisper_npu.runtime.transcription.batches import Batch, Priority
from whisper_npu.runtime.transcription.scheduler import Scheduler
from whisper_npu.runtime.transcription.window_decoding import WindowRequest, WindowResult

_WORTH_SPLITTING = 8  # windows from which a round is decoded in several streams
_REMNANT = 4  # a batch may take one extra window per four, so that no small batch follows
# Windows in each stream, if much audio follows: its first words come soon. Those of 20 minutes came
# after 3.4 instead of 9.8 s, the last ones after 24.9 instead of 24.1 s (docs/performance.md).
_FIRST_ROUNDS = (2, 4)


class Recording(Protocol):
    """A recording of a group; it handles its own errors."""

    @property
    def times(self) -> StageTimes:
        """Times of its stages; the group adds to them."""
        ...

    @property
    def has_ended(self) -> bool:
        """Whether no window is planned any more, because of its end or of an error."""
        ...

    @property
    def n_expected(self) -> int:
        """Windows that can be planned at once if all of it is speech; at least 1."""
        ...

    def next_window(self) -> WindowRequest | None:
        """See `Strategy`."""
        ...

    def prefetch(self, room: int) -> list[WindowRequest]:
        """See `Strategy`."""
        ...

    def accept(self, result: WindowResult | None) -> None:
        """Take the result of the next planned window; None: it was cancelled."""
        ...

    def end(self) -> None:
        """Complete the recording: every window is decoded."""
        ...


@dataclass
class _Round:
    """A round that was submitted.

    Attributes:
        recordings: the recording of each window.
        batches: the windows, divided into batches.
        places: for each batch, the places of its windows in the round.
        n_streams: number of streams; with 1, the round has been decoded already.
    """

    recordings: list[Recording]
    batches: list[Batch]
    places: list[list[int]]
    n_streams: int


class Group:
    """The recordings of one call, decoded in order. Safe for many threads."""

    def __init__(
        self,
        scheduler: Scheduler,
        batch_size: int,
        recordings: Iterator[Recording],
        priority: Priority = Priority.BULK,
    ) -> None:
        """Read nothing yet.

        Args:
            scheduler: decodes the windows.
            batch_size: windows decoded together in one stream; up to a quarter more, so that no
                small batch follows.
            recordings: opened when there is room for their windows; at first as many as tell
                whether streams are needed.
            priority: priority over the windows of other calls.
        """
        self.scheduler = scheduler
        self._client = scheduler.client(batch_size, priority)
        self._batch_size = self._client.batch_size
        self._upcoming = recordings
        self._open: list[Recording] = []
        self._busy: Counter[Recording] = Counter()  # planned windows of each, not yet accepted
        self._held: list[tuple[Recording, WindowRequest]] = []  # planned, but for the next round
        self._first_rooms: deque[int] | None = None  # of small rounds to come; None: not known yet
        self._under_way: deque[_Round] = deque()
        self._failure: BaseException | None = None
        self._lock = RLock()
        self._advancing: int | None = None  # the thread that plans and waits

    @property
    def is_inside(self) -> bool:
        """Whether the calling thread advances the group, or decodes its windows."""
        return self._advancing == get_ident() or self.scheduler.decodes_here_for(self._client)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the group's lock during a block: other threads neither advance nor change it.

        Raises:
            UsageError: the calling thread decodes windows of the group, or windows that the holder
                of the lock may wait for: waiting would be a deadlock.
            DeviceError: the model was loaded before this process was forked.
        """
        self.scheduler.check()
        has_to_wait = self.is_inside or not self._lock.acquire(
            blocking=not self.scheduler.is_decoding_here
        )
        if has_to_wait:
            raise UsageError(
                "a callback asked for text that is decoded only after the callback returns; "
                "ask for it outside of the callback"
            )
        try:
            yield
        finally:
            self._lock.release()

    def advance(self) -> bool:
        """Decode one round, and begin the next; False if nothing is left to decode.

        Raises:
            DeviceError: the device failed.
            UsageError: see `turn`.
        """
        with self.turn():
            self._advancing = get_ident()
            try:
                return self._advance()
            finally:
                self._advancing = None

    def _advance(self) -> bool:
        if self._failure is not None:
            raise self._failure  # once more: the windows of that round are lost
        try:
            if not self._under_way and not self._begin():
                self.close()
                return False
            if self._under_way[0].n_streams > 1:
                self._begin()  # read on while the streams are busy
            done = self._under_way.popleft()
            self._finish(done)
            self.scheduler.after_batch(len(done.recordings))
        except BaseException as error:
            self._failure = error
            for lost in self._under_way:
                self.scheduler.cancel(lost.batches)
            raise
        return True

    def _begin(self) -> bool:
        """Plan and submit a round; False if nothing is left to plan."""
        recordings, requests, waiting = self._plan()
        if not requests:
            return False
        scheduler, available = self.scheduler, self._n_streams
        # Few windows are faster in one stream. But once several streams exist, decoding outside
        # them would take memory for both.
        enough = available if scheduler.uses_streams(self._client) else _WORTH_SPLITTING
        n_streams = available if len(requests) >= enough else 1
        batch_size = max(self._batch_size, -(-len(requests) // available))
        places = _parts([len(request.prompt) for request in requests], n_streams, batch_size)
        batches = [
            Batch(self._client, [requests[place] for place in each], parallel=n_streams > 1)
            for each in places
        ]
        scheduler.submit(batches)
        if n_streams > 1:
            scheduler.encode_ahead(self._client, waiting)
        else:
            scheduler.wait(batches)
        self._under_way.append(_Round(recordings, batches, places, n_streams))
        return True

    @property
    def _n_streams(self) -> int:
        """Number of streams; 1 inside a callback, where another decoding waits for this one."""
        return 1 if self.scheduler.is_decoding_here else self.scheduler.backend.n_streams

    def _plan(self) -> tuple[list[Recording], list[WindowRequest], list[WindowRequest]]:
        """The recordings and windows of the next round, and the windows that wait for them."""
        n_streams, enough = self._n_streams, _WORTH_SPLITTING
        at_most = room = self._batch_size * n_streams
        if n_streams > 1:  # one stream reads nothing ahead
            at_most += self._batch_size // _REMNANT * n_streams
        if self._first_rooms is None:
            expected = self._n_expected(at_most if n_streams > 1 else 0)
            if n_streams > 1 and min(room, expected) >= _WORTH_SPLITTING:
                enough = 2  # a single window may have no speech after it
            small = [n for n in _FIRST_ROUNDS if n < self._batch_size and expected > at_most]
            self._first_rooms = deque(n * n_streams for n in small)
        if self._first_rooms:
            at_most = room = self._first_rooms.popleft()
        planned, self._held = self._held, []
        number = 0
        while len(planned) < at_most + (at_most > room) and self._is_open(number):
            recording = self._open[number]
            request = None if recording.has_ended else recording.next_window()
            if request is not None:
                planned.append((recording, request))
                self._busy[recording] += 1
                if len(planned) >= enough:
                    self._encode_ahead([request for _, request in planned])
            elif self._busy[recording]:
                number += 1
            else:
                recording.end()
                self._open.pop(number)
                del self._busy[recording]
        if len(planned) > at_most:
            planned, self._held = planned[:room], planned[room:]
        recordings, requests = [each for each, _ in planned], [request for _, request in planned]
        waiting: list[WindowRequest] = []
        for recording in dict.fromkeys(recordings):
            waiting += recording.prefetch(max(0, room - len(requests) - len(waiting)))
        if len(requests) + len(waiting) >= _WORTH_SPLITTING:
            self._encode_ahead(requests)
        return recordings, requests, waiting

    def _is_open(self, number: int) -> bool:
        """Whether the open recordings include this number; opens the next recording if needed."""
        if number == len(self._open):
            self._open.extend(islice(self._upcoming, 1))
        return number < len(self._open)

    def _n_expected(self, at_most: int) -> int:
        """Windows expected from the recordings' lengths; the count stops above `at_most`.

        It is too high for recordings with little speech; streams are then set up in vain.
        """
        number, expected = 0, 0
        while expected <= at_most and self._is_open(number):
            expected += self._open[number].n_expected
            number += 1
        return expected

    def _encode_ahead(self, requests: Sequence[WindowRequest]) -> None:
        self.scheduler.encode_ahead(self._client, requests)

    def _finish(self, under_way: _Round) -> None:
        self.scheduler.wait(under_way.batches)
        result: dict[int, WindowResult | None] = {}
        n_at_once = min(under_way.n_streams, len(under_way.batches))
        for batch, places in zip(under_way.batches, under_way.places, strict=True):
            result.update(zip(places, batch.results(), strict=True))
            for request in batch.requests:
                times = request.caller.times
                times.add_share(batch.times, 1 / (batch.n_together * n_at_once))
                times.add_share(request.encoding, 1 / self.scheduler.backend.n_streams)
        for place, recording in enumerate(under_way.recordings):
            self._busy[recording] -= 1
            recording.accept(result[place])

    def close(self) -> None:
        """Release the streams; they finish submitted batches, and serve other clients."""
        self.scheduler.close_streams(self._client)

    def __del__(self) -> None:
        """Close a group that was dropped."""
        if hasattr(self, "_client"):  # else making it failed
            self.close()


def _parts(prompt_lengths: Sequence[int], n_streams: int, batch_size: int) -> list[list[int]]:
    """Divide windows, by their places, into batches of equally long prompts, even over streams.

    Args:
        prompt_lengths: length of each window's prompt.
        n_streams: number of streams.
        batch_size: most windows in a batch.
    """
    parts = []
    for length in sorted(set(prompt_lengths), reverse=True):
        places = [place for place, n in enumerate(prompt_lengths) if n == length]
        share = round(n_streams * len(places) / len(prompt_lengths))
        n_batches = max(1, share, -(-len(places) // batch_size))
        edges = [len(places) * i // n_batches for i in range(n_batches + 1)]
        parts += [places[a:b] for a, b in pairwise(edges) if b > a]
    return parts
