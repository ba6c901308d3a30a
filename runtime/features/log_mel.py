"""Log-mel spectrogram, the input of Whisper's encoder.

Follows Radford et al. 2022, "Robust Speech Recognition via Large-Scale Weak Supervision",
section 2.2, as openai/whisper's `audio.py` and transformers' `WhisperFeatureExtractor` compute it.
There are two separate steps. Log-mel frames depend only on their own samples, so they can be
computed block by block. The last step clips the dynamic range and needs a whole window or file.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from whisper_npu.runtime.audio.stream import SAMPLE_RATE

Float32Array = npt.NDArray[np.float32]

N_FFT = 400  # 25 ms
HOP_LENGTH = 160  # 10 ms
FRAMES_PER_SECOND = SAMPLE_RATE // HOP_LENGTH
LOG_FLOOR = 1e-10  # mel power of digital silence, before the logarithm
# Log10 mel power. Dither of 16-bit audio reaches -8; the quietest speech is far above.
SILENCE = -7.0
DYNAMIC_RANGE = 8.0  # in log10 of power: 80 dB
# Frames transformed at once: they fit the processor's second-level cache. The product of so many
# frames with the widest mel band, 14 bins, is too small for OpenBLAS to wake threads.
_BLOCK_FRAMES = 400


@lru_cache(maxsize=4)
def mel_filters(n_mels: int) -> Float32Array:
    """Return the mel filter bank, float32 `(n_mels, N_FFT // 2 + 1)`.

    Slaney's Auditory Toolbox scale: linear below 1 kHz, logarithmic above, each triangle
    normalised to unit area. It spans 0 Hz to half the sample rate.
    """
    linear_hz_per_mel = 200.0 / 3
    break_hz = 1000.0
    break_mel = break_hz / linear_hz_per_mel
    log_step = np.log(6.4) / 27.0

    top_mel = break_mel + np.log(SAMPLE_RATE / 2 / break_hz) / log_step
    mels = np.linspace(0.0, top_mel, n_mels + 2)
    corners = np.where(
        mels < break_mel,
        mels * linear_hz_per_mel,
        break_hz * np.exp(log_step * (mels - break_mel)),
    )
    bins = np.linspace(0.0, SAMPLE_RATE / 2, N_FFT // 2 + 1)
    widths = np.diff(corners)
    rising = (bins - corners[:-2, None]) / widths[:-1, None]
    falling = (corners[2:, None] - bins) / widths[1:, None]
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    area = 2.0 / (corners[2:] - corners[:-2])
    return (triangles * area[:, None]).astype(np.float32)


@lru_cache(maxsize=1)
def _hann_window() -> npt.NDArray[np.float64]:
    return np.hanning(N_FFT + 1)[:-1]  # periodic; float64, as in the reference


@lru_cache(maxsize=4)
def _mel_bands(n_mels: int) -> list[tuple[slice, Float32Array]]:
    """Return the bins of each mel filter that are not zero, and their weights."""
    bands = []
    for weights in mel_filters(n_mels):
        bins = np.flatnonzero(weights)
        band = slice(int(bins[0]), int(bins[-1]) + 1) if len(bins) else slice(0)
        bands.append((band, weights[band]))
    return bands


def log_mel_frames(padded: Float32Array, n_mels: int) -> Float32Array:
    """Compute the log10 mel power of every whole frame in `padded`, not yet clipped or scaled.

    Args:
        padded: float32 samples at 16 kHz, `(n_samples,)`; frame `i` covers samples
            `[160 i, 160 i + 400)`, so the caller adds the 200 samples of context at each end.
        n_mels: number of mel bands (80, or 128 for large-v3).

    Returns:
        float32 `(n_mels, n_frames)` with `n_frames = 1 + (n_samples - 400) // 160`.
    """
    if len(padded) < N_FFT:
        return np.empty((n_mels, 0), np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::HOP_LENGTH]
    out = np.empty((n_mels, len(frames)), np.float32)
    for start in range(0, len(frames), _BLOCK_FRAMES):
        spectrum = np.fft.rfft(frames[start : start + _BLOCK_FRAMES] * _hann_window())
        power = np.ascontiguousarray((spectrum.real**2 + spectrum.imag**2).T, np.float32)
        # Not one matrix product: it would wake threads that spin for 0.1 s on the processor that
        # the encoder needs next. Most filter weights are zero anyway.
        for mel, (band, weights) in enumerate(_mel_bands(n_mels)):
            np.dot(weights, power[band], out=out[mel, start : start + _BLOCK_FRAMES])
    return np.log10(np.maximum(out, LOG_FLOOR, out=out), out=out)


def normalize(log_mel: Float32Array, peak: float | None = None) -> Float32Array:
    """Clip to 80 dB below the peak and scale, the last step of the reference.

    Args:
        log_mel: float32 `(n_mels, n_frames)` from `log_mel_frames`.
        peak: the loudest value; by default that of `log_mel` itself.
    """
    if peak is None:
        peak = float(log_mel.max(initial=np.log10(LOG_FLOOR)))
    clipped = np.maximum(log_mel, np.float32(peak - DYNAMIC_RANGE))
    return (clipped + np.float32(4)) / np.float32(4)


def log_mel_spectrogram(samples: Float32Array, n_mels: int) -> Float32Array:
    """Compute the features of a whole recording, like the reference.

    Args:
        samples: float32 mono 16 kHz, `(n_samples,)`, more than 200 of them.
        n_mels: number of mel bands.

    Returns:
        float32 `(n_mels, n_samples // 160)`.
    """
    padded = np.pad(samples, N_FFT // 2, mode="reflect")
    return normalize(log_mel_frames(padded, n_mels)[:, : len(samples) // HOP_LENGTH])
