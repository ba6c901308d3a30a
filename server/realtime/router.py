"""Live speech: the WebSocket `/v1/realtime` with OpenAI's events of a transcription session."""

import logging
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager

from fastapi import APIRouter, FastAPI
from starlette.requests import HTTPConnection
from starlette.websockets import WebSocket, WebSocketDisconnect

from whisper_npu.server.authentication import require_key
from whisper_npu.server.errors import bad_request, busy
from whisper_npu.server.logs import shown
from whisper_npu.server.models import FIRST_MODEL
from whisper_npu.server.realtime.session import Session
from whisper_npu.server.service import service_of

logger = logging.getLogger("whisper_npu.server")

_PROTOCOL = "realtime"
_KEY_PREFIX = "openai-insecure-api-key."  # a browser cannot send headers: the key is a protocol
_OLD_PROTOCOL = "openai-beta.realtime-v1"
_RETRY_AFTER = 30  # seconds


class LiveSessions:
    """The sessions of a server, and the threads in which they decode."""

    def __init__(self, most: int) -> None:
        self.n_open = 0
        self.threads = ThreadPoolExecutor(most, thread_name_prefix="live")
        self._most = most

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Hold a place for a block.

        Raises:
            ApiError: there are too many sessions.
        """
        if self.n_open >= self._most:
            raise busy(f"{self.n_open} live sessions are open; try again", _RETRY_AFTER)
        self.n_open += 1
        try:
            yield
        finally:
            self.n_open -= 1


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.live = LiveSessions(app.state.service.config.limits.sessions)
    try:
        yield
    finally:
        app.state.live.threads.shutdown()


router = APIRouter(prefix="/v1", lifespan=_lifespan)


@router.websocket("/realtime")
async def realtime(websocket: WebSocket) -> None:
    """Transcribe live audio. An error before the session is an HTTP answer."""
    offered = websocket.scope["subprotocols"]
    require_key(_with_key(websocket, offered))
    query = websocket.query_params
    intent = query.get("intent", "transcription")
    if intent != "transcription":
        raise bad_request(f"intent is {intent[:100]!r}: this server only transcribes", "intent")
    service = service_of(websocket)
    served = service.models.get(query.get("model", FIRST_MODEL))
    served.ready()
    live: LiveSessions = websocket.app.state.live
    is_old = _OLD_PROTOCOL in offered or "realtime=v1" in websocket.headers.get("openai-beta", "")
    with live.enter():
        await websocket.accept(_PROTOCOL if _PROTOCOL in offered else None)
        session = Session(websocket, service, served, live.threads, is_old=is_old)
        try:
            await session.run(service.config.limits.idle_seconds)
        except WebSocketDisconnect:
            pass  # it left while an event was being sent
        finally:
            logger.info(
                "%s - live session ended after %.1f s of audio: %s",
                shown(websocket.client),
                session.seconds,
                session.end,
            )


def _with_key(websocket: WebSocket, offered: list[str]) -> HTTPConnection:
    """The connection, with a key that came as a protocol in the header where keys belong."""
    keys = [each.removeprefix(_KEY_PREFIX) for each in offered if each.startswith(_KEY_PREFIX)]
    if not keys:
        return websocket
    header = (b"authorization", f"Bearer {keys[0]}".encode())
    others = [each for each in websocket.scope["headers"] if each[0] != header[0]]
    return HTTPConnection({**websocket.scope, "headers": [*others, header]})
