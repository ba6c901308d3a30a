"""One transcription: runs in a thread, is followed from the event loop, ends with its caller."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock
from time import monotonic
from typing import BinaryIO, TypeVar

from starlette.types import Receive

from whisper_npu import Segment, TranscribeKwargs, Transcription, TranscriptionStream, WhisperModel
from whisper_npu.server.config import Limits
from whisper_npu.server.errors import ApiError, ClientGoneError

_TICK = 1.0  # seconds between two reports of progress

T = TypeVar("T")


@dataclass(frozen=True)
class Progress:
    """How far a transcription is.

    Attributes:
        seconds_done: seconds of audio that the work so far amounts to.
        duration: seconds of audio according to the recording's header; None if it does not say.
    """

    seconds_done: float
    duration: float | None


@dataclass(frozen=True)
class Finished:
    """A complete transcription.

    Attributes:
        result: the transcription.
        stages: seconds of work by stage.
    """

    result: Transcription
    stages: dict[str, float]


Event = Segment | Progress | Finished


class Caller:
    """The connection of a request whose body was read: notices when its caller leaves."""

    def __init__(self, receive: Receive) -> None:
        self._gone = asyncio.create_task(_disconnect(receive))

    async def wait_for(self, awaited: Awaitable[T], timeout: float | None = None) -> T:
        """Wait for a result.

        Raises:
            ClientGoneError: the caller left before.
            TimeoutError: the result was not there in time.
        """
        work = asyncio.ensure_future(awaited)
        try:
            done, _ = await asyncio.wait(
                {work, self._gone}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED
            )
        except BaseException:
            await _cancel(work)
            raise
        if work in done:
            return work.result()
        await _cancel(work)
        if self._gone in done:
            raise ClientGoneError
        raise TimeoutError

    def close(self) -> None:
        """Look no longer."""
        self._gone.cancel()


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancel(task: "asyncio.Future[T]") -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


class Job:
    """A transcription in a thread.

    Args:
        model: the model.
        file: the recording.
        options: how to transcribe.
    """

    def __init__(self, model: WhisperModel, file: BinaryIO, options: TranscribeKwargs) -> None:
        self._model = model
        self._file = file
        self._options = options
        self._lock = Lock()  # guards the attributes below
        self._stream: TranscriptionStream | None = None
        self._is_stopped = False

    def run(self, emit: Callable[[Segment | Finished], None]) -> None:
        """Transcribe; returns early after `stop`.

        Args:
            emit: takes each segment as soon as it is decoded, and the result.

        Raises:
            WhisperNpuError: the recording cannot be transcribed.
        """
        with self._model.transcribe(self._file, **self._options) as stream:
            with self._lock:
                self._stream = stream
                if self._is_stopped:
                    return
            for segment in stream:
                emit(segment)
            emit(Finished(stream.result(), stream.times.seconds))

    def stop(self) -> None:
        """End the transcription at its next decoding step; blocks until then."""
        with self._lock:
            self._is_stopped = True
            stream = self._stream
        if stream is not None:
            stream.close()

    @property
    def seconds_read(self) -> float:
        """Seconds of audio read or announced so far."""
        stream = self._stream
        return 0.0 if stream is None else max(stream.seconds_read, stream.duration_estimate or 0.0)

    @property
    def progress(self) -> Progress | None:
        """How far it is; None while the recording is being opened, which may still fail."""
        stream = self._stream
        if stream is None:
            return None
        return Progress(stream.seconds_done, stream.duration_estimate)


async def follow(
    job: Job, caller: Caller, limits: Limits, threads: Executor
) -> AsyncGenerator[Event]:
    """Run a job, and yield its segments, its progress once a second, and its result.

    The job has ended when the iterator has: close the iterator.

    Raises:
        WhisperNpuError: the recording cannot be transcribed.
        ApiError: the recording is too long, or took too long.
        ClientGoneError: the caller left.
    """
    loop = asyncio.get_running_loop()
    events: asyncio.Queue[Segment | Finished | None] = asyncio.Queue()

    def emit(event: Segment | Finished | None) -> None:
        loop.call_soon_threadsafe(events.put_nowait, event)

    def work() -> None:
        try:
            job.run(emit)
        finally:
            emit(None)

    latest = monotonic() + limits.work_seconds
    running = loop.run_in_executor(threads, work)
    try:
        while True:
            event: Event | None
            is_over = False
            patience = min(_TICK, max(0.0, latest - monotonic()))
            try:
                event = await caller.wait_for(events.get(), timeout=patience)
                is_over = event is None
            except TimeoutError:
                event = job.progress
            if is_over:
                await running  # raises its error
                return
            _check_length(job, limits)
            if monotonic() >= latest:
                raise _too_slow(limits)
            if event is not None:
                yield event
    finally:
        if not running.done():
            await asyncio.to_thread(job.stop)
        with suppress(Exception):  # known already, or not wanted any more
            await running


def _check_length(job: Job, limits: Limits) -> None:
    if job.seconds_read > limits.audio_seconds:
        raise ApiError(
            400,
            f"the recording is longer than {limits.audio_seconds:.0f} s, this server's limit "
            "(--max-duration); send it in parts",
            param="file",
            code="audio_too_long",
        )


def _too_slow(limits: Limits) -> ApiError:
    return ApiError(
        504,
        f"the transcription took longer than {limits.work_seconds:.0f} s, this server's limit "
        "(--max-seconds); send the recording in parts",
        kind="server_error",
        code="transcription_timeout",
        headers={"x-should-retry": "false"},
    )
