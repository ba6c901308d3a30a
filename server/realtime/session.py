"""One realtime session: a reader takes events, a worker hears, decodes and answers in order.

Memory is bounded on both sides. The reader stops when too much audio waits, so that the client's
connection fills. The worker sends each event itself and waits until it is on its way; a client that
does not read is closed by `websocket.py`.
"""

import asyncio
import json
import logging
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any, TypeVar

import numpy as np
from starlette.websockets import WebSocket, WebSocketDisconnect

from whisper_npu import (
    Committed,
    DeviceError,
    LiveTranscriber,
    LiveUpdate,
    TurnAudio,
    TurnDetector,
    TurnEnded,
    TurnEvent,
    TurnStarted,
)
from whisper_npu.server.errors import (
    ApiError,
    bad_request,
    from_transcription,
    log_refusal,
    server_error,
)
from whisper_npu.server.models import ServedModel
from whisper_npu.server.pcm import SAMPLE_RATE, Floats, RawAudio
from whisper_npu.server.realtime.inbox import APPEND, Event, Inbox, audio_of, parsed
from whisper_npu.server.realtime.item import Item
from whisper_npu.server.realtime.settings import TENTATIVE, Settings
from whisper_npu.server.service import Service

logger = logging.getLogger("whisper_npu.server")

T = TypeVar("T")

_TRANSCRIPTION = "conversation.item.input_audio_transcription"
_AT_ONCE = 30 * SAMPLE_RATE  # samples: more are fed in parts, between which a session can end
_LEAST_COMMIT = SAMPLE_RATE // 10  # samples
_MOST_ID = 512  # characters of a client's event_id that an error repeats
_NORMAL, _BROKEN = 1000, 1011  # codes of closed connections
_RESTARTED = 1012  # the code that the server sends when it ends


class Session:
    """A realtime session, after its connection was accepted.

    Attributes:
        end: why it ended.
    """

    def __init__(
        self,
        websocket: WebSocket,
        service: Service,
        served: ServedModel,
        threads: Executor,
        *,
        is_old: bool,
    ) -> None:
        """Say nothing yet.

        Args:
            websocket: the connection.
            service: the server's parts.
            served: the model until the client chooses another.
            threads: one of them works for this session at a time.
            is_old: whether the client knows the events from before the API was final.
        """
        self._id = f"sess_{uuid.uuid4().hex[:24]}"
        self._socket = websocket
        self._service = service
        self._served = served
        self._threads = threads
        self._is_old = is_old
        self._inbox = Inbox()
        self._settings = Settings.initial(served.name)
        self._raw: RawAudio
        self._turns: TurnDetector | None
        self._item: Item | None = None  # the one whose audio arrives
        self._last_item: str | None = None  # the last one that was committed
        self._n_samples = 0  # heard since the start of the session
        self.end = "the connection ended"

    @property
    def seconds(self) -> float:
        """Seconds of audio since the start."""
        return self._n_samples / SAMPLE_RATE

    async def run(self, idle_seconds: float) -> None:
        """Serve until the client leaves.

        Raises:
            WebSocketDisconnect: it left while an event was being sent.
        """
        await self._in_thread(self._begin_to_hear)
        prefix = "transcription_session" if self._is_old else "session"
        await self._send(f"{prefix}.created", session=self._shown(is_old=self._is_old))
        reader = asyncio.create_task(self._read(idle_seconds))
        try:
            await self._work()
        except WebSocketDisconnect:
            raise
        except Exception:
            logger.exception("a live session failed")
            self.end = "an error of the server"
            await self._send_error(server_error())
            await self._socket.close(_BROKEN, "internal error")
        finally:
            reader.cancel()
            if self._item is not None:
                self._item.live.close()

    async def _read(self, idle_seconds: float) -> None:
        while True:
            try:
                async with asyncio.timeout(idle_seconds):
                    message = await self._socket.receive()
            except TimeoutError:
                self.end = f"no event for {idle_seconds:g} s"
                await self._inbox.put(_idle(idle_seconds), 0)
                await self._inbox.put(None, 0)
                return
            if message["type"] == "websocket.disconnect":
                is_server = message["code"] == _RESTARTED
                self.end = "the server ends" if is_server else "the client left"
                await self._inbox.end()
                return
            text = message.get("text") or message.get("bytes") or ""
            await self._inbox.put(parsed(text), len(text))

    async def _work(self) -> None:
        while True:
            taken = await self._inbox.take()
            first = taken[0]
            if first is None:
                await self._close()
                return
            event_id = first.get("event_id") if isinstance(first, dict) else None
            try:
                if isinstance(first, ApiError):
                    raise first
                if first["type"] == APPEND:
                    await self._append([each for each in taken if isinstance(each, dict)])
                else:
                    await self._control(first)
            except ApiError as error:
                await self._send_error(error, event_id)

    async def _close(self) -> None:
        """End the connection, unless the client did."""
        if self._socket.client_state.name == "CONNECTED":
            await self._socket.close(_NORMAL)

    async def _control(self, event: Event) -> None:
        match event["type"]:
            case "session.update":
                await self._update(self._settings.updated(event.get("session")), is_old=False)
            case "transcription_session.update":
                changed = self._settings.updated_by_old(event.get("session"))
                await self._update(changed, is_old=True)
            case "input_audio_buffer.commit":
                await self._commit_by_client()
            case "input_audio_buffer.clear":
                await self._clear()
            case other:
                raise bad_request(
                    f"unknown event {str(other)[:100]!r}: a transcription session takes "
                    "session.update, input_audio_buffer.append, .commit and .clear",
                    "type",
                    "unknown_event",
                )

    # Settings

    async def _update(self, changed: Settings, *, is_old: bool) -> None:
        hears_anew = not changed.hears_like(self._settings)
        if hears_anew and self._item is not None:
            raise bad_request(
                "the format and turn_detection cannot change within an utterance; send "
                "input_audio_buffer.commit or .clear before",
                "session",
            )
        served = self._service.models.get(changed.model)
        changed.options(served.ready())
        self._settings, self._served = changed, served
        if hears_anew:
            await self._in_thread(self._begin_to_hear)
        prefix = "transcription_session" if is_old else "session"
        await self._send(f"{prefix}.updated", session=self._shown(is_old=is_old))

    def _shown(self, *, is_old: bool) -> Event:
        """The session object."""
        settings, backend = self._settings, self._served.ready().backend
        ours = {
            "device": backend.device,
            "precision": backend.precision,
            "warnings": list(settings.warnings),
        }
        shared = {
            "id": self._id,
            "object": "realtime.transcription_session",
            "include": settings.include,
        }
        if is_old:
            return {**shared, **settings.as_old_session(), "whisper_npu": ours}
        audio = {"input": settings.as_input()}
        return {**shared, "type": "transcription", "audio": audio, "whisper_npu": ours}

    def _begin_to_hear(self) -> None:
        """Start the stream of audio anew."""
        settings = self._settings
        self._raw = settings.raw_audio()
        self._turns = None
        self._turns_begin = self._n_samples
        if (vad := settings.vad) is not None:
            self._turns = TurnDetector(
                self._served.ready(),
                threshold=vad.threshold,
                padding=vad.prefix_padding_ms / 1000,
                silence=vad.silence_duration_ms / 1000,
            )

    # Audio

    async def _append(self, events: Sequence[Event]) -> None:
        found, wrong = await self._in_thread(self._hear, events)
        for event_id, error in wrong:
            await self._send_error(error, event_id)
        for event in found:
            await self._follow(event)

    def _hear(self, events: Sequence[Event]) -> tuple[list[TurnEvent], list[tuple[Any, ApiError]]]:
        """Decode the audio of events; returns what it brings, and errors by event."""
        pieces, wrong = list[Floats](), list[tuple[Any, ApiError]]()
        for event in events:
            try:
                pieces.append(self._raw.push(audio_of(event)))
            except ApiError as error:
                wrong.append((event.get("event_id"), error))
        samples = np.concatenate(pieces) if pieces else np.empty(0, np.float32)
        return self._divided(samples), wrong

    def _divided(self, samples: Floats) -> list[TurnEvent]:
        self._n_samples += len(samples)
        if not len(samples):
            return []
        if self._turns is None:  # the client says where a turn ends
            return [TurnAudio(samples)]
        return self._turns.hear(samples)

    async def _follow(self, event: TurnEvent) -> None:
        if isinstance(event, TurnStarted):
            item = await self._open_item()
            start = self._milliseconds(event.at)
            await self._send(
                "input_audio_buffer.speech_started", audio_start_ms=start, item_id=item.id
            )
        elif isinstance(event, TurnAudio):
            await self._feed(event.samples)
        elif isinstance(event, TurnEnded) and self._item is not None:
            end = self._milliseconds(event.at)
            await self._send(
                "input_audio_buffer.speech_stopped", audio_end_ms=end, item_id=self._item.id
            )
            await self._commit()

    def _milliseconds(self, sample: int) -> int:
        return (self._turns_begin + sample) * 1000 // SAMPLE_RATE

    async def _open_item(self) -> Item:
        """The item whose audio arrives."""
        if self._item is None:
            settings, served = self._settings, self._served
            model = served.ready()
            live = await self._in_thread(
                lambda: LiveTranscriber(
                    model,
                    min_chunk=settings.min_chunk,
                    pause=settings.pause,
                    **settings.options(model),
                )
            )
            self._item = Item(live, served)
        return self._item

    async def _feed(self, samples: Floats) -> None:
        item = await self._open_item()
        for start in range(0, len(samples), _AT_ONCE):
            piece = samples[start : start + _AT_ONCE]
            item.n_samples += len(piece)
            if item.error is None:
                await self._tell(item, partial(item.live.feed, piece))

    async def _commit_by_client(self) -> None:
        rest = await self._in_thread(self._rest)
        if len(rest):
            await self._feed(rest)
        n_samples = 0 if self._item is None else self._item.n_samples
        if n_samples < _LEAST_COMMIT:
            raise bad_request(
                f"the buffer has {1000 * n_samples // SAMPLE_RATE} ms of audio; append at least "
                "100 ms before a commit",
                code="input_audio_buffer_commit_empty",
            )
        await self._commit()

    def _rest(self) -> Floats:
        """The audio that is in no item yet; the next audio is a new utterance."""
        held = self._raw.end()
        self._n_samples += len(held)
        if self._turns is None:
            return held
        self._turns_begin += len(held)
        return np.concatenate((self._turns.cut(), held))

    async def _clear(self) -> None:
        await self._in_thread(self._rest)
        item, self._item = self._item, None
        if item is not None:
            item.live.close()
        await self._send("input_audio_buffer.cleared")

    # Text

    async def _commit(self) -> None:
        """End the item: its text will be complete."""
        item, self._item = self._item, None
        if item is None:
            return
        previous, self._last_item = self._last_item, item.id
        place = {"previous_item_id": previous}
        await self._send("input_audio_buffer.committed", item_id=item.id, **place)
        for name in ("created",) if self._is_old else ("added", "done"):
            await self._send(f"conversation.item.{name}", item=item.as_message(), **place)
        if item.error is None:
            await self._tell(item, item.live.finish)
        if item.error is not None:
            await self._send_text(item, "failed", error=_error(item.error))
            return
        seconds = item.n_samples / SAMPLE_RATE
        self._service.metrics.transcribed(item.served.name, seconds, item.live.times.seconds)
        await self._send_text(
            item,
            "completed",
            transcript=item.text,
            languages=[{"code": code} for code in item.languages],
            usage={"type": "duration", "seconds": seconds},
            whisper_npu={"warnings": [*item.live.warnings, *item.flaws]},
        )

    async def _tell(self, item: Item, work: Callable[[], list[LiveUpdate]]) -> None:
        """Send the words that the work brings. An error ends the item, not the session."""
        try:
            updates = await self._in_thread(work)
        except Exception as error:
            if isinstance(error, DeviceError):
                item.served.fail(error)
            known = from_transcription(error)
            if known is None:
                logger.exception("live speech could not be transcribed")
            item.error = known or server_error()
            log_refusal(self._socket.client, item.error)
            return
        for update in updates:
            if isinstance(update, Committed):
                if delta := item.add(update):
                    await self._send_text(item, "delta", delta=delta)
            elif self._settings.has_tentative:
                await self._send(TENTATIVE, item_id=item.id, content_index=0, text=update.text)

    # Answers

    async def _send_text(self, item: Item, name: str, **fields: Any) -> None:
        await self._send(f"{_TRANSCRIPTION}.{name}", item_id=item.id, content_index=0, **fields)

    async def _send_error(self, error: ApiError, event_id: Any = None) -> None:
        repeated = event_id[:_MOST_ID] if isinstance(event_id, str) else None
        await self._send("error", error={**_error(error), "event_id": repeated})

    async def _send(self, kind: str, **fields: Any) -> None:
        event = {"type": kind, "event_id": f"event_{uuid.uuid4().hex[:24]}", **fields}
        # In ASCII: what the client sent, and is repeated, may be no valid Unicode.
        await self._socket.send_text(json.dumps(event))

    async def _in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, work, *arguments)


def _error(error: ApiError) -> Event:
    known: Event = error.body()["error"]
    return known


def _idle(seconds: float) -> ApiError:
    return ApiError(
        408,
        f"no event for {seconds:g} s: the session ends; send audio, silence included",
        code="session_idle",
    )
