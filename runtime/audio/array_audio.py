"""Samples in memory as a recording."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from whisper_npu.errors import AudioError
from whisper_npu.runtime.audio.source import CHUNK_FRAMES, Samples
from whisper_npu.runtime.audio.tracks import AudioTrack, choose_track
from whisper_npu.runtime.audio_choices import TrackChoice


class ArrayDecoder:
    """Samples `(n,)` of one channel, floats or int16; a `TrackDecoder`.

    Args:
        array: The samples.
        rate: Theirs, in Hz.
        track: See `choose_track`; there is one.

    Raises:
        AudioError: The array is of another shape or dtype.
        RefusedError: There is no such track.
    """

    n_channels = 1
    tracks: tuple[AudioTrack, ...] = (AudioTrack(1),)

    def __init__(self, array: npt.NDArray[Any], rate: int, track: TrackChoice = None) -> None:
        if array.ndim != 1:
            raise AudioError(
                f"audio array of shape {array.shape}; pass one channel of shape (n_samples,)"
            )
        if array.dtype.kind != "f" and array.dtype != np.int16:
            raise AudioError(f"audio array of dtype {array.dtype}; pass floats in [-1, 1] or int16")
        self.track = choose_track(self.tracks, track)
        self.duration: float | None = len(array) / rate
        self._array = array
        self._rate = rate

    def chunks(self) -> Iterator[tuple[int, Samples]]:
        """See `Decoder.chunks`."""
        for start in range(0, len(self._array), CHUNK_FRAMES):
            chunk = self._array[start : start + CHUNK_FRAMES, np.newaxis]
            if chunk.dtype == np.int16:
                yield self._rate, chunk.astype(np.float32) / np.float32(32_768)
            else:
                with np.errstate(over="ignore"):  # to Inf, which is replaced and told
                    narrow = chunk.astype(np.float32)
                yield self._rate, narrow

    def close(self) -> None:
        """See `Decoder.close`."""
