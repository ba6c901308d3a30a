"""Prepares the speech that calibrates an int8 encoder, as features."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from whisper_npu.errors import AssetError, ExportError
from whisper_npu.export.assets import fetch
from whisper_npu.export.dimensions import Dimensions
from whisper_npu.runtime.audio.stream import SAMPLE_RATE, load_audio
from whisper_npu.runtime.features.log_mel import HOP_LENGTH, log_mel_spectrogram

RECORDING = "beckett"
# Cuts of the built-in recording, in seconds, and the noise levels that are added. The features are
# scaled by the loudness of the speech, so other levels of speech would show the encoder nothing
# new.
CUTS = ((0.0, 10.2), (0.0, 4.6), (4.6, 10.2), (0.0, 2.4), (2.4, 7.0), (7.0, 10.2))
NOISE_LEVELS = (0.0, 0.003, 0.03)  # root mean square, of a full scale of 1
SEED = 0

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Calibration:
    """Windows `(1, n_mels, n_frames)`, float32, and their description in words."""

    windows: tuple[Float32, ...]
    description: str


def calibration_windows(files: Sequence[Path], dimensions: Dimensions) -> Calibration:
    """Cut recordings into the model's windows; the last window is padded with silence.

    Args:
        files: Recordings; if empty, several cuts of the built-in one, clean and with noise.
        dimensions: The sizes of the model.

    Raises:
        AudioError: A file cannot be read.
        ExportError: The built-in recording cannot be fetched.
    """
    size = dimensions.n_frames * HOP_LENGTH
    if files:
        recordings = [load_audio(path) for path in files]
        description = f"{len(files)} recordings: {', '.join(path.name for path in files)}"
    else:
        recordings = _built_in()
        description = (
            f"the built-in recording {RECORDING}: {len(CUTS)} cuts at {len(NOISE_LEVELS)} levels"
            " of noise"
        )
    windows = []
    for samples in recordings:
        for start in range(0, len(samples), size):
            piece = samples[start : start + size]
            whole = np.pad(piece, (0, size - len(piece)))
            windows.append(log_mel_spectrogram(whole, dimensions.n_mels)[None])
    return Calibration(tuple(windows), description)


def _built_in() -> list[Float32]:
    try:
        samples = load_audio(fetch(RECORDING))
    except AssetError as error:
        raise ExportError(
            f"no speech to calibrate on: {error}; or give --calibration-audio"
        ) from error
    random = np.random.default_rng(SEED)
    pieces = []
    for level in NOISE_LEVELS:
        for start, end in CUTS:
            piece = samples[int(start * SAMPLE_RATE) : int(end * SAMPLE_RATE)]
            noise = level * random.standard_normal(len(piece))
            pieces.append((piece + noise).astype(np.float32))
    return pieces
