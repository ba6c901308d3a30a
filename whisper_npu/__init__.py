"""Whisper speech recognition on Intel NPUs, CPUs and GPUs: export, verify, run.

from whisper_npu import load_model

model = load_model("models/tiny.en", device="CPU")
for segment in model.transcribe("speech.wav"):
    print(segment.start, segment.text)
"""

from pathlib import Path

if not (Path(__file__).parent / "runtime").is_dir():
    # A checkout keeps the subpackages one level up, as folders of the repository.
    __path__.append(str(Path(__file__).parent.parent))

from importlib import import_module
from typing import TYPE_CHECKING, Any

from whisper_npu.version import __version__

if TYPE_CHECKING:
    from whisper_npu.api import load_model
    from whisper_npu.errors import WhisperNpuError
    from whisper_npu.runtime.options import TranscribeOptions
    from whisper_npu.runtime.results import Segment, Transcription, Word
    from whisper_npu.runtime.transcription.live import LiveTranscriber
    from whisper_npu.runtime.transcription.model import WhisperModel
    from whisper_npu.runtime.transcription.partial import Partial
    from whisper_npu.runtime.transcription.stream import TranscriptionStream

__all__ = [
    "LiveTranscriber",
    "Partial",
    "Segment",
    "TranscribeOptions",
    "Transcription",
    "TranscriptionStream",
    "WhisperModel",
    "WhisperNpuError",
    "Word",
    "__version__",
    "load_model",
]

# Loaded on first use: `whisper-npu --help` has no need of an inference engine.
_HOMES = {
    "LiveTranscriber": "runtime.transcription.live",
    "Partial": "runtime.transcription.partial",
    "Segment": "runtime.results",
    "TranscribeOptions": "runtime.options",
    "Transcription": "runtime.results",
    "TranscriptionStream": "runtime.transcription.stream",
    "WhisperModel": "runtime.transcription.model",
    "WhisperNpuError": "errors",
    "Word": "runtime.results",
    "load_model": "api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
