"""Reads samples in memory as a recording."""

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from whisper_npu.errors import AudioInputError
from whisper_npu.runtime.audio.source import CHUNK_FRAMES, CHUNK_VALUES, Samples
from whisper_npu.runtime.audio.tracks import AudioTrack, choose_track
from whisper_npu.runtime.audio_choices import TrackChoice

_MOST_CHANNELS = 1_024  # as in libsndfile
_INTEGERS = (("i", 2), ("i", 4), ("u", 1))  # kind and bytes of the integers that WAV files hold


@runtime_checkable
class SupportsArray(Protocol):
    """An array of another library, such as a PyTorch tensor in main memory."""

    def __array__(self) -> npt.NDArray[Any]:
        """Return the array as a numpy array."""
        ...


def as_array(source: SupportsArray) -> npt.NDArray[Any]:
    """Convert samples of any shape to a numpy array.

    Raises:
        AudioInputError: The samples are not in main memory, or audio is not stored in their dtype.
    """
    try:
        array = np.asarray(source)
    except (TypeError, ValueError, RuntimeError) as error:
        raise AudioInputError(
            f"audio of type {type(source).__name__} is no numpy array: {error}"
        ) from error
    if array.dtype.kind != "f" and (array.dtype.kind, array.dtype.itemsize) not in _INTEGERS:
        raise AudioInputError(
            f"audio array of dtype {array.dtype}; pass floats in [-1, 1], int16, int32 or uint8"
        )
    return array


def as_floats(samples: npt.NDArray[Any]) -> Samples:
    """Convert samples of any shape to float32: integers to [-1, 1), floats unchanged.

    uint8 samples have their zero at 128, as in WAV files.
    """
    if samples.dtype.kind == "f":
        with np.errstate(over="ignore"):  # Overflow gives Inf; `_Cleaner` replaces and reports it.
            return samples.astype(np.float32)
    half = np.float32(2.0 ** (8 * samples.dtype.itemsize - 1))
    floats = samples.astype(np.float32)
    return (floats - half if samples.dtype.kind == "u" else floats) / half


class ArrayDecoder:
    """A `TrackDecoder` for samples `(n,)` or `(n, channels)`.

    Args:
        array: The samples, see `as_array`.
        rate: The sample rate in Hz.
        track: See `choose_track`; an array has one track.

    Raises:
        AudioInputError: The array has another shape or dtype.
        RefusedError: The array has no such track.
    """

    tracks: tuple[AudioTrack, ...] = (AudioTrack(1),)

    def __init__(self, array: SupportsArray, rate: int, track: TrackChoice = None) -> None:
        samples = as_array(array)
        if samples.ndim == 1:
            samples = samples[:, np.newaxis]
        if samples.ndim != 2:
            raise AudioInputError(
                f"audio array of shape {samples.shape}; pass (n_samples,) or "
                "(n_samples, n_channels)"
            )
        if not samples.size:
            samples = samples.reshape(0, samples.shape[1] or 1)
        elif samples.shape[1] > min(samples.shape[0], _MOST_CHANNELS):
            raise AudioInputError(
                f"audio array of shape {samples.shape} is (n_samples, n_channels) with too many "
                "channels; if it is (n_channels, n_samples), pass array.T"
            )
        self.track = choose_track(self.tracks, track)
        self.n_channels = samples.shape[1]
        self.duration: float | None = len(samples) / rate
        self._samples = samples
        self._rate = rate

    @property
    def first_channel(self) -> npt.NDArray[Any]:
        """The samples `(n,)` of the first channel, in their original dtype."""
        return self._samples[:, 0]

    def chunks(self) -> Iterator[tuple[int, Samples]]:
        """See `Decoder.chunks`."""
        size = min(CHUNK_FRAMES, CHUNK_VALUES // self.n_channels)
        for start in range(0, len(self._samples), size):
            yield self._rate, as_floats(self._samples[start : start + size])

    def close(self) -> None:
        """See `Decoder.close`."""
