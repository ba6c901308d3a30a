"""What the audio decoders share: the shape of their output and how they see a file."""

from collections.abc import Callable, Iterator
from typing import BinaryIO, Protocol

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float32]
Warn = Callable[[str], None]

SAMPLE_RATE = 16_000  # Hz; what every Whisper model was trained on
# Outside of this a header is broken; taken at its word, 1 Hz would fill the memory.
LOWEST_RATE, HIGHEST_RATE = 1_000, 3_072_000  # Hz

# Frames handed on at a time: 1.4 s at 48 kHz. Fixed, so that the samples that come out do not
# depend on how a caller cuts its blocks.
CHUNK_FRAMES = 65_536
# A file may have a thousand channels; then fewer frames make a chunk.
CHUNK_VALUES = 8 * CHUNK_FRAMES
# Outside of this a header is broken; taken at its word, 1 Hz would fill the memory.
LOWEST_RATE, HIGHEST_RATE = 1_000, 3_072_000  # Hz


class RefusedError(Exception):
    """A decoder does not read this file; the text says why. Never leaves the audio modules."""


class Decoder(Protocol):
    """A recording being decoded.

    Attributes:
        duration: Seconds the header announces, None where it does not say.
    """

    duration: float | None

    def chunks(self) -> Iterator[tuple[int, Samples]]:
        """Yield `(rate in Hz, float32 samples (frames, channels) in [-1, 1])` until the end.

        Raises:
            OSError: The file could not be read to its end.
        """
        ...

    def close(self) -> None:
        """Free the decoder; the file itself stays open."""
        ...


class SourceFile:
    """What the libraries see of a file: no name, and never an exception.

    Both would guess the format from a name's suffix, and neither hands on an exception of the file
    from below C code. A failure is kept, ends the file for the library, and is raised afterwards.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._failure: OSError | None = None

    def read(self, size: int = -1) -> bytes:
        """Read like a file; nothing after a failure."""
        try:
            return b"" if self._failure else self._file.read(size)
        except OSError as error:
            self._failure = error
            return b""

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move like a file; stay where a broken header points before the start."""
        try:
            return self._file.seek(offset, whence)
        except ValueError:
            return self._file.tell()
        except OSError as error:
            self._failure = self._failure or error
            return -1

    def tell(self) -> int:
        """The position in the file."""
        return self._file.tell()

    def check(self) -> None:
        """Raise the failure met while reading, if any.

        Raises:
            OSError: The file could not be read to its end.
        """
        if self._failure is not None:
            raise self._failure
