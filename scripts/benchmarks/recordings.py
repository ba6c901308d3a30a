"""Finds, cuts and writes the recordings of the benchmarks."""

import wave
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from whisper_npu.export.references import Reference, read_references
from whisper_npu.runtime.audio.stream import SAMPLE_RATE, list_audio_files, load_audio

Samples = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Recording:
    """A file to transcribe, and its reference text if it is known."""

    name: str
    path: Path
    reference: str | None = None


def find_recordings(
    paths: Sequence[str | Path], manifests: Sequence[str | Path]
) -> list[Recording]:
    """The recordings in `paths`, with their references in `manifests`.

    Without paths these are all recordings of the manifests.

    Raises:
        AudioError: A folder holds no audio.
        UsageError: A manifest cannot be read.
    """
    references: list[Reference] = []
    for manifest in manifests:
        references += read_references(Path(manifest))
    if not paths:
        return [Recording(item.name, item.audio, item.text) for item in references]
    words = {item.audio.resolve(): item.text for item in references}
    return [
        Recording(path.name, path, words.get(path.resolve())) for path in list_audio_files(paths)
    ]


def of_length(samples: Samples, seconds: float) -> Samples:
    """The first `seconds` of a recording, which is repeated if it is shorter."""
    return np.resize(samples, round(seconds * SAMPLE_RATE))


def write_wav(path: Path, samples: Samples) -> Path:
    """Write mono 16 kHz samples as 16-bit WAV, which every recogniser reads."""
    pcm = np.clip(np.rint(samples * 32_767), -32_768, 32_767).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(pcm.tobytes())
    return path


def clip(recordings: Sequence[Recording], seconds: float, path: Path) -> Path:
    """Write a WAV file of `seconds`, made from the recordings one after the other.

    Raises:
        AudioError: A recording cannot be read.
    """
    pieces: list[Samples] = []
    held = 0
    for recording in recordings:
        pieces.append(load_audio(recording.path))
        held += len(pieces[-1])
        if held >= seconds * SAMPLE_RATE:
            break
    return write_wav(path, of_length(np.concatenate(pieces), seconds))
