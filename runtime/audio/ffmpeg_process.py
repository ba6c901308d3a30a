"""Runs FFmpeg in a child process, so that a crash or hang of its C code fails one file only.

Files come from anywhere, and FFmpeg is a large amount of C. The child (`ffmpeg_child`) reads
through this process, so that every source works and this process notices a failing disk. Samples
come back through a pipe. A child that met only sound files takes the next file. A child that met
damage is not used again: an earlier file may have damaged its memory.
"""

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from threading import Lock
from typing import BinaryIO, cast

import numpy as np

from whisper_npu.runtime.audio import ffmpeg_child as child
from whisper_npu.runtime.audio.ffmpeg import FFmpegDecoder
from whisper_npu.runtime.audio.source import RefusedError, Samples, SourceFile, Warn
from whisper_npu.runtime.audio.tracks import AudioTrack, TrackDecoder
from whisper_npu.runtime.audio_choices import TrackChoice

# The longest work on a fraction of a second of audio, on a busy machine.
_PATIENCE = 60.0  # seconds
_MOST_IDLE = 2  # children kept for later files, 50 MB each
# Ctrl-C in a terminal reaches a process group. The child has its own group, so that we end it.
_OWN_GROUP: int | None = 0
_NO_WINDOW = 0
if sys.platform == "win32":
    _OWN_GROUP, _NO_WINDOW = None, subprocess.CREATE_NO_WINDOW
_PROGRAM = "import sys; sys.path[:] = {path!r}; from {module} import main; main()"


def open_ffmpeg(
    file: SourceFile, warn: Warn, *, skip_frames: int = 0, track: TrackChoice = None
) -> TrackDecoder:
    """Open a file with FFmpeg, in a child process wherever Python can start one.

    Args:
        file: see `FFmpegDecoder`.
        warn: see `FFmpegDecoder`.
        skip_frames: see `FFmpegDecoder`.
        track: see `FFmpegDecoder`.

    Raises:
        RefusedError: FFmpeg does not read the file, or crashed or hung on it.
    """
    if not sys.executable or hasattr(sys, "frozen"):
        # A program packed into one executable cannot start a Python.
        return FFmpegDecoder(file, warn, skip_frames, track)
    return IsolatedDecoder(file, warn, skip_frames=skip_frames, track=track)


class IsolatedDecoder:
    """Decodes a file in a child process; see `FFmpegDecoder` for the arguments."""

    def __init__(self, file: SourceFile, warn: Warn, **arguments: int | str | None) -> None:
        self._file = file
        self._warn = warn
        self._is_clean = True  # no damage found so far
        self._child: _Child | None = _take_child()
        start = {"patience": _PATIENCE, "arguments": arguments}
        self._child.send(child.START, json.dumps(start).encode())
        _, content = self._follow_to(child.OPENED)
        opened = json.loads(content)
        self.duration: float | None = opened["duration"]
        self.n_channels: int = opened["n_channels"]
        self.tracks = tuple(AudioTrack(**track) for track in opened["tracks"])
        self.track = self.tracks[opened["track"] - 1]

    def chunks(self) -> Iterator[tuple[int, Samples]]:
        """See `Decoder.chunks`.

        Raises:
            RefusedError: the child crashed, hung or found nothing to decode.
            OSError: the file could not be read to its end.
        """
        while self._child is not None:
            kind, content = self._follow_to(child.BLOCK, child.END)
            if kind == child.END:
                break
            rate, channels = child.BLOCK_CONTENT.unpack_from(content)
            samples = np.frombuffer(content, np.float32, offset=child.BLOCK_CONTENT.size)
            yield rate, samples.reshape(-1, channels)
        if self._child is not None and self._is_clean:
            _keep_child(self._child)
            self._child = None
        self.close()
        self._file.check()

    def close(self) -> None:
        """See `Decoder.close`."""
        if self._child is not None:
            self._child.end()
            self._child = None

    def _follow_to(self, *kinds: bytes) -> tuple[bytes, bytes]:
        """Serve the child until it sends a message of one of `kinds`; return that message."""
        try:
            while True:
                kind, content = self._child_now.receive()
                if kind in kinds:
                    return kind, content
                self._serve(kind, content)
        except _DeadError as death:
            self.close()
            self._file.check()
            raise RefusedError(str(death)) from None
        except BaseException:
            self.close()
            raise

    def _serve(self, kind: bytes, content: bytes) -> None:
        if kind == child.READ:
            self._child_now.send(child.REPLY, self._file.read(*child.READ_CONTENT.unpack(content)))
        elif kind == child.SEEK:
            position = self._file.seek(*child.SEEK_CONTENT.unpack(content))
            self._child_now.send(child.REPLY, child.POSITION.pack(position))
        elif kind == child.WARNING:
            self._is_clean = False
            self._warn(content.decode())
        elif kind == child.REFUSED:
            self._file.check()
            raise RefusedError(content.decode())
        else:
            raise RefusedError(f"FFmpeg cannot decode it ({content.decode()}); convert it to WAV")

    @property
    def _child_now(self) -> "_Child":
        assert self._child is not None, "closed"
        return self._child


class _DeadError(Exception):
    """The child has ended; the text gives the reason."""


class _Child:
    """A decoding process and its two pipes."""

    def __init__(self) -> None:
        program = _PROGRAM.format(path=sys.path, module=child.__name__)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", program],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                # The child computes nothing; numpy would start a thread per core.
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
                creationflags=_NO_WINDOW,
                process_group=_OWN_GROUP,
            )
        except OSError as error:
            reason = error.strerror or error
            raise RefusedError(f"FFmpeg's process cannot be started: {reason}") from error
        self.owner = os.getpid()
        self._in = cast(BinaryIO, self._process.stdin)
        self._out = cast(BinaryIO, self._process.stdout)

    def send(self, kind: bytes, content: bytes) -> None:
        """Send a message; a child that died is noticed by the next `receive`."""
        with contextlib.suppress(OSError):
            self._in.write(child.HEADER.pack(kind, len(content)))
            self._in.write(content)
            self._in.flush()

    def receive(self) -> tuple[bytes, bytes]:
        """Return the kind and the content of the next message."""
        kind, size = child.HEADER.unpack(self._read(child.HEADER.size))
        return kind, self._read(size)

    def _read(self, size: int) -> bytes:
        content = self._out.read(size)
        if len(content) < size:
            raise _DeadError(self._obituary())
        return content

    def is_alive(self) -> bool:
        """Whether the child still runs."""
        return self._process.poll() is None

    def end(self) -> None:
        """Kill the child, even while it works."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._in, self._out):
            with contextlib.suppress(OSError):  # unsent bytes remain
                pipe.close()

    def forget(self) -> None:
        """Leave the child to the parent process, of which this process is a fork."""
        self._process.returncode = 0

    def _obituary(self) -> str:
        code = self._process.wait()
        if code == child.EXIT_HUNG:
            return f"FFmpeg hung on it for {_PATIENCE:.0f} s: damaged; convert it to WAV or FLAC"
        if code < 0:
            crash = f"FFmpeg crashed on it ({signal.Signals(-code).name})"
        else:
            crash = f"FFmpeg's process ended on it with exit code {code}"
        return f"{crash}: damaged, or made to do so; convert it to WAV or FLAC"


_idle: list[_Child] = []
_idle_lock = Lock()


def _take_child() -> _Child:
    """Return an idle child, or start a new child."""
    while True:
        with _idle_lock:
            if not _idle:
                break
            found = _idle.pop()
        if found.is_alive():
            return found
        found.end()
    return _Child()


def _keep_child(kept: _Child) -> None:
    """Keep a child for the next file."""
    with _idle_lock:
        if len(_idle) < _MOST_IDLE:
            _idle.append(kept)
            return
    kept.end()


def _end_idle() -> None:
    with _idle_lock:
        while _idle:
            _idle.pop().end()


def _forget_idle() -> None:
    """Forget the idle children after a fork: only the parent process may use their pipes."""
    global _idle_lock  # noqa: PLW0603 - it may be held by a thread that the copy does not have
    _idle_lock = Lock()
    for each in _idle:
        each.forget()
    _idle.clear()


atexit.register(_end_idle)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_idle)
