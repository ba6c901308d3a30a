"""The page from which mkdocstrings makes the reference of the Python API."""

from pathlib import Path

import whisper_npu
from whisper_npu import errors

GROUPS = {
    "Load and transcribe": (
        "load_model",
        "WhisperModel",
        "TranscriptionStream",
        "TranscribeOptions",
        "model_digest",
        "model_languages",
    ),
    "Results": ("Transcription", "Segment", "Word", "Coverage", "Span", "Retry", "Partial"),
    "Output": ("format_transcript", "write_transcript", "SubtitleOptions"),
    "Audio": ("load_audio", "AudioSource", "MEDIA_SUFFIXES", "LANGUAGES"),
    "Live speech": (
        "LiveTranscriber",
        "LiveUpdate",
        "Committed",
        "Tentative",
        "TurnDetector",
        "TurnEvent",
        "TurnStarted",
        "TurnAudio",
        "TurnEnded",
    ),
}
# Objects that `load_model` and `transcribe` make: how they are made is no part of the interface.
_MADE_BY_OTHERS = ("WhisperModel", "TranscriptionStream")
_WITHOUT_INIT = """\
    options:
      merge_init_into_class: false
      filters: ["!^_"]
"""
_ERRORS = "Errors"
# A type for editors: its fields are those of TranscribeOptions.
_LEFT_OUT = {"TranscribeKwargs", "__version__"}


def groups() -> dict[str, tuple[str, ...]]:
    """The public names by subject; errors, and names of no subject, come last."""
    listed = {name for names in GROUPS.values() for name in names} | _LEFT_OUT
    rest = [name for name in whisper_npu.__all__ if name not in listed]
    return {
        **GROUPS,
        _ERRORS: tuple(name for name in rest if hasattr(errors, name)),
        "More": tuple(name for name in rest if not hasattr(errors, name)),
    }


def write(page: Path) -> None:
    """Write the page, in mkdocstrings' notation."""
    page.parent.mkdir(parents=True, exist_ok=True)
    parts = [
        "# Python API\n",
        "Everything here is imported from `whisper_npu`. [Python](../python.md) shows how it is "
        "used.\n",
    ]
    for title, names in groups().items():
        if names:
            parts.append(f"## {title}\n")
            parts += [
                f"::: whisper_npu.{name}\n{_WITHOUT_INIT if name in _MADE_BY_OTHERS else ''}"
                for name in names
            ]
    page.write_text("\n".join(parts), encoding="utf-8")
