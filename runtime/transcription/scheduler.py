"""Goes through recordings in rounds: windows decoded together, of as many recordings as it takes.

Which windows share a batch depends on the recordings and their order alone, never on what is ready
first, so that a run can be repeated. While one round is decoded, the next is read and planned.

Several threads may ask for text of the same rounds. One lock orders them: the thread that has it
decodes a round for all recordings, and the others wait and then look at what has come.
"""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice, pairwise
from threading import RLock, get_ident
from typing import Protocol

from whisper_npu.errors import UsageError
from whisper_npu.runtime.engines.device_calls import DeviceCalls
from whisper_npu.runtime.engines.memory import give_back_after
from whisper_npu.runtime.engines.protocol import Backend
from whisper_npu.runtime.results import Segment
from whisper_npu.runtime.timing import StageTimes
from whisper_npu.runtime.transcription.partial import AbandonedError
from whisper_npu.runtime.transcription.window_decoding import (
    WindowRequest,
    WindowResult,
    decode_requests,
    encode_ahead,
)

_WORTH_SPLITTING = 8  # windows from which a round is decoded in several streams
_REMNANT = 4  # a batch of so many windows takes one more in, where nothing is left behind them


class Strategy(Protocol):
    """A way through a recording."""

    def next_window(self) -> WindowRequest | None:
        """The next window to be decoded; it waits for no other.

        None means that none can be planned now: if none is being heard either, the recording is at
        its end.
        """
        ...

    def prefetch(self, room: int) -> list[WindowRequest]:
        """Windows that wait for others, at most `room`: they are encoded meanwhile."""
        ...

    def accept(self, result: WindowResult) -> list[Segment]:
        """The segments that are complete, now that another of the windows planned was heard."""
        ...


class Recording(Protocol):
    """A recording on its way through the rounds; it sees to its own errors."""

    @property
    def times(self) -> StageTimes:
        """Where the times of its stages are added."""
        ...

    @property
    def has_ended(self) -> bool:
        """Whether nothing more is to be planned, because of its end or of an error."""
        ...

    @property
    def n_expected(self) -> int:
        """Windows that it has at once if there is speech all through; at least 1."""
        ...

    def next_window(self) -> WindowRequest | None:
        """See `Reading.plan`."""
        ...

    def prefetch(self, room: int) -> list[WindowRequest]:
        """See `Reading.ahead`."""
        ...

    def accept(self, result: WindowResult | None) -> None:
        """Take up the next of the windows planned; None: nobody wanted it any more."""
        ...

    def end(self) -> None:
        """Nothing is left to be planned or heard."""
        ...


@dataclass
class _Batch:
    """Tasks decoded together; `heard` gives the results once it is done."""

    places: list[int]  # of its tasks in the round
    requests: list[WindowRequest]
    times: StageTimes
    result: "Future[list[WindowResult]]"


@dataclass
class _Round:
    """What is being decoded.

    Attributes:
        recordings: of each task the recording it belongs to.
        n_streams: in how many streams; in one, it has been decoded already.
    """

    recordings: list[Recording]
    batches: list[_Batch]
    n_streams: int


class Scheduler:
    """Decodes recordings one after the other, several windows at a time. Safe for many threads."""

    def __init__(self, backend: Backend, batch_size: int, recordings: Iterator[Recording]) -> None:
        """Nothing is read yet.

        Args:
            backend: the model.
            batch_size: windows decoded side by side in one stream; up to a quarter more where only
                those few would be left.
            recordings: opened when there is room for their windows; at first as many as it takes to
                know whether streams will be needed.
        """
        self._backend = backend
        self._batch_size = batch_size
        self._upcoming = recordings
        self._open: list[Recording] = []
        self._busy: Counter[Recording] = Counter()  # windows of each that are under way
        self._held: list[tuple[Recording, WindowRequest]] = []  # planned, but for the next round
        self._is_first_round = True
        self._under_way: deque[_Round] = deque()
        self._pool: ThreadPoolExecutor | None = None
        self._failure: BaseException | None = None
        self._calls = DeviceCalls("the model")
        self._lock = RLock()
        self._advancing: int | None = None  # the thread that decodes a round
        self._decoders: set[int] = set()  # threads that decode for it

    @property
    def is_inside(self) -> bool:
        """Whether the calling thread decodes a round: it has been called back from there."""
        thread = get_ident()
        return thread == self._advancing or thread in self._decoders

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Keep other threads from decoding, and recordings as they are, while a block runs.

        Raises:
            UsageError: the calling thread decodes a round, which cannot wait for itself.
            DeviceError: it began before this process was forked.
        """
        self._calls.check()
        if self.is_inside:
            raise UsageError(
                "a callback asked for text that is decoded only after the callback returns; "
                "ask for it outside of the callback"
            )
        with self._lock:
            yield

    def advance(self) -> bool:
        """Decode one round, and begin the next; False if there is nothing left to do.

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
            raise self._failure  # again: the windows of that round are lost
        try:
            if not self._under_way and not self._begin():
                self._let_streams_go()
                return False
            if self._under_way[0].n_streams > 1:
                self._begin()  # read on while the streams are busy
            done = self._under_way.popleft()
            self._finish(done)
            give_back_after(len(done.recordings))
        except BaseException as error:
            self._failure = error
            raise
        return True

    def _begin(self) -> bool:
        """Plan a round and set the streams to work on it; False if there is nothing to plan."""
        recordings, requests, waiting = self._plan()
        if not requests:
            return False
        # Few windows are faster in one stream, but once there are several, it is memory for both.
        enough = self._backend.n_streams if self._pool is not None else _WORTH_SPLITTING
        n_streams = self._backend.n_streams if len(requests) >= enough else 1
        batch_size = max(self._batch_size, -(-len(requests) // self._backend.n_streams))
        batches = [
            self._start(places, [requests[place] for place in places], n_streams)
            for places in _parts(
                [len(request.prompt) for request in requests], n_streams, batch_size
            )
        ]
        if n_streams > 1:
            self._encode_ahead(waiting)
        self._under_way.append(_Round(recordings, batches, n_streams))
        return True

    def _plan(self) -> tuple[list[Recording], list[WindowRequest], list[WindowRequest]]:
        """What the next round decodes, much of it being encoded already, and what waits for it."""
        n_streams, enough = self._backend.n_streams, _WORTH_SPLITTING
        at_most = room = self._batch_size * n_streams
        if n_streams > 1:  # else nothing is read while it is busy
            at_most += self._batch_size // _REMNANT * n_streams
        if self._is_first_round and n_streams > 1:
            expected = self._n_expected(at_most)
            if min(room, expected) >= _WORTH_SPLITTING:
                enough = 2  # of one alone it is not sure that there is speech behind it
            if expected > at_most:
                at_most = room  # the first words come sooner
        self._is_first_round = False
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
        """Whether there is a recording of that number among the open ones; the next is opened."""
        if number == len(self._open):
            self._open.extend(islice(self._upcoming, 1))
        return number < len(self._open)

    def _n_expected(self, at_most: int) -> int:
        """Windows that the recordings' lengths promise; more than `at_most` are not counted.

        They promise too much where there is little speech; streams are then made ready for nothing.
        """
        number, expected = 0, 0
        while expected <= at_most and self._is_open(number):
            expected += self._open[number].n_expected
            number += 1
        return expected

    def _encode_ahead(self, requests: Sequence[WindowRequest]) -> None:
        if self._backend.n_streams > 1:
            for request in requests:
                encode_ahead(request, self._backend, self._streams())

    def _start(self, places: list[int], requests: list[WindowRequest], n_streams: int) -> _Batch:
        batch = _Batch(places, requests, StageTimes(), Future())
        if n_streams == 1:
            try:
                batch.result.set_result(decode_requests(requests, self._backend, batch.times))
            except AbandonedError as error:
                batch.result.set_exception(error)
            return batch
        # The streams are made ready in one of them, the first time: meanwhile more is read here.
        batch.result = self._streams().submit(self._hear, batch)
        return batch

    def _hear(self, batch: _Batch) -> list[WindowResult]:
        """Decode a batch in a stream's thread."""
        self._decoders.add(get_ident())
        try:
            return decode_requests(batch.requests, self._backend.in_streams(), batch.times)
        finally:
            self._decoders.discard(get_ident())

    def _streams(self) -> ThreadPoolExecutor:
        if self._pool is None:
            n_streams = self._backend.n_streams
            self._pool = ThreadPoolExecutor(n_streams, thread_name_prefix="whisper-npu")
        return self._pool

    def _finish(self, under_way: _Round) -> None:
        result: dict[int, WindowResult] = {}
        n_at_once = min(under_way.n_streams, len(under_way.batches))
        for batch in under_way.batches:
            with suppress(AbandonedError):
                result.update(zip(batch.places, batch.result.result(), strict=True))
            for request in batch.requests:
                request.caller.times.add_share(batch.times, 1 / (len(batch.requests) * n_at_once))
                request.caller.times.add_share(request.encoding, 1 / self._backend.n_streams)
        for place, recording in enumerate(under_way.recordings):
            self._busy[recording] -= 1
            recording.accept(result.get(place))

    def close(self) -> None:
        """Let the streams go; they finish what was begun, for whoever goes on."""
        with self._lock:
            self._let_streams_go()

    def _let_streams_go(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False)
            self._pool = None


def _parts(prompt_lengths: Sequence[int], n_streams: int, batch_size: int) -> list[list[int]]:
    """Windows, by their places, that share a batch: prompts equally long, streams evenly used.

    Args:
        prompt_lengths: of each window's prompt.
        n_streams: streams the windows are divided among.
        batch_size: windows in a batch at most.
    """
    parts = []
    for length in sorted(set(prompt_lengths), reverse=True):
        places = [place for place, n in enumerate(prompt_lengths) if n == length]
        share = round(n_streams * len(places) / len(prompt_lengths))
        n_batches = max(1, share, -(-len(places) // batch_size))
        edges = [len(places) * i // n_batches for i in range(n_batches + 1)]
        parts += [places[a:b] for a, b in pairwise(edges) if b > a]
    return parts
