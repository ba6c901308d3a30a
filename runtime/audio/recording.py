"""Opens one or several decoders on a recording of any source."""

import io
import os
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import IO, Any, BinaryIO, Protocol, TypeAlias, cast

import numpy.typing as npt

from whisper_npu.errors import AudioError, AudioInputError, UsageError
from whisper_npu.runtime.audio.array_audio import ArrayDecoder, SupportsArray
from whisper_npu.runtime.audio.decoders import open_decoder
from whisper_npu.runtime.audio.paths import open_path, spool
from whisper_npu.runtime.audio.pitch import sounds_slowed
from whisper_npu.runtime.audio.sample_scale import SampleScale
from whisper_npu.runtime.audio.shared_file import SharedFile
from whisper_npu.runtime.audio.source import HIGHEST_RATE, LOWEST_RATE, SAMPLE_RATE, RefusedError
from whisper_npu.runtime.audio.tracks import TrackDecoder
from whisper_npu.runtime.audio_choices import TrackChoice
from whisper_npu.runtime.closing import Closing

AudioSource: TypeAlias = (
    str
    | os.PathLike[str]
    | bytes
    | bytearray
    | memoryview
    | IO[bytes]
    | npt.NDArray[Any]
    | SupportsArray
)

_SLOWED = (
    f"voices sound slowed down: the samples were taken as of {SAMPLE_RATE} Hz; if they have another"
    " rate, give it as sample_rate"
)


class Closable(Protocol):
    """An object that holds a resource."""

    def close(self) -> None:
        """Release the resource; a second call does nothing."""
        ...


@dataclass
class OpenedTrack:
    """A decoder at the start of a track.

    Attributes:
        name: The name of the recording in messages.
        decoder: Decodes the track.
        file: To be closed with the decoder; None if the file is the caller's.
        warnings: Warnings about the file so far.
        scale: The scale of the samples, as far as it is known.
    """

    name: str
    decoder: TrackDecoder
    file: Closable | None
    warnings: list[str]
    scale: SampleScale

    def close(self) -> None:
        """Free the decoder and the file."""
        self.decoder.close()
        if self.file is not None:
            self.file.close()


class Recording(Closing):
    """A recording whose tracks can be opened; as a context manager, closed after an error.

    Args:
        source: See `open_audio`.
        sample_rate: See `open_audio`.
        shared: Whether more than one decoder will be opened.

    Raises:
        AudioError: The source is missing or unreadable.
        AudioInputError: The source is of a type that holds no audio.
        UsageError: The sample rate is out of range, or the source is a file.
    """

    def __init__(self, source: AudioSource, sample_rate: int | None, *, shared: bool) -> None:
        self.name: str
        self._array: SupportsArray | None = None
        self._rate = SAMPLE_RATE if sample_rate is None else sample_rate
        self._rate_is_known = sample_rate is not None
        self._shared: SharedFile | None = None
        self._owned: BinaryIO | None = None
        if isinstance(source, SupportsArray) and not isinstance(source, str):
            if (
                not isinstance(self._rate, Integral)
                or not LOWEST_RATE <= self._rate <= HIGHEST_RATE
            ):
                raise UsageError(
                    f"sample_rate is {sample_rate}; give Hz, {LOWEST_RATE} to {HIGHEST_RATE}"
                )
            self.name, self._array = "array", source
            return
        if sample_rate is not None:
            raise UsageError("sample_rate is for arrays: a file states its own rate; leave it out")
        if isinstance(source, str | os.PathLike):
            path = Path(os.fsdecode(source))
            self.name = str(path) if isinstance(source, os.PathLike) else source
            self._file = self._owned = open_path(path, self.name)
        elif isinstance(source, bytes | bytearray | memoryview):
            self.name = "bytes"
            self._file = self._owned = io.BytesIO(source)
        elif hasattr(source, "read") and not isinstance(source, io.TextIOBase):
            name = getattr(source, "name", None)
            self.name = (
                os.fsdecode(name) if isinstance(name, str | bytes | os.PathLike) else "stream"
            )
            self._file = cast(BinaryIO, source)
        else:
            raise AudioInputError(
                f"audio of type {type(source).__name__}; pass a path, a file opened in binary mode,"
                " the bytes of a file or a numpy array"
            )
        try:
            if not (hasattr(self._file, "seekable") and self._file.seekable()):
                spooled = spool(self._file, self.name)
                self.close()
                self._file = self._owned = spooled
        except OSError as error:
            self.close()
            raise AudioError(f"{self.name}: cannot be read: {error.strerror or error}") from error
        except ValueError as error:  # the file is closed
            raise AudioInputError(f"{self.name}: {error}; pass a file that is open") from error
        except AudioError:
            self.close()
            raise
        if shared:
            self._shared = SharedFile(self._file, owned=self._owned is not None)

    @property
    def is_array(self) -> bool:
        """Whether the samples are in memory."""
        return self._array is not None

    def open(self, track: TrackChoice) -> OpenedTrack:
        """Open a decoder; only a shared recording allows more than one.

        Raises:
            AudioError: The recording cannot be read, is not audio or has no such track.
        """
        warnings: list[str] = []
        scale = SampleScale()
        try:
            if self._array is not None:
                in_memory = ArrayDecoder(self._array, self._rate, track)
                for _, chunk in in_memory.chunks():  # all samples, because they are in memory
                    scale.look(chunk)
                if not self._rate_is_known and sounds_slowed(in_memory.first_channel):
                    warnings.append(_SLOWED)
                return OpenedTrack(self.name, in_memory, None, warnings, scale)
            file: BinaryIO = self._file
            closable: Closable | None = self._owned
            if self._shared is not None:
                reader = self._shared.reader()
                file, closable = cast(BinaryIO, reader), reader
            decoder = open_decoder(file, self.name, warnings.append, track)
        except RefusedError as refusal:
            raise AudioError(f"{self.name}: {refusal}") from refusal
        except OSError as error:
            raise AudioError(f"{self.name}: cannot be read: {error.strerror or error}") from error
        return OpenedTrack(self.name, decoder, closable, warnings, scale)

    def close(self) -> None:
        """Close the file, unless it is the caller's."""
        if self._owned is not None:
            self._owned.close()
