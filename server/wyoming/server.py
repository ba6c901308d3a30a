"""Listens for Wyoming clients, and ends when told."""

import asyncio
import errno
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from wyoming.event import async_get_stdin, async_get_stdout
from wyoming.info import AsrModel, AsrProgram, Attribution, Info

from whisper_npu import LANGUAGES, UsageError, WhisperModel, __version__
from whisper_npu.server.wyoming.config import WyomingConfig
from whisper_npu.server.wyoming.connection import Connection, Served
from whisper_npu.server.wyoming.events import MOST_LINE

logger = logging.getLogger("whisper_npu.server")


class WyomingServer:
    """Serves one model.

    Attributes:
        address: host and port where it listens, once it does; None for other URIs.
    """

    def __init__(self, model: WhisperModel, config: WyomingConfig) -> None:
        """Listen to nobody yet.

        Raises:
            UsageError: the model does not know the language.
        """
        model.resolve(language=config.language)
        self.config = config
        self._threads = ThreadPoolExecutor(config.connections, thread_name_prefix="wyoming")
        self._served = Served(model, config, _info(model, config), self._threads)
        self.address: tuple[str, int] | None = None
        self._parts = config.parts
        self._connections: set[asyncio.Task[None]] = set()

    async def serve(self, until: asyncio.Event, ready: Callable[[], None]) -> None:
        """Serve until told; an utterance that is being decoded is finished.

        Args:
            until: set to end.
            ready: called once clients can connect.

        Raises:
            UsageError: the address cannot be used.
        """
        try:
            if self._parts.scheme == "stdio":
                reader = await async_get_stdin()
                connection = Connection(self._served, reader, await async_get_stdout())
                ready()
                await connection.run(until)
                return
            async with self._listening(until):
                ready()
                await until.wait()
            logger.info("the server ends; connections: %d", len(self._connections))
            if self._connections:
                await asyncio.wait(self._connections)
        finally:
            self._threads.shutdown()

    @asynccontextmanager
    async def _listening(self, until: asyncio.Event) -> AsyncIterator[None]:
        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._connections.add(task)
            try:
                await Connection(self._served, reader, writer).run(until, is_full=self._is_full)
            finally:
                self._connections.discard(task)

        try:
            if self._parts.scheme == "unix":
                path = Path(self._parts.path)
                _refuse_if_in_use(path)  # asyncio removes a socket that is left, and nothing else
                server = await asyncio.start_unix_server(connected, path, limit=MOST_LINE)
            else:
                where = self._parts.hostname, self._parts.port
                server = await asyncio.start_server(connected, *where, limit=MOST_LINE)
                self.address = server.sockets[0].getsockname()[:2]
        except OSError as error:
            raise UsageError(
                f"cannot listen on {self.config.uri}: {error.strerror or error}; choose another "
                "--uri"
            ) from error
        try:
            yield
        finally:
            server.close()
            if self._parts.scheme == "unix":
                Path(self._parts.path).unlink(missing_ok=True)

    @property
    def shown_uri(self) -> str:
        """The URI where clients find it."""
        if self.address is None:
            return self.config.uri
        host, port = self.address
        return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"

    @property
    def _is_full(self) -> bool:
        """Whether there are more connections than allowed."""
        return len(self._connections) > self.config.connections


def _refuse_if_in_use(path: Path) -> None:
    """Refuse the socket of a server that runs; asyncio would take it away.

    Raises:
        OSError: a server listens on it.
    """
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _info(model: WhisperModel, config: WyomingConfig) -> Info:
    served = AsrModel(
        name=config.name,
        description=f"{config.name} on {model.backend.device} in {model.backend.precision}",
        attribution=Attribution("OpenAI", "https://github.com/openai/whisper"),
        installed=True,
        version=None,
        languages=_languages(model),
    )
    program = AsrProgram(
        name="whisper-npu",
        description="Whisper with OpenVINO",
        attribution=Attribution("whisper-npu", ""),
        installed=True,
        version=__version__,
        models=[served],
        supports_transcript_streaming=True,
        requires_external_vad=True,
    )
    return Info(asr=[program])


def _languages(model: WhisperModel) -> list[str]:
    """Codes of the languages that the model transcribes."""
    if not model.is_multilingual:
        return ["en"]
    known = []
    for code in LANGUAGES:
        with suppress(UsageError):
            model.resolve(language=code)
            known.append(code)
    return known
