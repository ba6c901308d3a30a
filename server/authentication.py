"""The API key: `Authorization: Bearer KEY`, as OpenAI's clients send it."""

import hashlib
import hmac
from typing import Annotated

from fastapi import Depends
from fastapi.security import HTTPBearer
from starlette.requests import HTTPConnection

from whisper_npu.server.errors import ApiError
from whisper_npu.server.service import service_of

_SCHEME = "bearer"


def require_key(connection: HTTPConnection) -> None:
    """Let only requests with the server's key pass, if it has one.

    Raises:
        ApiError: the key is missing or wrong.
    """
    key = service_of(connection).config.api_key
    if key is None:
        return
    scheme, _, given = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() == _SCHEME and _same(given.strip(), key):
        return
    raise ApiError(
        401,
        "the API key is wrong" if given else "send the API key: Authorization: Bearer KEY",
        code="invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )


def _same(given: str, key: str) -> bool:
    """Whether two keys are equal; the time tells neither where they differ nor their length."""
    digests = (hashlib.sha256(text.encode()).digest() for text in (given, key))
    return hmac.compare_digest(*digests)


def _documented(
    _: Annotated[object, Depends(HTTPBearer(auto_error=False, description="The API key"))],
) -> None:
    """Lets `/docs` ask for the key."""


# For every router that needs the key. It is checked before the body is read.
KEY = (Depends(require_key), Depends(_documented))
