"""Opens files of unknown origin: a FIFO or a device in a file's place is an error, not a hang."""

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading.

    Raises:
        OSError: the file is missing, cannot be read, or is a directory, FIFO, socket or device.
    """
    descriptor = os.open(path, _FLAGS)  # does not wait for a FIFO's writer
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(descriptor, "rb")
