"""Batches of windows that callers submit, which batch is next, and which are decoded together."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from whisper_npu.runtime.engines.protocol import Backend
from whisper_npu.runtime.timing import StageTimes
from whisper_npu.runtime.transcription.window_decoding import (
    WindowRequest,
    WindowResult,
    can_share,
)

_MOST_OVERTAKINGS = 8  # after so many short batches that came later, a bulk batch is next


class Priority(IntEnum):
    """The priority of work: the lower value is decoded first."""

    SHORT = 0
    """Live speech, and recordings of at most one window."""
    BULK = 1
    """Everything else."""


@dataclass(eq=False)
class Client:
    """A caller of the scheduler; made by `Scheduler.client`.

    Attributes:
        batch_size: windows decoded together in one stream, windows of other clients included.
        priority: priority of its work.
        served: number of the last decoding that included it; at first, of the last before it.
    """

    batch_size: int
    priority: Priority
    served: int


@dataclass(eq=False)
class Batch:
    """Windows of one client that are decoded together, maybe with windows of other clients.

    Attributes:
        client: the client that submits the windows.
        requests: the windows.
        parallel: whether the pool decodes them, in one of several streams.
        times: stage times of all windows that were decoded together.
        n_together: number of windows that were decoded together.
        number: the place of the batch among all submitted batches.
        n_overtaken: batches of higher priority that came later and were decoded earlier.
    """

    client: Client
    requests: Sequence[WindowRequest]
    parallel: bool = False
    times: StageTimes = field(default_factory=StageTimes)
    n_together: int = 1
    number: int = 0
    n_overtaken: int = 0
    _results: list[WindowResult | None] | None = None
    _error: BaseException | None = None

    @property
    def is_done(self) -> bool:
        """Whether the batch was decoded, or failed."""
        return self._results is not None or self._error is not None

    @property
    def is_wanted(self) -> bool:
        """Whether a caller waits for one of its windows."""
        return any(request.caller.is_wanted for request in self.requests)

    def succeed(self, results: Sequence[WindowResult | None]) -> None:
        """Set the results, unless results or an error are set."""
        if not self.is_done:
            self._results = list(results)

    def fail(self, error: BaseException) -> None:
        """Set the error, unless results or an error are set."""
        if not self.is_done:
            self._error = error

    def results(self) -> list[WindowResult | None]:
        """A result per request; None for cancelled windows.

        Raises:
            DeviceError: the device failed.
        """
        if self._error is not None:
            raise self._error
        return [None] * len(self.requests) if self._results is None else self._results


def rank(batch: Batch) -> tuple[int, int, int]:
    """The sorting key of batches: the lowest is decoded first."""
    urgency = -1 if batch.n_overtaken >= _MOST_OVERTAKINGS else batch.client.priority
    return (urgency, batch.client.served, batch.number)


def can_join(batch: Batch, together: Sequence[Batch], backend: Backend) -> bool:
    """Whether a batch is decoded together with others: no text changes, and no batch waits."""
    first = together[0]
    return (
        all(batch.client is not other.client for other in together)  # it divides its own evenly
        and batch.client.priority == first.client.priority
        and sum(len(other.requests) for other in (*together, batch))
        <= min(other.client.batch_size for other in (*together, batch))
        and can_share(first.requests, batch.requests, backend.window_frames[-1])
    )
