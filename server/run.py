"""Runs a server until it is told to end."""

import copy
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.config import LOGGING_CONFIG
from uvicorn.server import HANDLED_SIGNALS

from whisper_npu import UsageError, WhisperNpuError
from whisper_npu.server.app import create_app
from whisper_npu.server.config import ServerConfig
from whisper_npu.server.logs import DATE, TIMED
from whisper_npu.server.protocol import PatientProtocol
from whisper_npu.server.websocket import PatientWebSocket

_LOOPBACK_OF = {"0.0.0.0": "127.0.0.1", "::": "::1"}
_TLS_FILES = ("ssl_certfile", "ssl_keyfile")
_INTERRUPTED = 130  # the exit code
_BACKLOG = 2048  # connections that the system holds until they are accepted


@dataclass(frozen=True, kw_only=True)
class Listener:
    """Where a server listens.

    Attributes:
        host: an address or a name of this machine.
        port: a port; 0 takes a free one.
        tls: uvicorn's options for TLS: `ssl_certfile`, `ssl_keyfile`, `ssl_keyfile_password`.
        grace: seconds that requests have to end once the server was told to.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    tls: dict[str, Any]
    grace: int = 60

    def __post_init__(self) -> None:
        """Refuse a time that cannot pass.

        Raises:
            UsageError: it is below 0.
        """
        if self.grace < 0:
            raise UsageError(f"grace is {self.grace}; give seconds, 0 or more")


class Server(uvicorn.Server):
    """A server that ends by itself if a model cannot be loaded.

    Attributes:
        app: the application.
        error: why it ended by itself; None if it was told to end.
        address: where this machine reaches it, such as `http://127.0.0.1:8000`.
        is_everywhere: whether it listens on every address of this machine.
    """

    def __init__(self, config: ServerConfig, listener: Listener, log_level: str = "info") -> None:
        self.error: WhisperNpuError | None = None
        self.app = create_app(config, on_fatal=self._fail)
        try:
            super().__init__(
                uvicorn.Config(
                    self.app,
                    http=PatientProtocol,
                    ws=PatientWebSocket,
                    log_config=_logging(log_level),
                    log_level=log_level,
                    server_header=False,
                    timeout_graceful_shutdown=listener.grace,
                    **listener.tls,
                )
            )
            self.config.load()  # reads the certificate
        except (OSError, ValueError) as error:
            files = [str(listener.tls[name]) for name in _TLS_FILES if name in listener.tls]
            raise UsageError(f"TLS cannot be used with {' and '.join(files)}: {error}") from error
        self._socket = _listen(listener)
        host, port = self._socket.getsockname()[:2]
        self.is_everywhere = host in _LOOPBACK_OF
        host = _LOOPBACK_OF.get(host, host)
        shown = f"[{host}]" if ":" in host else host
        self.address = f"{'https' if self.config.is_ssl else 'http'}://{shown}:{port}"

    def serve_until_told(self) -> None:
        """Serve until a signal, or `should_exit`; requests that have begun are finished.

        Raises:
            WhisperNpuError: a model cannot be loaded.
        """
        _allow_many_connections()
        try:
            self.run(sockets=[self._socket])
        finally:
            self._socket.close()
        if self.error is not None:
            raise self.error

    def _fail(self, error: WhisperNpuError) -> None:
        self.error = error
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End after the requests that have begun; at a second Ctrl-C at once.

        No upload has a name, so the system removes it. What an export or the cache has begun to
        write is removed at the next start, as after any kill.
        """
        if self.should_exit and sig == signal.SIGINT:
            os._exit(_INTERRUPTED)
        super().handle_exit(sig, frame)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals during the block; uvicorn would raise them again after it."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in HANDLED_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _listen(listener: Listener) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            listener.host, listener.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # asyncio sends small answers at once only if the socket names its protocol; the system
        # would hold them back for 40 ms.
        opened = socket.socket(family, kind, protocol)
        try:
            if sys.platform != "win32":  # there it would let two servers take one port
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind(address)
            opened.listen(_BACKLOG)
        except OSError:
            opened.close()
            raise
    except OSError as error:
        raise UsageError(
            f"cannot listen on {listener.host}:{listener.port}: {error.strerror or error}; "
            "choose another --host or --port"
        ) from error
    return opened


def _allow_many_connections() -> None:
    """Let the process have as many open files as the system allows: each connection is one."""
    if sys.platform == "win32":
        return
    import resource  # noqa: PLC0415 - not on Windows

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _logging(level: str) -> dict[str, Any]:
    """Uvicorn's logging, with times and this package's messages; all on standard error."""
    logging = copy.deepcopy(LOGGING_CONFIG)
    for formatter in logging["formatters"].values():
        formatter |= {"fmt": TIMED + formatter["fmt"], "datefmt": DATE}
    logging["handlers"]["access"]["stream"] = "ext://sys.stderr"
    logging["loggers"]["whisper_npu"] = {"handlers": ["default"], "level": level.upper()}
    logging["loggers"]["asyncio"] = {"handlers": ["default"], "level": "WARNING"}
    # The caller learns what is wrong with its body; it should not fill the log as well.
    logging["loggers"]["python_multipart"] = {"level": "CRITICAL"}
    return logging
