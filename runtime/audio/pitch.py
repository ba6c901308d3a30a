"""Finds speech too low for a voice: samples of 44.1 or 48 kHz that were taken for 16 kHz.

Only the pitch shows it, because samples in memory carry no rate. The voices of adults have 85 to
250 Hz; at a third of their speed, 30 to 85 Hz.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from whisper_npu.runtime.audio.array_audio import as_floats
from whisper_npu.runtime.audio.source import SAMPLE_RATE

_MOST_FRAMES = 96  # examined, spread over the recording; the louder half is judged
_GARBAGE = 1e9  # a sample beyond it, or not a number, is damaged
_FRAME = 2048  # samples, 128 ms: three periods of the lowest pitch
_POOLED = 4  # samples averaged to one: pitch needs no more
_RATE = SAMPLE_RATE // _POOLED
_LAGS = slice(_RATE // 400, _RATE // 28)  # periods of 400 to 28 Hz
_PERIODIC = 0.7  # a frame is a voice above this correlation with the period before
_ALMOST = 0.85  # of the best correlation: the shortest such lag is the period, not its double
_LOWEST_VOICE = 80.0  # Hz
_ENOUGH = 12  # frames of voice
_SHARE = 0.7  # of these frames, too low
_LOUDER = 10.0  # times the energy of the quietest frames: speech has pauses, hum has none


def sounds_slowed(samples: npt.NDArray[Any]) -> bool:
    """Whether most of the voice in `(n,)` samples, taken for 16 kHz, is too low for a voice."""
    pitch = voice_pitch(samples)
    return len(pitch) >= _ENOUGH and bool(np.mean(pitch < _LOWEST_VOICE) >= _SHARE)


def voice_pitch(samples: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the pitch in Hz of the sampled frames that hold a voice; uses autocorrelation."""
    if len(samples) < _FRAME:
        return np.zeros(0)
    n_frames = min(_MOST_FRAMES, 2 * len(samples) // _FRAME)
    starts = np.linspace(0, len(samples) - _FRAME, n_frames).astype(np.int64)
    frames = as_floats(samples[starts[:, None] + np.arange(_FRAME)]).astype(np.float64)
    frames = np.where(np.abs(frames) < _GARBAGE, frames, 0.0)
    pooled = frames.reshape(n_frames, -1, _POOLED).mean(axis=2, dtype=np.float64)
    pooled -= pooled.mean(axis=1, keepdims=True)
    energy = np.square(pooled).sum(axis=1)
    quiet, middle = np.quantile(energy, (0.1, 0.5))
    loud = pooled[(energy >= middle) & (energy > _LOUDER * quiet)]
    window = np.hanning(loud.shape[1])
    correlation = _autocorrelation(loud * window) / _autocorrelation(window[np.newaxis])
    candidates = correlation[:, _LAGS]
    best = candidates.max(axis=1, initial=0.0, keepdims=True)
    is_peak = (
        (candidates[:, 1:-1] >= candidates[:, :-2])
        & (candidates[:, 1:-1] >= candidates[:, 2:])
        & (candidates[:, 1:-1] > _ALMOST * best)
    )
    is_voice = (best[:, 0] > _PERIODIC) & is_peak.any(axis=1)
    lags = _LAGS.start + 1 + np.argmax(is_peak[is_voice], axis=1)
    pitch: npt.NDArray[np.float64] = _RATE / lags
    return pitch


def _autocorrelation(frames: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the autocorrelation of each row; it is 1 at lag 0."""
    n = frames.shape[1]
    power = np.square(np.abs(np.fft.rfft(frames, 2 * n, axis=1)))
    correlation: npt.NDArray[np.float64] = np.fft.irfft(power, axis=1)[:, :n]
    return correlation / correlation[:, :1]
