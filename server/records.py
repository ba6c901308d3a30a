"""Notes every request: its number, its time, its status; and ends it quietly if its caller left."""

import asyncio
import logging
import uuid
from time import monotonic

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from whisper_npu.server.errors import ClientGoneError, shutting_down
from whisper_npu.server.logs import shown
from whisper_npu.server.metrics import Metrics

logger = logging.getLogger("whisper_npu.server")

_LEFT = 499  # the status that proxies note for a caller that left


class RequestRecords:
    """A middleware that adds the headers of OpenAI's API and counts requests."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, number = monotonic(), f"req_{uuid.uuid4().hex}"
        status, has_started = 500, False

        async def send_noted(message: Message) -> None:
            nonlocal status, has_started
            if message["type"] == "http.response.start":
                status, has_started = message["status"], True
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = number
                headers["openai-processing-ms"] = str(round(1000 * (monotonic() - started)))
            await send(message)

        try:
            await self._app(scope, receive, send_noted)
        except ClientGoneError as gone:
            status = _LEFT
            logger.info("%s - %s", shown(scope.get("client")), gone)
        except asyncio.CancelledError:  # the server ends, and will not wait any longer
            logger.info("%s - cut off: --grace is over", shown(scope.get("client")))
            if not has_started:
                await shutting_down().response()(scope, receive, send_noted)
        except Exception:
            logger.warning("the next traceback is of request %s", number)
            raise
        finally:
            route = scope.get("route")
            path = getattr(route, "path", "other")
            self._metrics.answered(path, status, monotonic() - started)
