"""Prepares audio for the speech detector: without a constant offset, and loud enough.

Silero VAD detects speech whose peaks reach -36 dB of full scale as well as louder speech. At -46 dB
it misses half of it, and with a constant offset nearly all (docs/accuracy.md). So audio with low
recent peaks is amplified for the detector. It does not take white or pink noise of any level for
speech, so amplified noise does no harm.
"""

import numpy as np

from whisper_npu.runtime.engines.protocol import Float32Array

_OFFSET_SHARE = 0.05  # of a new chunk in the running mean: 0.6 s
_TARGET = 0.05  # lower peaks are amplified to it: -26 dB of full scale
_QUIETEST = 5e-5  # -86 dB of full scale: the rounding of 16-bit audio stays below
_FALL = 10 ** (-12 / 20)  # the level after a second of silence: 12 dB less


class SpeechLevel:
    """Tracks the offset and the peaks of a stream, chunk by chunk.

    The result depends only on earlier chunks. It does not depend on how the stream is cut into
    blocks.
    """

    def __init__(self, chunks_per_second: float, *, amplifies: bool = True) -> None:
        """Start without any chunks; `amplifies`: whether to amplify quiet speech."""
        self._amplifies = amplifies
        self._fall = float(_FALL ** (1 / chunks_per_second))
        self._offset: float | None = None
        self._peak = 0.0

    def normalize(self, chunks: Float32Array) -> Float32Array:
        """Return the next chunks without their offset, with quiet speech amplified.

        Args:
            chunks: float32 `(n, chunk length)`, mono, full scale 1.

        Returns:
            float32 of the same shape.
        """
        offsets = self._offsets(chunks.mean(axis=1))
        ramp = np.linspace(0, 1, chunks.shape[1], endpoint=False, dtype=np.float32)
        before, after = offsets[:-1, None], offsets[1:, None]
        level: Float32Array = chunks - (before + (after - before) * ramp)
        if self._amplifies:
            level *= self._gains(np.abs(level).max(axis=1))[:, None]
        return level

    def _offsets(self, means: Float32Array) -> Float32Array:
        """Return the running mean at the edges of the chunks, `(n + 1,)`."""
        offset = float(means[0]) if self._offset is None else self._offset
        offsets = [offset]
        for mean in means.tolist():
            offset += _OFFSET_SHARE * (mean - offset)
            offsets.append(offset)
        self._offset = offset
        return np.array(offsets, np.float32)

    def _gains(self, peaks: Float32Array) -> Float32Array:
        gains = []
        for peak in peaks.tolist():
            self._peak = max(peak, self._peak * self._fall)
            gains.append(max(1.0, _TARGET / max(self._peak, _QUIETEST)))
        return np.array(gains, np.float32)
