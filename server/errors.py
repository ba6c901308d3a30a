"""Errors in the shape of OpenAI's API, with the status that the official client knows."""

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, Response

from whisper_npu import (
    AudioError,
    DeviceError,
    GibberishError,
    ModelError,
    UsageError,
)
from whisper_npu.server.logs import shown

logger = logging.getLogger("whisper_npu.server")

_INVALID = "invalid_request_error"
_MOST_NAME = 40  # characters of a field's name in the log; a client may send any


class ApiError(Exception):
    """An answer with an error.

    Attributes:
        status: the HTTP status.
        message: for the caller, in one line.
        kind: `type` of OpenAI's error object.
        code: `code` of OpenAI's error object.
        param: the field of the request that is wrong.
        headers: further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = _INVALID,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.code = code
        self.param = param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The error as OpenAI's JSON."""
        error = {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }
        return {"error": error}

    def response(self) -> Response:
        """The answer."""
        return JSONResponse(self.body(), self.status, headers=self.headers)


class ClientGoneError(Exception):
    """The caller closed the connection, or does not read: nobody waits for an answer."""

    def __init__(self, reason: str = "left before the end of its answer") -> None:
        super().__init__(reason)


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A request that can never succeed."""
    return ApiError(400, message, param=param, code=code)


def busy(message: str, retry_after: int) -> ApiError:
    """Too many requests at the moment."""
    return ApiError(
        429,
        message,
        kind="rate_limit_error",
        code="queue_full",
        headers={"Retry-After": str(retry_after)},
    )


def unavailable(message: str, code: str, retry_after: int = 5) -> ApiError:
    """The model cannot be used at the moment."""
    return ApiError(
        503,
        message,
        kind="server_error",
        code=code,
        headers={"Retry-After": str(retry_after)},
    )


def shutting_down() -> ApiError:
    """The server ends, and waits for no request any longer."""
    return unavailable("the server ends; send the request again later", "shutting_down")


def from_transcription(error: Exception) -> ApiError | None:
    """The answer for an error of a transcription; None for an error of the program."""
    message = str(error)
    match error:
        case ApiError():
            known = error
        case GibberishError():
            known = ApiError(422, message, param="file", code="gibberish")
        case AudioError():
            known = ApiError(415, message, param="file", code="unsupported_audio")
        case DeviceError():
            known = unavailable(message, "device_failed", retry_after=30)
        case ModelError():
            known = unavailable(message, "model_failed", retry_after=30)
        case UsageError():
            known = bad_request(message)
        case MemoryError():
            message = "the server has no memory left for this request"
            known = unavailable(message, "out_of_memory", retry_after=30)
        case _:
            return None
    return known


def server_error() -> ApiError:
    """An error of the program; its cause is in the server's log, not in the answer."""
    return ApiError(
        500,
        "the server made a mistake; its log has the cause, under this answer's x-request-id",
        kind="server_error",
        code="internal_error",
    )


async def answer_api_error(connection: HTTPConnection, error: Exception) -> Response:
    """Answer an `ApiError`."""
    if not isinstance(error, ApiError):
        raise error
    log_refusal(connection.client, error)
    return error.response()


def log_refusal(client: object, error: ApiError) -> None:
    """Log why a client is refused: not the message, which may name the file."""
    where = f", field {error.param[:_MOST_NAME]!r}" if error.param else ""
    reason = error.code or error.kind
    logger.info("%s - refused: %d %s%s", shown(client), error.status, reason, where)


async def answer_http_error(request: Request, error: Exception) -> Response:
    """Answer the framework's own errors: an unknown address, or a wrong method."""
    if not isinstance(error, HTTPException):
        raise error
    where = f"{request.method} {request.url.path}"
    message, code = error.detail, None
    if error.status_code == 404:
        message, code = f"unknown request URL: {where}; /docs lists what there is", "unknown_url"
    elif error.status_code == 405:
        message, code = f"{where}: the method is not allowed; see /docs", "method_not_allowed"
    wrong = ApiError(error.status_code, message, code=code, headers=error.headers)
    log_refusal(request.client, wrong)
    return wrong.response()


async def answer_any_error(_request: Request, _error: Exception) -> Response:
    """Answer an error of the program; the framework logs it."""
    return server_error().response()
