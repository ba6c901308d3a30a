"""Turns the raw samples of live protocols into float32 samples at 16 kHz."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import soxr

SAMPLE_RATE = 16_000  # Hz, as the models hear
G711_RATE = 8_000  # Hz

Floats = npt.NDArray[np.float32]
Encoding = Literal["pcm", "mu-law", "a-law"]


class RawAudio:
    """Decodes, mixes and resamples one stream of raw samples, whose pieces may end anywhere."""

    def __init__(
        self, rate: int, *, width: int = 2, channels: int = 1, encoding: Encoding = "pcm"
    ) -> None:
        """Begin a stream.

        Args:
            rate: samples per second and channel.
            width: bytes of a sample of `pcm`: 1 (unsigned), or 2 to 4 (signed, little-endian).
            channels: interleaved channels; their mean is heard.
            encoding: `pcm`, or an encoding of G.711 with one byte per sample.
        """
        self.rate = rate
        self._decode = _decoder(encoding, width)
        self._channels = channels
        self._frame = channels * (width if encoding == "pcm" else 1)  # bytes
        self._rest = b""
        self._resampler = self._new_resampler()

    def seconds_of(self, data: bytes) -> float:
        """Seconds of audio in raw samples."""
        return len(data) / self._frame / self.rate

    def push(self, data: bytes) -> Floats:
        """The samples of the next bytes, float32 `(n_samples,)`."""
        data = self._rest + data
        whole = len(data) - len(data) % self._frame
        self._rest = data[whole:]
        channels = self._decode(data[:whole]).reshape(-1, self._channels)
        samples: Floats = channels.mean(axis=1, dtype=np.float32)
        if self._resampler is None:
            return samples
        return np.asarray(self._resampler.resample_chunk(samples), np.float32)

    def end(self) -> Floats:
        """The samples that the resampler still holds; what is pushed next begins a new stream."""
        self._rest = b""
        if self._resampler is None:
            return np.empty(0, np.float32)
        empty = np.empty(0, np.float32)
        held = self._resampler.resample_chunk(empty, last=True)
        self._resampler = self._new_resampler()
        return np.asarray(held, np.float32)

    def _new_resampler(self) -> soxr.ResampleStream | None:
        if self.rate == SAMPLE_RATE:
            return None
        return soxr.ResampleStream(self.rate, SAMPLE_RATE, 1, dtype="float32")


def _decoder(encoding: Encoding, width: int) -> Callable[[bytes], Floats]:
    """A function from bytes to float32 samples in [-1, 1)."""
    if encoding != "pcm":
        table = _G711[encoding]
        return lambda data: table[np.frombuffer(data, np.uint8)]
    if width == 1:
        return _from_8_bits
    if width == 3:
        return _from_24_bits
    return lambda data: _from_integers(np.frombuffer(data, f"<i{width}"))


def _from_8_bits(data: bytes) -> Floats:
    return np.frombuffer(data, np.uint8).astype(np.float32) / np.float32(128) - np.float32(1)


def _from_24_bits(data: bytes) -> Floats:
    padded = np.zeros((len(data) // 3, 4), np.uint8)
    padded[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
    return _from_integers(padded.view("<i4").reshape(-1))


def _from_integers(samples: npt.NDArray[Any]) -> Floats:
    whole = np.float32(2 ** (8 * samples.dtype.itemsize - 1))
    return np.asarray(samples.astype(np.float32) / whole, np.float32)


def _mu_law() -> Floats:
    """The value of every byte in G.711's mu-law, whose bits are inverted."""
    code = ~np.arange(256, dtype=np.uint8)
    exponent, mantissa = (code >> 4 & 7).astype(int), (code & 15).astype(int)
    size = ((2 * mantissa + 33) << exponent) - 33  # 14 bits
    return np.asarray(np.where(code & 128, -size, size) / 8192, np.float32)


def _a_law() -> Floats:
    """The value of every byte in G.711's A-law, of which every other bit is inverted."""
    code = np.arange(256, dtype=np.uint8) ^ 0x55
    exponent, mantissa = (code >> 4 & 7).astype(int), (code & 15).astype(int)
    size = np.where(
        exponent == 0, 2 * mantissa + 1, (2 * mantissa + 33) << np.maximum(exponent - 1, 0)
    )  # 13 bits
    return np.asarray(np.where(code & 128, size, -size) / 4096, np.float32)


_G711: dict[str, Floats] = {"mu-law": _mu_law(), "a-law": _a_law()}
