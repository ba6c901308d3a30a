"""Decides which requests may enter, upload and be decoded, and in which order.

All methods run in the thread of the event loop, so nothing here needs a lock.
"""

from asyncio import Future, get_running_loop
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from time import monotonic

from whisper_npu.server.config import Limits
from whisper_npu.server.errors import busy

SHORT_BYTES = 4 << 20  # a longer upload counts as long work: 30 s of any usual format fit
_MOST_OVERTAKINGS = 8  # after so many short requests that came later, a long request is next
_LEAST_RETRY, _MOST_RETRY = 1, 30  # seconds


@dataclass(eq=False)
class _Waiting:
    """A request that waits for a place; `n_overtaken`: later requests that went first."""

    is_short: bool
    turn: Future[None]
    n_overtaken: int = 0


class Admission:
    """Counts the requests of a server.

    Long requests may take only half of the places, so that a short request never waits for an hour
    of audio. Inside the places the model's scheduler decodes short work first.

    Attributes:
        n_inside: requests that have entered.
        n_uploading: requests whose bodies are being read.
        n_active: requests that have a place.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._most_long = max(1, limits.active // 2)
        self._waiting: list[_Waiting] = []
        self._n_long = 0
        self._mean_seconds = float(_LEAST_RETRY)
        self.n_inside = 0
        self.n_uploading = 0
        self.n_active = 0

    @property
    def n_waiting(self) -> int:
        """Requests that are uploaded and wait for a place."""
        return len(self._waiting)

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Let a request in for a block.

        Raises:
            ApiError: the queue is full.
        """
        if self.n_inside >= self._limits.active + self._limits.queue:
            raise busy(f"{self.n_inside} requests are being served; try again", self._retry_after)
        self.n_inside += 1
        try:
            yield
        finally:
            self.n_inside -= 1

    @contextmanager
    def upload(self) -> Iterator[None]:
        """Let a request upload for a block.

        Raises:
            ApiError: too many requests upload.
        """
        if self.n_uploading >= self._limits.uploads:
            raise busy(f"{self.n_uploading} recordings are being uploaded; try again", _LEAST_RETRY)
        self.n_uploading += 1
        try:
            yield
        finally:
            self.n_uploading -= 1

    @asynccontextmanager
    async def place(self, n_bytes: int) -> AsyncIterator[None]:
        """Wait for a place, and hold it for a block.

        Args:
            n_bytes: size of the recording.
        """
        is_short = n_bytes <= SHORT_BYTES
        mine = _Waiting(is_short, get_running_loop().create_future())
        self._waiting.append(mine)
        self._give_out()
        try:
            await mine.turn
        except BaseException:
            if mine in self._waiting:
                self._waiting.remove(mine)
            else:
                self._take_back(is_short)
            raise
        started = monotonic()
        try:
            yield
        finally:
            self._mean_seconds += (monotonic() - started - self._mean_seconds) / 8
            self._take_back(is_short)

    @property
    def _retry_after(self) -> int:
        return round(min(_MOST_RETRY, max(_LEAST_RETRY, self._mean_seconds)))

    def _take_back(self, is_short: bool) -> None:
        self.n_active -= 1
        self._n_long -= not is_short
        self._give_out()

    def _give_out(self) -> None:
        """Give the free places to the requests that are next."""
        while self.n_active < self._limits.active and (first := self._next()) is not None:
            place = self._waiting.index(first)
            for earlier in self._waiting[:place]:
                earlier.n_overtaken += 1
            del self._waiting[place]
            self.n_active += 1
            self._n_long += not first.is_short
            first.turn.set_result(None)

    def _next(self) -> _Waiting | None:
        may = [
            each
            for each in self._waiting
            if (each.is_short or self._n_long < self._most_long) and not each.turn.cancelled()
        ]
        patient = [each for each in may if each.n_overtaken >= _MOST_OVERTAKINGS]
        return next(iter(patient or [each for each in may if each.is_short] or may), None)
