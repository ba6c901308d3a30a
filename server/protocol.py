"""HTTP/1.1 with an end to every wait for a caller."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

# Seconds. A connection that is closed politely may still wait for its caller to read: "farewell".
_PATIENCE = {"head": 15.0, "unneeded body": 5.0, "farewell": 5.0, "unread answer": 20.0}


class PatientProtocol(H11Protocol):
    """Closes connections that uvicorn would leave open for ever.

    uvicorn limits the time between two requests, but neither the time before the first one nor that
    of a head that arrives byte by byte. And after it has refused a request early, it reads to the
    end of the body. That reading is needed for a while: if a connection is closed with unread data,
    its caller may never see the answer. Nor does it limit the time in which a caller reads an
    answer; even a connection that it has closed stays until the caller has read what waits.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._timer: asyncio.TimerHandle | None = None
        self._awaited: str | None = None
        self._unread_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """See `H11Protocol`."""
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`."""
        super().pause_writing()
        self._stop_unread_timer()
        patience = _PATIENCE["unread answer"]
        self._unread_timer = self.loop.call_later(patience, self.transport.abort)

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._stop_unread_timer()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._wait_for(None)
        self._stop_unread_timer()
        super().connection_lost(exc)

    def _watch(self) -> None:
        state = self.conn.their_state
        if self.transport.get_protocol() is not self:
            self._wait_for(None)  # the connection has become a WebSocket
        elif self.transport.is_closing():
            self._wait_for("farewell")
        elif state is h11.IDLE:
            self._wait_for("head")
        elif state is h11.SEND_BODY and self.cycle.response_complete:
            self._wait_for("unneeded body")
        else:
            self._wait_for(None)

    def _wait_for(self, awaited: str | None) -> None:
        """Let the timer run for what the caller has to send; an earlier timer for it goes on."""
        if awaited == self._awaited:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._awaited = awaited
        self._timer = None
        if awaited == "farewell":
            self._timer = self.loop.call_later(_PATIENCE[awaited], self.transport.abort)
        elif awaited is not None:
            self._timer = self.loop.call_later(_PATIENCE[awaited], self._close)

    def _close(self) -> None:
        self.transport.close()
        self._wait_for("farewell")

    def _stop_unread_timer(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None
