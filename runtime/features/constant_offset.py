"""Removes the constant offset that cheap converters add to audio.

With a large offset the model misses quiet speech, because features are scaled by the loudest band.
"""

from whisper_npu.runtime.audio.stream import SAMPLE_RATE
from whisper_npu.runtime.engines.protocol import Float32Array

_ENOUGH = SAMPLE_RATE // 2  # samples before the mean is reliable
_MEMORY = 10 * SAMPLE_RATE  # samples in the mean
_LEAST = 0.002  # of full scale: a smaller offset does no harm
_SHARE = 0.5  # of the loudness: a smaller offset does no harm, either


class ConstantOffset:
    """Tracks the mean of a stream; audio without a harmful offset stays as it is."""

    def __init__(self) -> None:
        """Start without any samples."""
        self._n_samples = 0
        self._mean = 0.0
        self._power = 0.0

    def remove(self, samples: Float32Array) -> Float32Array:
        """Return the next samples, float32 `(n,)`, without the offset measured so far."""
        if not len(samples):
            return samples
        self._n_samples = min(self._n_samples + len(samples), max(_MEMORY, len(samples)))
        share = len(samples) / self._n_samples
        self._mean += share * (float(samples.mean()) - self._mean)
        self._power += share * (float(samples @ samples) / len(samples) - self._power)
        loudness = max(0.0, self._power - self._mean**2) ** 0.5
        if self._n_samples < _ENOUGH or abs(self._mean) < max(_LEAST, _SHARE * loudness):
            return samples
        without: Float32Array = samples - samples.dtype.type(self._mean)
        return without
