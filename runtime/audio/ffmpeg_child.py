"""Decodes with FFmpeg in a child process; its parent is `ffmpeg_process`.

The child opens no file. It asks its parent for bytes through standard output and receives them
through standard input. A message is its kind (one byte), the size of its content (uint32) and the
content, all little-endian.
"""

import contextlib
import faulthandler
import io
import json
import os
import signal
import struct
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from whisper_npu.runtime.audio.ffmpeg import FFmpegDecoder
from whisper_npu.runtime.audio.source import CHUNK_VALUES, RefusedError, SourceFile

if TYPE_CHECKING:
    from whisper_npu.runtime.audio.source import Samples

HEADER = struct.Struct("<cI")
# From the parent: JSON of the decoder's arguments, then replies to the child's questions.
START, REPLY = b"S", b"R"
# Questions of the child about the file: `read(size)` and `seek(offset, whence)`.
READ, SEEK = b"r", b"s"
READ_CONTENT, SEEK_CONTENT, POSITION = (
    struct.Struct("<q"),
    struct.Struct("<qB"),
    struct.Struct("<q"),
)
# From the child: JSON of the decoder's attributes; a warning; samples after `BLOCK_CONTENT` (rate
# in Hz, channels); the end of the file; the text of a RefusedError; an unforeseen exception.
OPENED, WARNING, BLOCK, END, REFUSED, FAILED = b"O", b"W", b"B", b"E", b"X", b"F"
BLOCK_CONTENT = struct.Struct("<II")

EXIT_HUNG = 1 if sys.platform == "win32" else -signal.SIGALRM  # the watchdog's exit code
_MOST_MEMORY = 2 * 2**30  # bytes; decoders of sound files need about ten million


class Connection:
    """Exchanges messages with the parent; the watchdog pauses while the child waits for a reply."""

    def __init__(self, incoming: BinaryIO, outgoing: BinaryIO) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._patience = 0.0  # seconds of work between two messages; 0: no limit

    def watch(self, patience: float) -> None:
        """End this process, even inside C code, if it works this long without a message."""
        self._patience = patience

    def receive(self) -> tuple[bytes, bytes]:
        """Return the parent's next message; end the process if the pipe is closed."""
        header = self._incoming.read(HEADER.size)
        if len(header) < HEADER.size:
            raise SystemExit(0)  # the parent needs the child no longer
        kind, size = HEADER.unpack(header)
        return kind, self._incoming.read(size)

    def send(self, kind: bytes, *contents: bytes) -> None:
        """Send a message."""
        self._rest()
        try:
            self._outgoing.write(HEADER.pack(kind, sum(map(len, contents))))
            for content in contents:
                self._outgoing.write(content)
            self._outgoing.flush()
        except BrokenPipeError:
            raise SystemExit(0) from None
        self._work()

    def ask(self, kind: bytes, content: bytes) -> bytes:
        """Send a question and wait for its reply."""
        self.send(kind, content)
        self._rest()
        _, reply = self.receive()
        self._work()
        return reply

    def _work(self) -> None:
        if not self._patience:
            return
        if sys.platform == "win32":
            faulthandler.dump_traceback_later(self._patience, exit=True)
        else:  # the signal has no handler, so it ends the process; a hundred times cheaper
            signal.setitimer(signal.ITIMER_REAL, self._patience)

    def _rest(self) -> None:
        if sys.platform == "win32":
            faulthandler.cancel_dump_traceback_later()
        else:
            signal.setitimer(signal.ITIMER_REAL, 0)


class RemoteFile:
    """The parent's file, with the methods that `source.SourceFile` needs."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def read(self, size: int = -1) -> bytes:
        """Read like a file."""
        return self._connection.ask(READ, READ_CONTENT.pack(size))

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move like a file; -1 after a failure."""
        reply = self._connection.ask(SEEK, SEEK_CONTENT.pack(offset, whence))
        position: int = POSITION.unpack(reply)[0]
        return position

    def tell(self) -> int:
        """Return the position in the file."""
        return self.seek(0, io.SEEK_CUR)


def main() -> None:
    """Decode one file after another until the parent closes the pipe."""
    limit_resources()
    incoming = sys.stdin.buffer
    # Output of C code must not get between the messages.
    outgoing = os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    connection = Connection(incoming, outgoing)
    import av  # noqa: F401, PLC0415 - before the watchdog looks

    while True:
        _, content = connection.receive()
        start = json.loads(content)
        connection.watch(start["patience"])
        _decode(connection, start["arguments"])


def _decode(connection: Connection, arguments: dict[str, Any]) -> None:
    """Decode a file and report the result to the parent."""

    def warn(text: str) -> None:
        connection.send(WARNING, text.encode())

    try:
        file = SourceFile(cast(BinaryIO, RemoteFile(connection)))
        decoder = FFmpegDecoder(file, warn, **arguments)
        connection.send(OPENED, json.dumps(_attributes(decoder)).encode())
        for rate, samples in decoder.chunks():
            _send_block(connection, rate, samples)
        decoder.close()
    except RefusedError as refusal:
        connection.send(REFUSED, str(refusal).encode())
    except MemoryError:
        connection.send(REFUSED, b"FFmpeg wants more than 2 GB of memory for it: damaged")
    except Exception as error:  # an error of this file; the parent raises an AudioError
        connection.send(FAILED, f"{type(error).__name__}: {error}".encode(errors="replace"))
    else:
        connection.send(END)


def _attributes(decoder: FFmpegDecoder) -> dict[str, Any]:
    """Return the attributes of a `TrackDecoder` as JSON types."""
    return {
        "duration": decoder.duration,
        "n_channels": decoder.n_channels,
        "tracks": [asdict(track) for track in decoder.tracks],
        "track": decoder.track.number,
    }


def _send_block(connection: Connection, rate: int, samples: "Samples") -> None:
    """Send samples in messages of some megabytes: a single packet may hold an hour."""
    frames = max(1, CHUNK_VALUES // samples.shape[1])
    for start in range(0, len(samples), frames):
        piece = samples[start : start + frames]
        connection.send(BLOCK, BLOCK_CONTENT.pack(rate, piece.shape[1]), piece.tobytes())


def limit_resources() -> None:
    """Limit memory to 2 GiB and core dumps to none, so that a bad file is refused, not fatal."""
    try:
        import resource  # noqa: PLC0415 - not on Windows
    except ImportError:
        return
    for kind, most in ((resource.RLIMIT_DATA, _MOST_MEMORY), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(kind)[1]
        if hard == resource.RLIM_INFINITY or hard > most:
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(kind, (most, hard))
