"""Puts a server together. A router is a module with a `router`, and a line in `ROUTERS`."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException

from whisper_npu import WhisperNpuError, __version__
from whisper_npu.server import api_audio, api_health, api_models, api_page
from whisper_npu.server.config import ServerConfig
from whisper_npu.server.documentation import complete
from whisper_npu.server.errors import (
    ApiError,
    answer_any_error,
    answer_api_error,
    answer_http_error,
)
from whisper_npu.server.realtime import router as realtime
from whisper_npu.server.records import RequestRecords
from whisper_npu.server.service import Service

logger = logging.getLogger("whisper_npu.server")

ROUTERS = (
    api_audio.router,
    api_models.router,
    api_health.router,
    api_page.router,
    realtime.router,
)


def create_app(
    config: ServerConfig, on_fatal: Callable[[WhisperNpuError], None] | None = None
) -> FastAPI:
    """The server as an ASGI application; it loads its models once it has started.

    Args:
        config: the configuration.
        on_fatal: called from another thread if a model cannot be loaded.
    """
    service = Service(config)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        # Writes uploads and stops transcriptions: neither should wait for others of its kind.
        n_helpers = config.limits.active + config.limits.uploads
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(n_helpers))
        service.models.load_in_background(config, on_fatal or (lambda _: None))
        try:
            yield
        finally:
            # Not in the loop's thread: requests that are given up have an answer to send.
            await asyncio.to_thread(service.close)

    app = FastAPIOffline(
        title="whisper-npu",
        version=__version__,
        description="Speech recognition with OpenAI's audio API.",
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service = service
    app.state.checks = {}
    for router in ROUTERS:
        app.include_router(router)
    app.add_exception_handler(ApiError, answer_api_error)
    app.add_exception_handler(HTTPException, answer_http_error)
    app.add_exception_handler(Exception, answer_any_error)
    app.add_middleware(RequestRecords, metrics=service.metrics)
    _complete_document(app, service)
    return app


def _complete_document(app: FastAPI, service: Service) -> None:
    """Let the application complete its OpenAPI document when it is first asked for."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            has_key = service.config.api_key is not None
            complete(generate(), service.models.names, has_key=has_key)
        return generate()  # the same document, which the application keeps

    app.openapi = openapi  # type: ignore[method-assign]
