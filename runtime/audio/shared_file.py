"""One open file that several decoders read, each from a position of its own."""

from threading import Lock
from typing import BinaryIO


class SharedFile:
    """A seekable binary file and its readers, which may be in several threads.

    Args:
        file: The file; moved about while there are readers.
        owned: Whether to close it with the last of them.
    """

    def __init__(self, file: BinaryIO, *, owned: bool) -> None:
        self.file = file
        self.lock = Lock()
        self._owned = owned
        self._readers = 0

    def reader(self) -> "SharedFileReader":
        """Another reader, at the start of the file."""
        with self.lock:
            self._readers += 1
        return SharedFileReader(self)

    def leave(self) -> None:
        """A reader is done with it."""
        with self.lock:
            self._readers -= 1
            if self._owned and not self._readers:
                self.file.close()


class SharedFileReader:
    """What a decoder sees of a shared file."""

    def __init__(self, shared: SharedFile) -> None:
        self._shared = shared
        self._position = 0
        self._is_open = True

    def read(self, size: int = -1) -> bytes:
        """Read like a file."""
        with self._shared.lock:
            self._shared.file.seek(self._position)
            read = self._shared.file.read(size)
            self._position += len(read)
        return read

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move like a file.

        Raises:
            ValueError: To before its start.
        """
        with self._shared.lock:
            if whence == 1:
                offset, whence = self._position + offset, 0
            self._position = self._shared.file.seek(offset, whence)
        return self._position

    def tell(self) -> int:
        """The position of this reader."""
        return self._position

    def close(self) -> None:
        """Leave the file; a second call does nothing."""
        if self._is_open:
            self._is_open = False
            self._shared.leave()
