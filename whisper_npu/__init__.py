"""Whisper speech recognition on Intel NPUs, CPUs and GPUs: export, verify, run.

from whisper_npu import load_model

with load_model("tiny.en", device="CPU") as model:
    for segment in model.transcribe("speech.wav"):
        print(segment.start, segment.text)
"""

from pathlib import Path

if not (Path(__file__).parent / "runtime").is_dir():
    # In a checkout the subpackages are one level up, as folders of the repository.
    __path__.append(str(Path(__file__).parent.parent))

from importlib import import_module
from typing import TYPE_CHECKING, Any

from whisper_npu.version import __version__

if TYPE_CHECKING:
    from whisper_npu.api import load_model, model_digest, model_languages
    from whisper_npu.errors import (
        AssetError,
        AudioError,
        AudioInputError,
        CheckpointError,
        DeviceError,
        ExportError,
        GibberishError,
        ModelError,
        OutputError,
        ParityError,
        UsageError,
        WhisperNpuError,
    )
    from whisper_npu.runtime.audio.stream import MEDIA_SUFFIXES, AudioSource, load_audio
    from whisper_npu.runtime.coverage import Coverage, Span
    from whisper_npu.runtime.languages import LANGUAGES
    from whisper_npu.runtime.options import TranscribeKwargs, TranscribeOptions
    from whisper_npu.runtime.output.formats import format_transcript
    from whisper_npu.runtime.output.subtitles import SubtitleOptions
    from whisper_npu.runtime.output.writers import write_transcript
    from whisper_npu.runtime.results import Retry, Segment, Transcription, Word
    from whisper_npu.runtime.transcription.live import (
        Committed,
        LiveTranscriber,
        LiveUpdate,
        Tentative,
    )
    from whisper_npu.runtime.transcription.model import WhisperModel
    from whisper_npu.runtime.transcription.partial import Partial
    from whisper_npu.runtime.transcription.stream import TranscriptionStream
    from whisper_npu.runtime.transcription.turns import (
        TurnAudio,
        TurnDetector,
        TurnEnded,
        TurnEvent,
        TurnStarted,
    )

__all__ = [
    "LANGUAGES",
    "MEDIA_SUFFIXES",
    "AssetError",
    "AudioError",
    "AudioInputError",
    "AudioSource",
    "CheckpointError",
    "Committed",
    "Coverage",
    "DeviceError",
    "ExportError",
    "GibberishError",
    "LiveTranscriber",
    "LiveUpdate",
    "ModelError",
    "OutputError",
    "ParityError",
    "Partial",
    "Retry",
    "Segment",
    "Span",
    "SubtitleOptions",
    "Tentative",
    "TranscribeKwargs",
    "TranscribeOptions",
    "Transcription",
    "TranscriptionStream",
    "TurnAudio",
    "TurnDetector",
    "TurnEnded",
    "TurnEvent",
    "TurnStarted",
    "UsageError",
    "WhisperModel",
    "WhisperNpuError",
    "Word",
    "__version__",
    "format_transcript",
    "load_audio",
    "load_model",
    "model_digest",
    "model_languages",
    "write_transcript",
]

# Loaded on first use, because `whisper-npu --help` needs no inference engine.
_HOMES = {
    "LANGUAGES": "runtime.languages",
    "MEDIA_SUFFIXES": "runtime.audio.stream",
    "AudioSource": "runtime.audio.stream",
    "Committed": "runtime.transcription.live",
    "Coverage": "runtime.coverage",
    "LiveTranscriber": "runtime.transcription.live",
    "LiveUpdate": "runtime.transcription.live",
    "Partial": "runtime.transcription.partial",
    "Retry": "runtime.results",
    "Segment": "runtime.results",
    "Span": "runtime.coverage",
    "SubtitleOptions": "runtime.output.subtitles",
    "Tentative": "runtime.transcription.live",
    "TranscribeKwargs": "runtime.options",
    "TranscribeOptions": "runtime.options",
    "Transcription": "runtime.results",
    "TranscriptionStream": "runtime.transcription.stream",
    **dict.fromkeys(
        ("TurnAudio", "TurnDetector", "TurnEnded", "TurnEvent", "TurnStarted"),
        "runtime.transcription.turns",
    ),
    "WhisperModel": "runtime.transcription.model",
    "Word": "runtime.results",
    "format_transcript": "runtime.output.formats",
    "load_audio": "runtime.audio.stream",
    "load_model": "api",
    "model_digest": "api",
    "model_languages": "api",
    "write_transcript": "runtime.output.writers",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
