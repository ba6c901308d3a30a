"""Prepares the speech for comparing exported graphs with PyTorch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import WhisperFeatureExtractor

from whisper_npu.errors import AssetError
from whisper_npu.export.assets import fetch
from whisper_npu.runtime.audio.stream import load_audio

RECORDING = "beckett"
LEAST = 3  # recordings that are needed
SPLIT = 4.6  # seconds: a pause, at which the built-in recording is cut into halves
SYNTHETIC_SECONDS = (4, 11, 30)

Samples = NDArray[np.float32]


@dataclass(frozen=True)
class Window:
    """One window of audio: its name and its log-mel features `(1, n_mels, n_frames)`, float32."""

    name: str
    features: NDArray[np.float32]


@dataclass(frozen=True)
class ParityAudio:
    """All windows, and whether any window is synthetic sound instead of speech."""

    windows: tuple[Window, ...]
    synthetic: bool


def parity_audio(
    files: Sequence[Path],
    preprocessor_config: dict[str, Any],
    progress: Callable[[str], None] | None = None,
) -> ParityAudio:
    """Cut recordings into windows and compute their features with transformers' extractor.

    If there are fewer than three files, the built-in recording is added, whole and in halves. If it
    cannot be fetched, synthetic sound replaces it.

    Args:
        files: Recordings of any length; each is used to its end.
        preprocessor_config: The model's preprocessor_config.json.
        progress: Called with one line if the built-in recording cannot be fetched.

    Raises:
        AudioError: A file cannot be read.
    """
    rate = int(preprocessor_config["sampling_rate"])
    recordings = [(path.name, load_audio(path)) for path in files]
    synthetic = False
    if len(recordings) < LEAST:
        try:
            recordings += _built_in(rate)
        except AssetError as error:
            synthetic = True
            recordings += _synthetic(rate)
            if progress is not None:
                progress(f"comparing on synthetic sound instead of speech: {error}")
    extractor = WhisperFeatureExtractor(**preprocessor_config)  # type: ignore[no-untyped-call]
    size = int(preprocessor_config["n_samples"])
    windows = []
    for name, samples in recordings:
        for start in range(0, len(samples), size):
            piece = samples[start : start + size]
            features = extractor(piece, sampling_rate=rate, return_tensors="np")["input_features"]
            where = f" from {start // rate} s" if len(samples) > size else ""
            windows.append(Window(f"{name}{where}", np.asarray(features, np.float32)))
    return ParityAudio(tuple(windows), synthetic)


def _built_in(rate: int) -> list[tuple[str, Samples]]:
    samples = load_audio(fetch(RECORDING))
    split = int(SPLIT * rate)
    return [
        (RECORDING, samples),
        (f"{RECORDING}, first {SPLIT} s", samples[:split]),
        (f"{RECORDING}, rest", samples[split:]),
    ]


def _synthetic(rate: int) -> list[tuple[str, Samples]]:
    """Harmonics of a gliding pitch, with the loudness of syllables, and a little noise."""
    recordings = []
    for seed, seconds in enumerate(SYNTHETIC_SECONDS):
        random = np.random.default_rng(seed)
        time = np.arange(seconds * rate) / rate
        pitch = 120 + 30 * np.sin(2 * np.pi * (0.3 + 0.2 * seed) * time)  # Hz
        phase = 2 * np.pi * np.cumsum(pitch) / rate
        voice = np.sum([np.sin(k * phase) / k for k in range(1, 20)], axis=0)
        syllables = np.clip(np.sin(2 * np.pi * 3 * time), 0, None)  # 3 per second
        samples = 0.2 * voice * syllables + 0.01 * random.standard_normal(len(time))
        recordings.append((f"synthetic {seconds} s", samples.astype(np.float32)))
    return recordings
