"""Decodes samples while they arrive through a pipe: raw PCM, or a WAV with an unknown end."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from whisper_npu.errors import AudioError, UsageError
from whisper_npu.runtime.audio.headers import is_placeholder
from whisper_npu.runtime.audio.kinds import recognise
from whisper_npu.runtime.audio.source import HIGHEST_RATE, LOWEST_RATE, Samples, Warn

_DTYPES = {"s16le": "<i2", "s32le": "<i4", "f32le": "<f4"}
SAMPLE_FORMATS = tuple(_DTYPES)
_PIECES_PER_SECOND = 10

_HEADER_BYTES = 12  # of "RIFF", a length and "WAVE"
_WAV_FORMATS = {(1, 16): "s16le", (1, 32): "s32le", (3, 32): "f32le"}  # by tag and bits
_LARGEST_CHUNK = 2**20  # bytes of anything in a header
_LARGEST_PIECE = 2**20  # bytes of samples in one read
_EXTENSIBLE = 0xFFFE  # the true tag follows in the extension
_MOST_CHANNELS = 1_024  # as in libsndfile


@dataclass(frozen=True)
class PcmFormat:
    """The format of raw samples.

    Attributes:
        sample_format: one of `SAMPLE_FORMATS`, named as in FFmpeg.
        rate: in Hz.
        channels: their number; samples are interleaved.
    """

    sample_format: str = "s16le"
    rate: int = 16_000
    channels: int = 1

    @property
    def frame_bytes(self) -> int:
        """Bytes of one sample of every channel."""
        return np.dtype(_DTYPES[self.sample_format]).itemsize * self.channels

    def decode(self, raw: bytes) -> Samples:
        """Convert whole frames to float32 `(frames, channels)` in [-1, 1]."""
        samples = np.frombuffer(raw, _DTYPES[self.sample_format]).reshape(-1, self.channels)
        if samples.dtype.kind == "f":
            return samples.astype(np.float32)
        scale = np.float32(1 / -float(np.iinfo(samples.dtype).min))
        return samples.astype(np.float32) * scale


class PcmDecoder:
    """A `Decoder` for a pipe of samples: yields samples as they arrive and waits for more.

    Attributes:
        duration: None, because a pipe has no known length.
        format: the format of the samples; for a WAV, the format in its header.
    """

    duration: float | None = None

    def __init__(
        self,
        pipe: BinaryIO,
        name: str,
        warn: Warn,
        *,
        sample_format: str | None = None,
        rate: int | None = None,
        channels: int | None = None,
    ) -> None:
        """Read a header, if there is one.

        Args:
            pipe: its `read(n)` returns up to `n` bytes as soon as there are any, like an unbuffered
                file.
            name: the name of the pipe in messages.
            warn: takes one line for every part that was left out.
            sample_format: of raw samples (default: `s16le`); a WAV must agree.
            rate: of raw samples in Hz (default: 16000); a WAV must agree.
            channels: of raw samples (default: 1); a WAV must agree.

        Raises:
            AudioError: the pipe holds no samples, or a WAV does not agree with the arguments.
            UsageError: the rate or the number of channels is out of range.
        """
        for option, value, (low, high) in (
            ("rate", rate, (LOWEST_RATE, HIGHEST_RATE)),
            ("channels", channels, (1, _MOST_CHANNELS)),
        ):
            if value is not None and not low <= value <= high:
                raise UsageError(f"{option} is {value}; give {low} to {high}")
        self._pipe = pipe
        self._name = name
        self._warn = warn
        self._left: int | None = None  # bytes of samples to come; None: to the end of the pipe
        self._start = self._read_whole(_HEADER_BYTES)
        kind = recognise(self._start, self._look_ahead)
        if kind is not None:
            raise AudioError(
                f"{name}: this is {kind}, not samples; "
                "decode it on the way: ffmpeg -i FILE -f wav -"
            )
        if self._start[:4] not in (b"RIFF", b"RF64") or self._start[8:12] != b"WAVE":
            usual = PcmFormat()
            self.format = PcmFormat(
                sample_format or usual.sample_format,
                usual.rate if rate is None else rate,
                usual.channels if channels is None else channels,
            )
            return
        self._start = b""
        self.format = self._read_wav_header()
        self._check("samples", self.format.sample_format, sample_format)
        self._check("a rate", self.format.rate, rate)
        self._check("channels", self.format.channels, channels)

    def _check(self, what: str, found: object, asked: object) -> None:
        if asked is not None and asked != found:
            raise AudioError(
                f"{self._name}: a WAV with {what} of {found}, not {asked}; leave it to its header"
            )

    def chunks(self) -> Iterator[tuple[int, Samples]]:
        """Yield `(rate in Hz, float32 samples (frames, channels))` as they arrive."""
        size = self.format.frame_bytes
        piece = max(1, min(self.format.rate // _PIECES_PER_SECOND, _LARGEST_PIECE // size)) * size
        pending, self._start = self._start, b""
        while True:
            whole = len(pending) // size * size
            if whole:
                yield self.format.rate, self.format.decode(pending[:whole])
            pending = pending[whole:]
            wanted = piece if self._left is None else min(piece, self._left)
            arrived = self._pipe.read(wanted) if wanted else b""
            if not arrived:
                break
            if self._left is not None:
                self._left -= len(arrived)
            pending += arrived
        if self._left:
            self._warn(f"the input ends {self._left} bytes before what its header announces")
        if pending:
            self._warn(f"the last {len(pending)} bytes are no whole sample: left out")

    def _look_ahead(self, size: int) -> bytes:
        """Return the first `size` bytes of the pipe, or all bytes if there are fewer."""
        self._start += self._read_whole(size - len(self._start))
        return self._start

    def close(self) -> None:
        """Do nothing; the pipe stays open."""

    def _read_wav_header(self) -> PcmFormat:
        """Read up to the first sample (Microsoft, "Multimedia Programming Interface", 1991)."""
        found: PcmFormat | None = None
        while True:
            head = self._read_whole(8)
            if len(head) < 8:
                raise AudioError(f"{self._name}: a WAV that ends before its samples")
            kind, length = struct.unpack("<4sI", head)
            if kind == b"data":
                break
            if length > _LARGEST_CHUNK:
                raise AudioError(f"{self._name}: a WAV with a damaged header")
            body = self._read_whole(length + length % 2)
            if kind == b"fmt ":
                found = self._wav_format(body)
        if found is None:
            raise AudioError(f"{self._name}: a WAV that does not say how its samples are written")
        self._left = None if length == 0 or is_placeholder(length) else length
        return found

    def _wav_format(self, body: bytes) -> PcmFormat:
        if len(body) < 16:
            raise AudioError(f"{self._name}: a WAV with a damaged header")
        tag, channels, rate, _, _, bits = struct.unpack("<HHIIHH", body[:16])
        if tag == _EXTENSIBLE and len(body) >= 26:
            (tag,) = struct.unpack("<H", body[24:26])
        if (tag, bits) not in _WAV_FORMATS or not 1 <= channels <= _MOST_CHANNELS:
            raise AudioError(
                f"{self._name}: a WAV of kind {tag} with {bits} bits in {channels} channels; send "
                "16 or 32 bits, or 32-bit floats"
            )
        if not LOWEST_RATE <= rate <= HIGHEST_RATE:
            raise AudioError(f"{self._name}: a sample rate of {rate} Hz; the header is broken")
        return PcmFormat(_WAV_FORMATS[tag, bits], rate, channels)

    def _read_whole(self, size: int) -> bytes:
        """Read `size` bytes, or all bytes if there are fewer."""
        read = b""
        while len(read) < size and (more := self._pipe.read(size - len(read))):
            read += more
        return read
