"""Audio as the speech detector wants it: without a constant offset, and loud enough.

Silero VAD hears speech whose peaks reach -36 dB of full scale as well as louder speech. At -46 dB
it misses half of it, and behind a constant offset nearly all (docs/accuracy.md). So what the
detector gets is amplified where the recent peaks are low. It takes white and pink noise of no level
for speech, so that amplified noise does no harm.
"""

import numpy as np

from whisper_npu.runtime.engines.protocol import Float32Array

_OFFSET_SHARE = 0.05  # of a new chunk in the running mean: 0.6 s
_TARGET = 0.05  # peaks that low are amplified to this: -26 dB of full scale
_QUIETEST = 5e-5  # -86 dB of full scale: what stays below is the rounding of 16-bit audio
_FALL = 10 ** (-12 / 20)  # what is left of the level after a second of silence: 12 dB less


class SpeechLevel:
    """Follows the offset and the peaks of a stream, chunk by chunk.

    What comes out depends on the chunks before and on nothing else: cutting the stream into other
    blocks changes nothing.
    """

    def __init__(self, chunks_per_second: float, *, amplifies: bool = True) -> None:
        """Nothing has been heard yet; `amplifies`: whether quiet speech is."""
        self._amplifies = amplifies
        self._fall = float(_FALL ** (1 / chunks_per_second))
        self._offset: float | None = None
        self._peak = 0.0

    def normalize(self, chunks: Float32Array) -> Float32Array:
        """The next chunks, their offset taken away and quiet speech amplified.

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
        """The running mean at the edges of the chunks, `(n + 1,)`."""
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
