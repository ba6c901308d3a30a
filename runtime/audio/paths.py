"""Opens a file or a named pipe so that it can be read from any position.

Folders, devices and sockets are refused: they would hang or have no audio.
"""

import logging
import os
import select
import stat
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import BinaryIO, cast

from whisper_npu.errors import AudioError
from whisper_npu.spelling import nearest

logger = logging.getLogger(__name__)

WRITER_WAIT = 10.0  # seconds in which a program must begin to write to a named pipe
_SAY_SO_AFTER = 1.0  # seconds
# The first bytes of a pipe are kept in memory, all further bytes in a temporary file.
_SPOOL_BYTES = 16 * 2**20
# A missing file's name is compared with so many others, and is similar from this ratio on.
_MOST_NAMES = 1000
_LIKENESS = 0.75
_POLL_INTERVAL = 0.05  # seconds; polling is the only way to wait for a pipe's writer


def open_path(path: Path, name: str) -> BinaryIO:
    """Open a recording to read from any position.

    A named pipe is copied, see `spool`. If no program writes to it, this waits up to `WRITER_WAIT`
    seconds; the log says so after the first second.

    Args:
        path: the file or named pipe.
        name: the name of the recording in messages.

    Raises:
        AudioError: there is no such file, it may not be read, it is no file, or no program writes
            to the named pipe.
    """
    if not name:
        raise AudioError("the name of the recording is empty")
    try:
        mode = path.stat().st_mode
        if stat.S_ISFIFO(mode):
            return _open_fifo(path, name)
        _refuse_what_is_no_file(mode, name)
        return path.open("rb")
    except FileNotFoundError as error:
        raise AudioError(f"{name}: no such file{_similar(path)}") from error
    except PermissionError as error:
        raise AudioError(f"{name}: no permission to read it") from error
    except OSError as error:
        raise AudioError(f"{name}: cannot be opened: {error.strerror or error}") from error
    except ValueError as error:  # a NUL in the name
        raise AudioError(f"{name!r}: cannot be opened: {error}") from error


def _similar(path: Path) -> str:
    """`; did you mean ...?` if the folder of a missing file has a file of a similar name."""
    try:
        names = [entry.name for entry in islice(os.scandir(path.parent), _MOST_NAMES)]
    except OSError:  # no such folder
        return ""
    meant = nearest(path.name, names, _LIKENESS)
    return f"; did you mean {path.with_name(meant)}?" if meant else ""


def _refuse_what_is_no_file(mode: int, name: str) -> None:
    if stat.S_ISDIR(mode):
        raise AudioError(f"{name}: is a folder; name a recording in it")
    if stat.S_ISSOCK(mode):
        raise AudioError(f"{name}: is a socket; name a file, or pipe the audio into `-`")
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        raise AudioError(f"{name}: is a device; name a file, or record with `whisper-npu stream`")


def _open_fifo(path: Path, name: str) -> BinaryIO:
    """Read a named pipe without hanging if no program has it open to write."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb", buffering=0) as pipe:
        first = _first_byte(descriptor, name)
        os.set_blocking(descriptor, True)
        return spool(cast(BinaryIO, pipe), name, first)


def _first_byte(descriptor: int, name: str) -> bytes:
    """Wait for a writer; return the first byte if it was read to find the writer, else nothing.

    Raises:
        AudioError: no program opened the pipe to write.
    """
    begin = time.monotonic()
    has_been_told = False
    while True:
        try:
            # Without a writer this reads the end of the file; a silent writer raises an error.
            byte = os.read(descriptor, 1)
        except BlockingIOError:
            if not select.select([descriptor], [], [], _SAY_SO_AFTER)[0]:
                logger.warning("%s: a named pipe: waiting for its writer to send data", name)
            return b""
        if byte:
            return byte
        waited = time.monotonic() - begin
        if waited >= WRITER_WAIT:
            raise AudioError(
                f"{name}: a named pipe that no program writes to (waited {WRITER_WAIT:.0f} s); "
                "start the program that writes first"
            )
        if waited >= _SAY_SO_AFTER and not has_been_told:
            logger.warning("%s: a named pipe: waiting for a program to write to it", name)
            has_been_told = True
        time.sleep(_POLL_INTERVAL)


def spool(pipe: BinaryIO, name: str, first: bytes = b"") -> BinaryIO:
    """Copy a pipe to a file that can be read from any position: headers point forwards and back.

    Args:
        pipe: read to its end, and left open.
        name: the name of the recording in messages.
        first: bytes that were read from it already.

    Raises:
        AudioError: the pipe gives text.
        OSError: the pipe cannot be read, or the disk is full.
    """
    spooled = tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES)  # noqa: SIM115 - handed on
    spooled.write(first)
    while piece := pipe.read(2**16):
        if not isinstance(piece, bytes):
            raise AudioError(
                f"{name}: gives {type(piece).__name__}, not bytes; open it in binary mode"
            )
        spooled.write(piece)
    return cast(BinaryIO, spooled)
