"""The text of recordings: `/v1/audio/transcriptions` and `/v1/audio/translations`."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing
from time import monotonic

from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from whisper_npu import DeviceError, Segment
from whisper_npu.server import answers
from whisper_npu.server.authentication import KEY
from whisper_npu.server.documentation import audio_answers, form_of
from whisper_npu.server.errors import (
    ClientGoneError,
    bad_request,
    from_transcription,
    log_refusal,
    server_error,
    shutting_down,
)
from whisper_npu.server.fields import Task, TranscriptionFields, TranslationFields, Wanted
from whisper_npu.server.models import ServedModel
from whisper_npu.server.service import Service, service_of
from whisper_npu.server.transcribing import Caller, Event, Finished, Job, Progress, follow
from whisper_npu.server.upload import FILE, Form, read_form

logger = logging.getLogger("whisper_npu.server")

_IGNORED_QUERY = ("api-version",)  # clients of Azure's API add it to every address

router = APIRouter(prefix="/v1/audio", tags=["audio"], dependencies=list(KEY))


@router.post(
    "/transcriptions",
    summary="Transcribe a recording",
    response_class=Response,
    responses=audio_answers(),
    openapi_extra=form_of(TranscriptionFields),
)
async def create_transcription(request: Request) -> Response:
    """The text of a recording, in the language that is spoken."""
    return await _answer(request, "transcribe")


@router.post(
    "/translations",
    summary="Translate a recording into English",
    response_class=Response,
    responses=audio_answers(),
    openapi_extra=form_of(TranslationFields),
)
async def create_translation(request: Request) -> Response:
    """The text of a recording, in English."""
    return await _answer(request, "translate")


async def _answer(request: Request, task: Task) -> Response:
    _require_no_query(request)
    service = service_of(request)
    service.models.require_any()
    async with AsyncExitStack() as held:
        held.enter_context(service.admission.enter())
        started = monotonic()
        with service.admission.upload():
            form = await read_form(request, service.config.limits, service.config.spool)
        held.callback(form.close)
        wanted = Wanted(form.fields, task)
        served = service.models.get(wanted.model)
        job = _job(form, wanted, served)
        caller = Caller(request.receive)
        held.callback(caller.close)
        uploaded = monotonic()
        await caller.wait_for(held.enter_async_context(service.admission.place(form.n_bytes)))
        seconds = {"upload": uploaded - started, "wait": monotonic() - uploaded}
        run = _Run(service, served, wanted, seconds)
        followed = follow(job, caller, service.config.limits, service.threads)
        events = await held.enter_async_context(aclosing(run.watched(followed)))
        if wanted.stream:
            first = await anext(events)  # an error before it has a status of its own
            return _EventStream(run, first, events, held.pop_all())
        async for event in events:
            if isinstance(event, Finished):
                return answers.answer(event, wanted, seconds)
    raise ClientGoneError  # the job was stopped


def _require_no_query(request: Request) -> None:
    """Refuse parameters in the address, which would have no effect.

    Raises:
        ApiError: there is one.
    """
    for name in request.query_params:
        if name not in _IGNORED_QUERY:
            shown = name[:100]
            raise bad_request(
                f"the query parameter {shown} has no effect; send it as a field of the form: "
                f"curl -F {shown}=...",
                shown,
            )


def _job(form: Form, wanted: Wanted, served: ServedModel) -> Job:
    if form.file is None:
        raise bad_request("the field file is missing: curl -F file=@talk.mp3", FILE)
    if form.n_bytes == 0:
        raise bad_request("the recording is empty: it has 0 bytes", FILE)
    model = served.ready()
    return Job(model, form.file, wanted.options(model))


class _Run:
    """A transcription under way, with what is noted about it."""

    def __init__(
        self, service: Service, served: ServedModel, wanted: Wanted, seconds: dict[str, float]
    ) -> None:
        self.wanted = wanted
        self.seconds = seconds
        self.served = served
        self.patience = service.config.limits.stall_seconds
        self._metrics = service.metrics

    async def watched(self, events: AsyncGenerator[Event]) -> AsyncGenerator[Event]:
        """The events; errors become answers, and a device that fails is noted."""
        try:
            async with aclosing(events):
                async for event in events:
                    if isinstance(event, Finished):
                        stages = {**self.seconds, **event.stages}
                        self._metrics.transcribed(self.served.name, event.result.duration, stages)
                    yield event
        except ClientGoneError:
            raise
        except Exception as error:
            if isinstance(error, DeviceError):
                self.served.fail(error)
            known = from_transcription(error)
            if known is None:
                raise
            raise known from error


class _EventStream(Response):
    """Sends a transcription as server-sent events, and ends it with its caller."""

    def __init__(
        self, run: _Run, first: Event, events: AsyncIterator[Event], held: AsyncExitStack
    ) -> None:
        """Send nothing yet.

        Args:
            run: the transcription.
            first: its first event.
            events: the others.
            held: what the request holds, to be closed at its end.
        """
        headers = answers.STREAM_HEADERS
        if run.served.loaded is not None:
            headers = {**headers, **answers.model_headers(run.served.loaded)}
        super().__init__(headers=headers)
        del self.headers["content-length"]
        self._run = run
        self._first = first
        self._events = events
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See `Response`."""
        async with self._held:
            start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            await self._send(send, start)
            try:
                async for content in self._contents(scope.get("client")):
                    body = {"type": "http.response.body", "body": content, "more_body": True}
                    await self._send(send, body)
            except asyncio.CancelledError:  # the server ends, and will not wait any longer
                last = answers.error_event(shutting_down())
                await self._send(send, {"type": "http.response.body", "body": last})
                raise
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, message: Message) -> None:
        """Send a message, unless the caller has not read the earlier ones for too long.

        Raises:
            ClientGoneError: it has not; it would keep a place from others.
        """
        try:
            async with asyncio.timeout(self._run.patience):
                await send(message)
        except TimeoutError:
            raise ClientGoneError("does not read its answer") from None

    async def _contents(self, client: object) -> AsyncIterator[bytes]:
        writer = answers.EventWriter(self._run.wanted)
        try:
            yield self._content(writer, self._first)
            async for event in self._events:
                yield self._content(writer, event)
        except ClientGoneError:
            raise
        except Exception as error:  # the status is sent already: the error is the last event
            known = from_transcription(error)
            if known is None:
                logger.exception("a transcription failed")
            known = known or server_error()
            log_refusal(client, known)
            yield answers.error_event(known)
        else:
            yield answers.LAST_EVENT

    def _content(self, writer: answers.EventWriter, event: Event) -> bytes:
        if isinstance(event, Segment):
            return writer.delta(event)
        if isinstance(event, Progress):
            return writer.progress(event)
        return writer.done(event, self._run.seconds)
