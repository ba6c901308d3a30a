"""WebSockets with an end to every wait for a client."""

import asyncio
import logging
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from whisper_npu.server.logs import shown

logger = logging.getLogger("whisper_npu.server")

SLOW = 1008  # the code of a client that breaks a rule, here: read what it asked for
_WHY = "the client does not read: its answers wait for too long"


class PatientWebSocket(WebSocketsSansIOProtocol):
    """Closes the connection of a client that does not read.

    While the answers wait, the application waits too, so they take no more memory than the system's
    and the transport's buffers. uvicorn alone would wait for ever, even to close the connection.
    """

    patience = 10.0  # seconds to read what waits; then as many again to read the reason

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._timer: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`."""
        super().pause_writing()
        self._after_patience(self._give_up)

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        if not self.disconnected:
            self._stop_timer()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._stop_timer()
        super().connection_lost(exc)

    def keepalive_timeout(self) -> None:
        """Wait on while the client's audio is not read: its answer to a ping is behind it."""
        if self.read_paused and self.ping_timeout is not None:
            self.pong_timer = self.loop.call_later(self.ping_timeout, self.keepalive_timeout)
        else:
            super().keepalive_timeout()

    def _give_up(self) -> None:
        """Send the reason after what waits, and let the application go on to its end."""
        logger.info("%s - the client does not read: its connection is closed", shown(self.client))
        self.stop_keepalive()
        self.conn.fail(SLOW, _WHY)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = self.disconnected = True
        self.queue.put_nowait({"type": "websocket.disconnect", "code": SLOW, "reason": _WHY})
        self.writable.set()
        self.transport.close()
        self._after_patience(self.transport.abort)

    def _after_patience(self, action: Any) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(self.patience, action)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
