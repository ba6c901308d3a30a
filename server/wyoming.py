"""The Wyoming protocol: speech recognition for Home Assistant and its voice satellites."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import SplitResult, urlsplit

import numpy as np
from wyoming.asr import Transcribe, Transcript, TranscriptChunk, TranscriptStart, TranscriptStop
from wyoming.audio import AudioChunk, AudioFormat, AudioStart, AudioStop
from wyoming.error import Error
from wyoming.event import (
    Event,
    Eventable,
    async_get_stdin,
    async_get_stdout,
    async_read_event,
    async_write_event,
)
from wyoming.info import AsrModel, AsrProgram, Attribution, Describe, Info
from wyoming.ping import Ping, Pong

from whisper_npu import (
    LANGUAGES,
    Committed,
    LiveTranscriber,
    TranscribeKwargs,
    UsageError,
    WhisperModel,
    WhisperNpuError,
    __version__,
)
from whisper_npu.server.pcm import SAMPLE_RATE, Floats, RawAudio

logger = logging.getLogger("whisper_npu.server")

T = TypeVar("T")

DEFAULT_URI = "tcp://127.0.0.1:10300"
_MOST_PAYLOAD = 16 << 20  # bytes of audio or JSON in an event
_MOST_LINE = 64 << 10  # bytes of an event's first line
_MOST_RATE, _MOST_CHANNELS = 192_000, 8
_MOST_WAITING = 4 << 20  # bytes of audio that wait: half a minute of any usual format
_PATIENCE = 30.0  # seconds for a client to read an answer
_UNREAD_PATIENCE = 5.0  # seconds for a refused client to stop sending


@dataclass(frozen=True, kw_only=True)
class WyomingConfig:
    """A Wyoming server's configuration.

    Attributes:
        uri: where it listens: `tcp://HOST:PORT`, `unix://PATH`, or `stdio://` for one client.
        name: the model's name.
        language: the language unless a request names one; None: it is detected.
        is_live: decode while audio arrives. The text comes in parts, and sooner after the end; it
            takes more work, and has a few more errors.
        connections: most connections.
        audio_seconds: longest utterance.
        idle_seconds: longest time without an event of the client.
    """

    uri: str = DEFAULT_URI
    name: str = "whisper"
    language: str | None = None
    is_live: bool = False
    connections: int = 32
    audio_seconds: float = 600.0
    idle_seconds: float = 300.0

    def __post_init__(self) -> None:
        """Refuse a URI that cannot be used.

        Raises:
            UsageError: it cannot.
        """
        parts = self.parts
        try:
            has_port = parts.port is not None
        except ValueError:
            raise UsageError(f"--uri {self.uri}: a port is a number from 0 to 65535") from None
        usable = {
            "tcp": parts.hostname is not None and has_port,
            "unix": bool(parts.path),
            "stdio": True,
        }
        if not usable.get(parts.scheme):
            raise UsageError(f"--uri {self.uri}: give tcp://HOST:PORT, unix://PATH or stdio://")

    @property
    def parts(self) -> SplitResult:
        """The parts of the URI."""
        return urlsplit(self.uri)


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
        self.model = model
        self.config = config
        self.threads = ThreadPoolExecutor(config.connections, thread_name_prefix="wyoming")
        self.address: tuple[str, int] | None = None
        self._parts = config.parts
        self._connections: set[asyncio.Task[None]] = set()
        self.info = _info(model, config)

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
                connection = Connection(self, reader, await async_get_stdout())
                ready()
                await connection.run(until)
                return
            async with self._listening(until):
                ready()
                await until.wait()
            if self._connections:
                await asyncio.wait(self._connections)
        finally:
            self.threads.shutdown()

    @asynccontextmanager
    async def _listening(self, until: asyncio.Event) -> AsyncIterator[None]:
        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._connections.add(task)
            try:
                await Connection(self, reader, writer).run(until)
            finally:
                self._connections.discard(task)

        try:
            if self._parts.scheme == "unix":
                path = Path(self._parts.path)
                path.unlink(missing_ok=True)
                server = await asyncio.start_unix_server(connected, path, limit=_MOST_LINE)
            else:
                where = self._parts.hostname, self._parts.port
                server = await asyncio.start_server(connected, *where, limit=_MOST_LINE)
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
    def is_full(self) -> bool:
        """Whether there are more connections than allowed."""
        return len(self._connections) > self.config.connections


class _BoundedReader:
    """Refuses events that say they are huge, before memory is taken for them.

    Attributes:
        is_at_end: whether the client has sent everything.
    """

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self.is_at_end = False

    async def readline(self) -> bytes:
        line = await self._reader.readline()
        self.is_at_end = not line
        return line

    async def drop(self) -> None:
        """Read to the end, and drop it."""
        while await self._reader.read(_MOST_LINE):
            pass

    async def readexactly(self, n: int) -> bytes:
        if n > _MOST_PAYLOAD:
            raise _ProtocolError(f"an event of {n} bytes; send at most {_MOST_PAYLOAD}")
        return await self._reader.readexactly(n)


class _ProtocolError(Exception):
    """A client sent something that is no event, or no audio."""


class Connection:
    """A client's connection: any number of utterances, one after the other."""

    def __init__(
        self, server: WyomingServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._server = server
        self._reader = _BoundedReader(reader)
        self._writer = writer
        self._request = Transcribe()
        self._utterance: _Utterance | None = None
        self._waiting = bytearray()  # audio that was not heard yet
        self._work: asyncio.Task[None] | None = None  # hears it

    async def run(self, until: asyncio.Event) -> None:
        """Answer until the client leaves, or `until` is set between two events."""
        try:
            if self._server.is_full:
                await self._refuse("too many connections; try again", "busy")
                return
            while (event := await self._next(until)) is not None:
                await self._handle(event)
        except (_ProtocolError, UsageError) as error:
            await self._refuse(str(error), "bad-request")
        except WhisperNpuError as error:
            await self._refuse(str(error), "transcription-failed")
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            logger.debug("a client left")
        except Exception:
            logger.exception("a connection failed")
            await self._refuse("the server made a mistake; its log has the cause", "server-error")
        finally:
            await self._drop()
            self._writer.close()

    async def _next(self, until: asyncio.Event) -> Event | None:
        """The next event; None at the end.

        Raises:
            TimeoutError: the client is silent for too long.
            _ProtocolError: it is no event.
        """
        read = asyncio.ensure_future(_read(self._reader))
        told = asyncio.ensure_future(until.wait())
        try:
            await asyncio.wait(
                {read, told},
                timeout=self._server.config.idle_seconds,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if read.done():
                return read.result()
            if told.done():
                return None
            raise TimeoutError
        finally:
            for each in (read, told):
                each.cancel()
                with suppress(BaseException):
                    await each

    async def _handle(self, event: Event) -> None:
        kind = event.type
        if Describe.is_type(kind):
            await self._write(self._server.info)
        elif Ping.is_type(kind):
            await self._write(Pong(text=Ping.from_event(event).text))
        elif Transcribe.is_type(kind):
            self._request = Transcribe.from_event(event)
        elif AudioStart.is_type(kind):
            await self._begin(_format(event))
        elif AudioChunk.is_type(kind):
            if self._utterance is None:
                await self._begin(_format(event))
            await self._hear(event.payload or b"")
        elif AudioStop.is_type(kind):
            await self._finish()

    async def _begin(self, format: AudioFormat) -> None:
        await self._drop()
        options = _options(self._request, self._server)
        kind = _LiveUtterance if self._server.config.is_live else _WholeUtterance
        self._utterance = await self._in_thread(kind, self._server.model, format, options)

    async def _hear(self, data: bytes) -> None:
        """Take audio; a decoding gets all that came during the last one."""
        self._waiting += data
        if self._work is not None and (self._work.done() or len(self._waiting) > _MOST_WAITING):
            await self._settle()
        if self._work is None:
            self._work = asyncio.create_task(self._catch_up())

    async def _catch_up(self) -> None:
        utterance = self._utterance
        while utterance is not None and self._waiting:
            data, self._waiting = bytes(self._waiting), bytearray()
            await self._send(utterance, await self._in_thread(utterance.hear, data))
            limit = self._server.config.audio_seconds
            if utterance.seconds > limit:
                raise _ProtocolError(f"more than {limit:g} s of audio; send audio-stop before")

    async def _settle(self) -> None:
        """Wait until all audio is heard."""
        work, self._work = self._work, None
        if work is not None:
            await work

    async def _finish(self) -> None:
        await self._settle()
        utterance, self._utterance = self._utterance, None
        request, self._request = self._request, Transcribe()
        text, language, is_started = "", request.language, False
        if utterance is not None:
            await self._send(utterance, await self._in_thread(utterance.finish))
            text, language = utterance.text, utterance.language
            is_started = utterance.is_started
        if not is_started:
            await self._write(TranscriptStart(language=language))
        await self._write(Transcript(text=text, language=language))
        await self._write(TranscriptStop())

    async def _drop(self) -> None:
        """Leave the utterance that is not finished."""
        utterance, self._utterance = self._utterance, None
        self._waiting.clear()
        with suppress(Exception):  # told already, or nobody waits for it
            await self._settle()
        if utterance is not None:
            utterance.close()

    async def _send(self, utterance: "_Utterance", texts: list[str]) -> None:
        for text in texts:
            if not utterance.is_started:
                utterance.is_started = True
                await self._write(TranscriptStart(language=utterance.language))
            await self._write(TranscriptChunk(text))

    async def _refuse(self, message: str, code: str) -> None:
        """Tell what is wrong, and end the connection: clients wait for a text or the end."""
        logger.warning("a client was refused: %s", message)
        with suppress(OSError, TimeoutError):
            await self._write(Error(message, code))
            if self._writer.can_write_eof():
                self._writer.write_eof()
            # If a connection is closed with unread data, its client may never see the reason.
            async with asyncio.timeout(_UNREAD_PATIENCE):
                await self._reader.drop()

    async def _write(self, event: Eventable) -> None:
        try:
            async with asyncio.timeout(_PATIENCE):
                await async_write_event(event.event(), self._writer)
        except TimeoutError:
            self._writer.transport.abort()  # a close would wait for the client to read
            raise

    async def _in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._server.threads, work, *arguments)


class _Utterance:
    """Audio up to `audio-stop`, and its text.

    Attributes:
        text: the text so far.
        language: code of its language, once it is known.
        seconds: seconds of audio.
        is_started: whether a part of the text was sent.
    """

    def __init__(self, model: WhisperModel, format: AudioFormat, options: TranscribeKwargs) -> None:
        self._model = model
        self._options = options
        self._raw = RawAudio(format.rate, width=format.width, channels=format.channels)
        self.text = ""
        self.language: str | None = options.get("language")
        self.seconds = 0.0
        self.is_started = False

    def hear(self, data: bytes) -> list[str]:
        """Take raw samples; returns the text that is final."""
        samples = self._raw.push(data)
        self.seconds += len(samples) / SAMPLE_RATE
        return self._take(samples)

    def finish(self) -> list[str]:
        """Returns the rest of the text."""
        return [*self._take(self._raw.end()), *self._end()]

    def close(self) -> None:
        """Stop working."""

    def _take(self, samples: Floats) -> list[str]:
        raise NotImplementedError

    def _end(self) -> list[str]:
        raise NotImplementedError

    def _add(self, text: str, language: str) -> list[str]:
        """Add final text; returns what is to be sent: the parts, joined, are the text."""
        text = text if self.text else text.lstrip()
        self.text += text
        self.language = language
        return [text] if text else []


class _WholeUtterance(_Utterance):
    """Is decoded at its end, which gives the best text."""

    def __init__(self, model: WhisperModel, format: AudioFormat, options: TranscribeKwargs) -> None:
        super().__init__(model, format, options)
        self._pieces: list[Floats] = []

    def _take(self, samples: Floats) -> list[str]:
        self._pieces.append(samples)
        return []

    def _end(self) -> list[str]:
        samples = np.concatenate(self._pieces)
        if not len(samples):
            return []
        result = self._model.transcribe(samples, **self._options).result()
        return self._add(result.text, result.language)


class _LiveUtterance(_Utterance):
    """Is decoded while it arrives."""

    def __init__(self, model: WhisperModel, format: AudioFormat, options: TranscribeKwargs) -> None:
        super().__init__(model, format, options)
        self._live = LiveTranscriber(model, **options)

    def close(self) -> None:
        self._live.close()

    def _take(self, samples: Floats) -> list[str]:
        return self._shown(self._live.feed(samples))

    def _end(self) -> list[str]:
        return self._shown(self._live.finish())

    def _shown(self, updates: list[Any]) -> list[str]:
        return [
            part
            for update in updates
            if isinstance(update, Committed)
            for part in self._add(update.text, update.language)
        ]


async def _read(reader: _BoundedReader) -> Event | None:
    """The next event; None at the end.

    Raises:
        _ProtocolError: it is no event.
    """
    try:
        event = await async_read_event(reader)  # type: ignore[arg-type]
    except (AttributeError, KeyError, TypeError, RecursionError) as error:
        raise _ProtocolError(f"this is no event: {error!r}") from None
    if event is None and not reader.is_at_end:
        raise _ProtocolError("this is no event: a line of JSON, then its data and its audio")
    return event


def _format(event: Event) -> AudioFormat:
    """The format of audio.

    Raises:
        _ProtocolError: it cannot be read.
    """
    wanted = {"rate": _MOST_RATE, "width": 4, "channels": _MOST_CHANNELS}
    for name, most in wanted.items():
        value = event.data.get(name)
        if not isinstance(value, int) or not 1 <= value <= most:
            raise _ProtocolError(f"audio with {name} {str(value)[:20]!r}: give 1 to {most}")
    return AudioFormat(*(event.data[name] for name in wanted))


def _options(request: Transcribe, server: WyomingServer) -> TranscribeKwargs:
    """The options of a transcription.

    Raises:
        UsageError: the model does not know the language.
        _ProtocolError: another model is asked for, or names are no texts.
    """
    known = server.config.name
    if request.name not in (None, "", known):
        raise _ProtocolError(f"there is no model {str(request.name)[:100]!r}; there is {known}")
    # Of too many hotwords the last are used, and names matter more than terms.
    words: list[str] = []
    for given in (request.transcript_terms or [], request.transcript_names or []):
        if not isinstance(given, list) or not all(isinstance(word, str) for word in given):
            raise _ProtocolError("transcript_names and transcript_terms are lists of texts")
        words += given
    options: TranscribeKwargs = {"language": request.language or server.config.language}
    if words:
        options["hotwords"] = ", ".join(words)
    server.model.resolve(**options)
    return options


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
