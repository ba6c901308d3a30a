"""Reads a client's events, and refuses what is no event before memory is taken for it."""

import asyncio

from wyoming.audio import AudioFormat
from wyoming.event import Event, async_read_event

MOST_LINE = 64 << 10  # bytes of an event's first line
_MOST_PAYLOAD = 16 << 20  # bytes of audio or JSON in an event
_MOST_RATE, _MOST_CHANNELS = 192_000, 8


class ProtocolError(Exception):
    """A client sent something that is no event, or no audio."""


class BoundedReader:
    """Refuses events that say they are huge, before memory is taken for them.

    Attributes:
        is_at_end: whether the client has sent everything.
    """

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self.is_at_end = False

    async def readline(self) -> bytes:
        """The first line of an event; empty at the end."""
        line = await self._reader.readline()
        self.is_at_end = not line
        return line

    async def drop(self) -> None:
        """Read to the end, and drop it."""
        while await self._reader.read(MOST_LINE):
            pass

    async def readexactly(self, n: int) -> bytes:
        """The next bytes.

        Raises:
            ProtocolError: they are too many.
        """
        if n > _MOST_PAYLOAD:
            raise ProtocolError(f"an event of {n} bytes; send at most {_MOST_PAYLOAD}")
        return await self._reader.readexactly(n)


async def read_event(reader: BoundedReader) -> Event | None:
    """The next event; None at the end.

    Raises:
        ProtocolError: it is no event.
    """
    try:
        event = await async_read_event(reader)  # type: ignore[arg-type]
    except (AttributeError, KeyError, TypeError, RecursionError) as error:
        raise ProtocolError(f"this is no event: {error!r}") from None
    if event is None and not reader.is_at_end:
        raise ProtocolError("this is no event: a line of JSON, then its data and its audio")
    return event


def audio_format(event: Event) -> AudioFormat:
    """The format of audio.

    Raises:
        ProtocolError: it cannot be read.
    """
    wanted = {"rate": _MOST_RATE, "width": 4, "channels": _MOST_CHANNELS}
    for name, most in wanted.items():
        value = event.data.get(name)
        if not isinstance(value, int) or not 1 <= value <= most:
            raise ProtocolError(f"audio with {name} {str(value)[:20]!r}: give 1 to {most}")
    return AudioFormat(*(event.data[name] for name in wanted))
