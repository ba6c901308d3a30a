"""What a supervisor asks: `/health` and `/metrics`."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import JSONResponse, Response

from whisper_npu import WhisperNpuError
from whisper_npu.server.authentication import KEY
from whisper_npu.server.documentation import errors
from whisper_npu.server.models import ServedModel
from whisper_npu.server.service import service_of

router = APIRouter(tags=["health"])

_FRESH = 5.0  # seconds in which a check counts for further callers


@dataclass
class _Check:
    """The last check of a model."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    at: float = float("-inf")
    seconds: float | None = None


@router.get(
    "/health",
    summary="Decode a second of audio with every model",
    response_class=JSONResponse,
    responses={503: {"description": "A model is being loaded, or failed"}},
)
async def health(request: Request) -> Response:
    """Status 200 if every model has just decoded a second of audio, else 503.

    A result counts for five seconds, so that nobody can keep the device busy by asking. A model
    whose device failed is tried again, and used again once this succeeds.
    """
    checks: dict[str, _Check] = request.app.state.checks
    models = {
        served.name: await _state(served, checks.setdefault(served.name, _Check()))
        for served in service_of(request).models.all
    }
    states = {model["state"] for model in models.values()}
    worst = next(state for state in ("failed", "loading", "ready") if state in states)
    body = {"status": "ok" if worst == "ready" else worst, "models": models}
    return JSONResponse(body, 200 if worst == "ready" else 503)


async def _state(served: ServedModel, check: _Check) -> dict[str, Any]:
    if served.loaded is not None and served.state != "loading":
        async with check.lock:
            if monotonic() - check.at > _FRESH:
                check.seconds = None
                with suppress(WhisperNpuError):  # `served.error` has it
                    check.seconds = await asyncio.to_thread(served.check)
                check.at = monotonic()
    state: dict[str, Any] = {"state": served.state}
    if served.loaded is not None:
        backend = served.loaded.backend
        state |= {"device": backend.device, "precision": backend.precision}
    if served.state == "ready" and check.seconds is not None:
        state["decoded_in"] = round(check.seconds, 4)
    if served.error is not None:
        state["error"] = served.error
    return state


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}}, **errors(401)},
    dependencies=list(KEY),
)
async def metrics(request: Request) -> Response:
    """Requests, seconds of audio, queue, times by stage, batches, models."""
    content = generate_latest(service_of(request).metrics.registry)
    return Response(content, headers={"Content-Type": CONTENT_TYPE_LATEST})
