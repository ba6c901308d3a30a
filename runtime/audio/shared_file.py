"""Lets several decoders read one open file, each from its own position."""

from threading import Lock
from typing import BinaryIO


class SharedFile:
    """A seekable binary file and its readers, which may be in several threads.

    Args:
        file: The file; readers change its position.
        owned: Whether to close it with the last reader.
    """

    def __init__(self, file: BinaryIO, *, owned: bool) -> None:
        self.file = file
        self.lock = Lock()
        self._owned = owned
        self._readers = 0

    def reader(self) -> "SharedFileReader":
        """Return another reader, at the start of the file."""
        with self.lock:
            self._readers += 1
        return SharedFileReader(self)

    def leave(self) -> None:
        """Remove a reader."""
        with self.lock:
            self._readers -= 1
            if self._owned and not self._readers:
                self.file.close()


class SharedFileReader:
    """A decoder's view of a shared file."""

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
            ValueError: The new position is before the start.
        """
        with self._shared.lock:
            if whence == 1:
                offset, whence = self._position + offset, 0
            self._position = self._shared.file.seek(offset, whence)
        return self._position

    def tell(self) -> int:
        """Return the position of this reader."""
        return self._position

    def close(self) -> None:
        """Leave the file; a second call does nothing."""
        if self._is_open:
            self._is_open = False
            self._shared.leave()
