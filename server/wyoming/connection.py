"""Answers one client: any number of utterances, one after the other."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any, TypeVar

from wyoming.asr import Transcribe, Transcript, TranscriptChunk, TranscriptStart, TranscriptStop
from wyoming.audio import AudioChunk, AudioFormat, AudioStart, AudioStop
from wyoming.error import Error
from wyoming.event import Event, Eventable, async_write_event
from wyoming.info import Describe, Info
from wyoming.ping import Ping, Pong

from whisper_npu import TranscribeKwargs, UsageError, WhisperModel, WhisperNpuError
from whisper_npu.server.logs import shown
from whisper_npu.server.wyoming.config import WyomingConfig
from whisper_npu.server.wyoming.events import (
    BoundedReader,
    ProtocolError,
    audio_format,
    read_event,
)
from whisper_npu.server.wyoming.utterance import LiveUtterance, Utterance, WholeUtterance

logger = logging.getLogger("whisper_npu.server")

T = TypeVar("T")

_MOST_WAITING = 4 << 20  # bytes of audio that wait: half a minute of any usual format
_PATIENCE = 30.0  # seconds for a client to read an answer
_UNREAD_PATIENCE = 5.0  # seconds for a refused client to stop sending


@dataclass(frozen=True)
class Served:
    """What all connections share.

    Attributes:
        model: the model.
        config: of the server.
        info: what the server tells of itself.
        threads: one for each connection.
    """

    model: WhisperModel
    config: WyomingConfig
    info: Info
    threads: Executor


class Connection:
    """A client's connection: any number of utterances, one after the other."""

    def __init__(
        self, served: Served, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._served = served
        self._reader = BoundedReader(reader)
        self._writer = writer
        self._request = Transcribe()
        self._utterance: Utterance | None = None
        self._waiting = bytearray()  # audio that was not heard yet
        self._work: asyncio.Task[None] | None = None  # hears it
        self._client = shown(writer.get_extra_info("peername"))

    async def run(self, until: asyncio.Event, *, is_full: bool = False) -> None:
        """Answer until the client leaves, or `until` is set between two events.

        Args:
            until: set to end.
            is_full: whether there are more connections than allowed: the client is refused.
        """
        logger.info("%s - connected", self._client)
        end = "the server ends"
        try:
            if is_full:
                end = await self._refuse("too many connections; try again", "busy")
                return
            while (event := await self._next(until)) is not None:
                await self._handle(event)
            if not until.is_set():
                end = "the client left"
        except (ProtocolError, UsageError) as error:
            end = await self._refuse(str(error), "bad-request")
        except WhisperNpuError as error:
            end = await self._refuse(str(error), "transcription-failed")
        except asyncio.IncompleteReadError:
            end = "the client left within an event"
        except OSError as error:  # a TimeoutError, too
            end = str(error)
        except Exception:
            logger.exception("%s - a connection failed", self._client)
            end = await self._refuse(
                "the server made a mistake; its log has the cause", "server-error"
            )
        finally:
            await self._drop()
            self._writer.close()
            logger.info("%s - ended: %s", self._client, end)

    async def _next(self, until: asyncio.Event) -> Event | None:
        """The next event; None at the end.

        Raises:
            TimeoutError: the client is silent for too long.
            ProtocolError: it is no event.
        """
        read = asyncio.ensure_future(read_event(self._reader))
        told = asyncio.ensure_future(until.wait())
        try:
            await asyncio.wait(
                {read, told},
                timeout=self._served.config.idle_seconds,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if read.done():
                return read.result()
            if told.done():
                return None
            raise TimeoutError(f"no event for {self._served.config.idle_seconds:g} s")
        finally:
            for each in (read, told):
                each.cancel()
                with suppress(BaseException):
                    await each

    async def _handle(self, event: Event) -> None:
        kind = event.type
        if Describe.is_type(kind):
            await self._write(self._served.info)
        elif Ping.is_type(kind):
            await self._write(Pong(text=Ping.from_event(event).text))
        elif Transcribe.is_type(kind):
            self._request = Transcribe.from_event(event)
        elif AudioStart.is_type(kind):
            await self._begin(audio_format(event))
        elif AudioChunk.is_type(kind):
            if self._utterance is None:
                await self._begin(audio_format(event))
            await self._hear(event.payload or b"")
        elif AudioStop.is_type(kind):
            await self._finish()

    async def _begin(self, format: AudioFormat) -> None:
        await self._drop()
        options = _options(self._request, self._served)
        kind = LiveUtterance if self._served.config.is_live else WholeUtterance
        self._utterance = await self._in_thread(kind, self._served.model, format, options)

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
            limit = self._served.config.audio_seconds
            # Before it is heard: at a low rate, a few bytes become many samples.
            if utterance.seconds + utterance.seconds_of(data) > limit:
                raise ProtocolError(f"more than {limit:g} s of audio; send audio-stop before")
            await self._send(utterance, await self._in_thread(utterance.hear, data))

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
            begun = monotonic()
            await self._send(utterance, await self._in_thread(utterance.finish))
            logger.info(
                "%s - %.1f s of audio; its text came after %.2f s",
                self._client,
                utterance.seconds,
                monotonic() - begun,
            )
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

    async def _send(self, utterance: "Utterance", texts: list[str]) -> None:
        for text in texts:
            if not utterance.is_started:
                utterance.is_started = True
                await self._write(TranscriptStart(language=utterance.language))
            await self._write(TranscriptChunk(text))

    async def _refuse(self, message: str, code: str) -> str:
        """Tell what is wrong, before the end; clients wait for a text or the end.

        Returns:
            the same for the log, without the client's words.
        """
        with suppress(OSError, TimeoutError):
            await self._write(Error(message, code))
            if self._writer.can_write_eof():
                self._writer.write_eof()
            # If a connection is closed with unread data, its client may never see the reason.
            async with asyncio.timeout(_UNREAD_PATIENCE):
                await self._reader.drop()
        return f"refused: {code}"

    async def _write(self, event: Eventable) -> None:
        try:
            async with asyncio.timeout(_PATIENCE):
                await async_write_event(event.event(), self._writer)
        except TimeoutError:
            self._writer.transport.abort()  # a close would wait for the client to read
            raise TimeoutError("the client does not read its answers") from None

    async def _in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._served.threads, work, *arguments)


def _options(request: Transcribe, served: Served) -> TranscribeKwargs:
    """The options of a transcription.

    Raises:
        UsageError: the model does not know the language.
        ProtocolError: another model is asked for, or names are no texts.
    """
    known = served.config.name
    if request.name not in (None, "", known):
        raise ProtocolError(f"there is no model {str(request.name)[:100]!r}; there is {known}")
    # Of too many hotwords the last are used, and names matter more than terms.
    words: list[str] = []
    for given in (request.transcript_terms or [], request.transcript_names or []):
        if not isinstance(given, list) or not all(isinstance(word, str) for word in given):
            raise ProtocolError("transcript_names and transcript_terms are lists of texts")
        words += given
    options: TranscribeKwargs = {"language": request.language or served.config.language}
    if words:
        options["hotwords"] = ", ".join(words)
    served.model.resolve(**options)
    return options
