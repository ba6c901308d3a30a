"""One scheduler per loaded model: decodes the windows of all callers, several at a time.

A caller submits batches of windows and waits for them. The waiting callers decode: one of them at a
time, for all. Large jobs are decoded in parallel streams by a pool of threads, which exists only
while a caller uses it. Only submitted windows are decoded.

The next batch is chosen by priority (short work before bulk), then by client (served longest ago
first), then by age. Batches of different clients are decoded together where that changes no text:
the result of a row never depends on the other rows. Bulk work that is under way makes way for short
work, between two steps: the streams pause, and a caller that decodes for all decodes it meanwhile.
"""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Condition, get_ident

from whisper_npu.errors import DeviceError, UsageError
from whisper_npu.runtime.engines.device_calls import DeviceCalls
from whisper_npu.runtime.engines.memory import available_bytes
from whisper_npu.runtime.engines.protocol import Backend
from whisper_npu.runtime.timing import StageTimes
from whisper_npu.runtime.transcription.allowance import Allowance
from whisper_npu.runtime.transcription.batches import Batch, Client, Priority, can_join, rank
from whisper_npu.runtime.transcription.window_decoding import (
    MakeWay,
    WindowRequest,
    WindowResult,
    decode_requests,
    encode_ahead,
)

logger = logging.getLogger("whisper_npu")

GIVEN_UP = "this transcription was closed before its end; begin it anew"

_SHARE_OF_MEMORY = 0.5  # of the free memory, for the states of windows that are decoded
_MAKING_WAY = "more urgent work"  # a stage


@dataclass(frozen=True)
class Decoded:
    """The work of a scheduler so far; `windows / batches` tells how full its batches are.

    Attributes:
        batches: decodings of one or more windows together.
        windows: windows in them.
    """

    batches: int = 0
    windows: int = 0


class Scheduler:
    """Decodes windows for any number of callers, in any number of threads."""

    def __init__(self, backend: Backend, after_batch: Callable[[int], None] | None = None) -> None:
        """Decode nothing yet.

        Args:
            backend: the model.
            after_batch: called after each decoding for a caller, with the number of its windows.

        Attributes:
            decoded: the work so far.
        """
        self.backend = backend
        self.after_batch: Callable[[int], None] = after_batch or (lambda _: None)
        self.decoded = Decoded()
        self._calls = DeviceCalls("the model")
        self._changed = Condition()  # guards the attributes below
        self._waiting: list[Batch] = []
        self._n_submitted = 0
        self._n_decoded = 0
        self._leader: int | None = None  # thread of the caller that decodes
        self._led: Sequence[Batch] = ()  # batches that the leader decodes
        self._decoding: dict[int, list[Sequence[Batch]]] = {}  # by thread, the innermost last
        self._n_urgent = 0  # decodings of short work under way
        self._pool: ThreadPoolExecutor | None = None
        self._pool_users: set[Client] = set()
        self._is_memory_short = False  # as the last new client found it

    def check(self) -> None:
        """Make sure that the model was loaded in this process.

        Raises:
            DeviceError: the model was loaded before this process was forked.
        """
        self._calls.check()

    def client(self, batch_size: int, priority: Priority) -> Client:
        """A new caller, whose batches are smaller if memory is short; see `Client`.

        A text does not depend on the size of its batch.
        """
        backend = self.backend
        for_each = max(1, backend.window_bytes * backend.n_streams)
        affordable = max(1, int(available_bytes() * _SHARE_OF_MEMORY) // for_each)
        is_short = affordable < batch_size
        if is_short and not self._is_memory_short:  # not for each window of live speech
            logger.info("little memory: %d windows at once instead of %d", affordable, batch_size)
        self._is_memory_short = is_short
        with self._changed:
            return Client(min(batch_size, affordable), priority, self._n_decoded)

    @property
    def is_decoding_here(self) -> bool:
        """Whether the calling thread is in a callback of a decoding."""
        return bool(self._decoding.get(get_ident()))

    def decodes_here_for(self, client: Client) -> bool:
        """Whether the calling thread decodes windows of a client."""
        every = self._decoding.get(get_ident(), [])
        return any(batch.client is client for together in every for batch in together)

    def uses_streams(self, client: Client) -> bool:
        """Whether the pool has worked for a client, until `close_streams`."""
        return client in self._pool_users

    def close_streams(self, client: Client) -> None:
        """End the pool after its last client; its threads finish the submitted batches."""
        try:
            self.check()
        except DeviceError:  # a forked child has no threads, and locks may stay locked
            return
        with self._changed:
            self._pool_users.discard(client)
            if not self._pool_users:
                self._pool = None  # its threads end with it

    def encode_ahead(self, client: Client, requests: Sequence[WindowRequest]) -> None:
        """Let the streams encode windows while others are planned; no result changes."""
        if self.backend.n_streams == 1 or self.is_decoding_here:
            return
        pool = self._pool_for(client)
        for request in requests:
            encode_ahead(request, self.backend, pool)

    def submit(self, batches: Sequence[Batch]) -> None:
        """Queue batches; `wait` waits for them. Parallel batches may start at once."""
        with self._changed:
            for batch in batches:
                batch.number = self._n_submitted
                self._n_submitted += 1
                self._waiting.append(batch)
            self._changed.notify_all()
        for batch in batches:
            if batch.parallel:
                self._pool_for(batch.client).submit(self._decode_in_stream)

    def wait(self, batches: Sequence[Batch]) -> None:
        """Wait until batches are done or cancelled; decode, if no other caller does.

        `Batch.results` raises the errors of decoding; this method does not.
        """
        try:
            while together := self._next_for(batches):
                self._decode(together, lambda: self.backend)
        finally:
            with self._changed:
                self._stop_leading(batches)
                self.cancel(batches)

    def decode_now(self, request: WindowRequest) -> WindowResult:
        """Decode one window, before all bulk work.

        Raises:
            DeviceError: the device failed.
            UsageError: the transcription was closed meanwhile.
        """
        self.check()
        caller = request.caller
        batch = Batch(self.client(caller.options.batch_size, Priority.SHORT), [request])
        self.submit([batch])
        self.wait([batch])
        (result,) = batch.results()
        if result is None:
            raise UsageError(GIVEN_UP)
        caller.times.add_share(batch.times, 1 / batch.n_together)
        self.after_batch(1)
        return result

    def cancel(self, batches: Sequence[Batch]) -> None:
        """Take batches that have not started out of the queue."""
        with self._changed:
            self._waiting = [batch for batch in self._waiting if batch not in batches]
            self._changed.notify_all()

    def look_again(self) -> None:
        """Wake the waiting callers, after a batch was done or a transcription was closed."""
        with self._changed:
            self._changed.notify_all()

    def _next_for(self, batches: Sequence[Batch]) -> Sequence[Batch]:
        """The batches that a caller waiting for `batches` decodes next; empty: its wait is over."""
        is_nested = self.is_decoding_here
        with self._changed:
            self._stop_leading(batches)
            while any(batch.is_wanted and not batch.is_done for batch in batches):
                mine = [batch for batch in self._waiting if batch in batches]
                if is_nested and mine:  # another caller that decodes may wait for this thread
                    self._waiting.remove(mine[0])
                    return mine[:1]
                may_lead = self._leader is None and not is_nested
                if may_lead and any(not batch.parallel for batch in mine):
                    self._leader = get_ident()
                    self._led = self._take(parallel=False)
                    if self._led:
                        return self._led
                    self._leader = None
                self._changed.wait()
        return ()

    def _stop_leading(self, batches: Sequence[Batch]) -> None:
        """End the calling thread's lead, if it decoded while it waited for `batches`.

        Interrupted batches of other callers go back into the queue.
        """
        if self._leader != get_ident() or self.is_decoding_here:
            return
        self._waiting += [
            batch for batch in self._led if not batch.is_done and batch not in batches
        ]
        self._leader, self._led = None, ()
        self._changed.notify_all()

    def _pool_for(self, client: Client) -> ThreadPoolExecutor:
        """The pool, which the client uses until `close_streams`. Give it work without the lock.

        It may start a thread and wait for it; and in the new thread the garbage collector may close
        a dropped stream, which needs the lock. The pool works as long as somebody holds it.
        """
        with self._changed:
            self._pool_users.add(client)
            if self._pool is None:
                n_streams = self.backend.n_streams
                self._pool = ThreadPoolExecutor(n_streams, thread_name_prefix="whisper-npu")
            return self._pool

    def _decode_in_stream(self) -> None:
        """Decode the next parallel batch, in a thread of the pool."""
        together: Sequence[Batch] = ()
        try:
            with self._changed:
                together = self._take(parallel=True)
            if together:
                self._decode(together, self.backend.parallel, in_pool=True)
        except BaseException as error:  # no caller would see it: it becomes the batches' error
            with self._changed:
                for batch in together or self._waiting:
                    batch.fail(error)
                self._changed.notify_all()

    def _take(self, *, parallel: bool, most: Priority = Priority.BULK) -> Sequence[Batch]:
        """Take the batches that are decoded together next out of the queue.

        Args:
            parallel: whether the pool decodes them.
            most: the least urgent priority of these batches.
        """
        self._waiting = [each for each in self._waiting if each.is_wanted and not each.is_done]
        may = (b for b in self._waiting if b.parallel == parallel and b.client.priority <= most)
        waiting = sorted(may, key=rank)
        if not waiting:
            return ()
        first, *others = waiting
        together = [first]
        for other in others:
            if can_join(other, together, self.backend):
                together.append(other)
        self._n_decoded += 1
        for batch in together:
            self._waiting.remove(batch)
            batch.client.served = self._n_decoded
        for batch in others:
            batch.n_overtaken += batch.client.priority > first.client.priority
        return together

    def _decode(
        self,
        together: Sequence[Batch],
        get_backend: Callable[[], Backend],
        *,
        in_pool: bool = False,
    ) -> None:
        """Decode batches that were taken from the queue, and set their results or errors.

        Args:
            together: the batches.
            get_backend: returns the model, or its part for streams.
            in_pool: whether a thread of the pool decodes.
        """
        requests = [
            request for batch in together for request in batch.requests if request.caller.is_wanted
        ]
        thread, times = get_ident(), StageTimes()
        nested = self._decoding.setdefault(thread, [])
        nested.append(together)
        is_urgent = together[0].client.priority is Priority.SHORT
        with self._changed:
            self._n_urgent += is_urgent
        make_way = None if is_urgent else self._courtesy(times, in_pool=in_pool)
        try:
            if in_pool or len(nested) > 1:
                _encode_here(requests)
            results = decode_requests(requests, get_backend(), times, make_way) if requests else []
        except Exception as error:
            self._fail(together, error, get_backend)
        else:
            by_request = dict(zip(map(id, requests), results, strict=True))
            for batch in together:
                batch.times, batch.n_together = times, max(1, len(requests))
                batch.succeed(
                    [
                        by_request.get(id(request)) if request.caller.is_wanted else None
                        for request in batch.requests
                    ]
                )
        finally:
            nested.pop()
            if not nested:
                del self._decoding[thread]
            with self._changed:
                self._n_urgent -= is_urgent
                so_far = self.decoded
                self.decoded = Decoded(so_far.batches + 1, so_far.windows + len(requests))
            self.look_again()

    def _courtesy(self, times: StageTimes, *, in_pool: bool) -> MakeWay:
        """A function that a decoding of bulk work calls between its steps."""
        allowance = Allowance()
        make_way = self._pause if in_pool else self._decode_urgent

        def look() -> None:
            # Without the lock: what has just come is seen after the next step.
            if self._is_urgent and allowance.left > 0:
                with times.measure(_MAKING_WAY), allowance.spend():
                    make_way(allowance)

        return look

    def _pause(self, allowance: Allowance) -> None:
        """Wait until there is no urgent work. A stream has no threads to decode it fast."""
        with self._changed:
            while self._is_urgent and (left := allowance.left) > 0:
                self._changed.wait(left)

    def _decode_urgent(self, allowance: Allowance) -> None:
        """Decode the urgent work that waits for the calling thread."""
        while allowance.left > 0:
            with self._changed:
                together = self._take(parallel=False, most=Priority.SHORT)
            if not together:
                return
            try:
                self._decode(together, lambda: self.backend)
            except BaseException:  # interrupted: they wait for another thread
                with self._changed:
                    self._waiting += [batch for batch in together if not batch.is_done]
                    self._changed.notify_all()
                raise

    @property
    def _is_urgent(self) -> bool:
        """Whether short work is decoded by a caller, or waits for one."""
        return self._n_urgent > 0 or any(
            batch.client.priority is Priority.SHORT and not batch.parallel and batch.is_wanted
            for batch in self._waiting
        )

    def _fail(
        self, together: Sequence[Batch], error: Exception, get_backend: Callable[[], Backend]
    ) -> None:
        """Set the error of batches; if the device failed, of all waiting batches too."""
        if isinstance(error, DeviceError):
            with self._changed:
                lost, self._waiting = (*together, *self._waiting), []
            for number, batch in enumerate(lost):
                batch.fail(DeviceError(*error.args) if number else error)
        elif len(together) == 1:
            together[0].fail(error)
        else:  # one batch caused the error: only that batch may fail
            for batch in together:
                self._decode([batch], get_backend)


def _encode_here(requests: Sequence[WindowRequest]) -> None:
    """Cancel encodings that have not started: these windows are encoded where they are decoded.

    A thread of the pool must not wait for another: all threads might wait, with none left to work.
    """
    for request in requests:
        if request.encoded is not None and request.encoded.cancel():
            request.encoded = None
