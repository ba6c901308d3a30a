"""Takes a constant offset out of audio, as cheap converters add to it.

Beside a large offset quiet speech is lost to the model: it is scaled by the loudest band.
"""

from whisper_npu.runtime.audio.stream import SAMPLE_RATE
from whisper_npu.runtime.engines.protocol import Float32Array

_ENOUGH = SAMPLE_RATE // 2  # samples from which the mean says something
_MEMORY = 10 * SAMPLE_RATE  # samples over which it is taken
_LEAST = 0.002  # of full scale: an offset below it does no harm
_SHARE = 0.5  # of the loudness: an offset below it does none, either


class ConstantOffset:
    """Follows the mean of a stream; audio without an offset that matters stays as it is."""

    def __init__(self) -> None:
        """Nothing has been heard yet."""
        self._n_samples = 0
        self._mean = 0.0
        self._power = 0.0

    def remove(self, samples: Float32Array) -> Float32Array:
        """The next samples, float32 `(n,)`, without the offset there has been so far."""
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
