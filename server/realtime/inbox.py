"""The events of a client that wait for the session's worker."""

import asyncio
import base64
import json
from collections import deque
from typing import Any

from whisper_npu.server.errors import ApiError, bad_request

Event = dict[str, Any]

APPEND = "input_audio_buffer.append"
_MOST_WAITING = 2 << 20  # characters of events that wait for the worker: 30 s of audio at 24 kHz
_MOST_EVENTS = 1000
_NO_EVENT = "invalid_event"


class Inbox:
    """The client's events that wait for the worker; it holds a limited amount."""

    def __init__(self) -> None:
        self._events: deque[tuple[Event | ApiError | None, int]] = deque()
        self._size = 0
        self._changed = asyncio.Condition()

    async def put(self, event: Event | ApiError | None, size: int) -> None:
        """Add an event, an error in the client's place, or None for the end; waits for room."""
        async with self._changed:
            await self._changed.wait_for(
                lambda: self._size < _MOST_WAITING and len(self._events) < _MOST_EVENTS
            )
            self._add(event, size)

    async def end(self) -> None:
        """Drop what waits: the client has left."""
        async with self._changed:
            self._events.clear()
            self._add(None, 0)

    def _add(self, event: Event | ApiError | None, size: int) -> None:
        self._events.append((event, size))
        self._size += size
        self._changed.notify_all()

    async def take(self) -> list[Event | ApiError | None]:
        """The next event, or all audio up to the next event of another kind."""
        async with self._changed:
            await self._changed.wait_for(lambda: bool(self._events))
            taken = [self._take()]
            while _is_audio(taken[-1]) and self._events and _is_audio(self._events[0][0]):
                taken.append(self._take())
            self._changed.notify_all()
            return taken

    def _take(self) -> Event | ApiError | None:
        event, size = self._events.popleft()
        self._size -= size
        return event


def _is_audio(event: Event | ApiError | None) -> bool:
    return isinstance(event, dict) and event["type"] == APPEND


def parsed(text: str | bytes) -> Event | ApiError:
    """A client's event, or what is wrong with it."""
    try:
        event = json.loads(text)
    except (ValueError, RecursionError) as error:
        return bad_request(f"the message is no JSON: {str(error)[:100]}", code="invalid_json")
    if not isinstance(event, dict) or not isinstance(event.get("type"), str):
        return bad_request("the message is no event: an object with a type", "type", _NO_EVENT)
    return event


def audio_of(event: Event) -> bytes:
    """The raw audio of an event.

    Raises:
        ApiError: it is no base64.
    """
    try:
        return base64.b64decode(event["audio"], validate=True)
    except (KeyError, TypeError, ValueError) as error:
        raise bad_request(
            f"audio is no base64: {str(error)[:100]}", "audio", "invalid_value"
        ) from None
