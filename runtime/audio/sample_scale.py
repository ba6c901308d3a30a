"""Scales float samples that hold the values of integers of 16 or more bits.

Whisper's features have a fixed reference level. At 32,768 times full scale the features are
garbage, and so is the text.
"""

import numpy as np

from whisper_npu.runtime.audio.source import Samples

_HIGHEST = 4.0  # 12 dB above full scale; mixing without a limiter may reach it
_FEWEST = 1e-3  # of the samples: fewer may be clicks or damage
_BITS = (16, 24, 32)


class SampleScale:
    """Learns the scale of samples and divides by it."""

    def __init__(self) -> None:
        self._divisor = 1.0
        self._peak = 0.0

    def look(self, chunk: Samples) -> None:
        """Learn the scale from samples of any shape."""
        for bits in _BITS:
            limit = _HIGHEST * self._divisor
            peak = max(float(chunk.max(initial=0.0)), -float(chunk.min(initial=0.0)))
            if peak <= limit or np.count_nonzero(np.abs(chunk) > limit) <= _FEWEST * chunk.size:
                return
            self._divisor = max(self._divisor, 2.0 ** (bits - 1))
            self._peak = max(self._peak, peak)

    def __call__(self, chunk: Samples) -> Samples:
        """Return the samples in [-1, 1], divided by the scale seen so far."""
        self.look(chunk)
        return chunk if self._divisor == 1.0 else chunk * np.float32(1 / self._divisor)

    def warnings(self) -> list[str]:
        """Return one line if samples were divided."""
        if self._divisor == 1.0:
            return []
        return [
            f"samples far beyond [-1, 1] (up to {self._peak:.0f}): divided by {self._divisor:.0f};"
            " floats should be in [-1, 1]"
        ]
