"""The parts that all audio decoders share: their output and their view of a file."""

from collections.abc import Callable, Iterator
from typing import BinaryIO, Protocol

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float32]
Warn = Callable[[str], None]

SAMPLE_RATE = 16_000  # Hz; every Whisper model was trained on it
# A header with a rate outside this range is broken; 1 Hz, taken literally, would fill the memory.
LOWEST_RATE, HIGHEST_RATE = 1_000, 3_072_000  # Hz

# Frames in one chunk: 1.4 s at 48 kHz. The number is fixed, so that the decoded samples do not
# depend on the size of a caller's blocks.
CHUNK_FRAMES = 65_536
# Values in one chunk: a file may have a thousand channels; then its chunks have fewer frames.
CHUNK_VALUES = 8 * CHUNK_FRAMES


class RefusedError(Exception):
    """A decoder refuses a file; the text gives the reason. Never leaves the audio modules."""


class Decoder(Protocol):
    """Decodes one recording.

    Attributes:
        duration: Seconds that the header announces; None if it announces none.
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
    """A file as the audio libraries see it: without a name, and without exceptions.

    The libraries would guess the format from a name's suffix, and their C code passes on no
    exception of the file. A failure ends the file for the library; `check` raises it later.
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
        """Move like a file; stay if a broken header points before the start."""
        try:
            return self._file.seek(offset, whence)
        except ValueError:
            return self._file.tell()
        except OSError as error:
            self._failure = self._failure or error
            return -1

    def tell(self) -> int:
        """Return the position in the file."""
        return self._file.tell()

    def check(self) -> None:
        """Raise the failure that ended the file, if there was one.

        Raises:
            OSError: The file could not be read to its end.
        """
        if self._failure is not None:
            raise self._failure
