"""Reads reference transcripts from TSV manifests and LibriSpeech folders."""

from dataclasses import dataclass
from pathlib import Path

from whisper_npu.errors import UsageError
from whisper_npu.runtime.audio.stream import MEDIA_SUFFIXES

_HEADER_NAMES = {"audio", "file", "filename", "path"}
_TRANSCRIPTS = "*.trans.txt"


@dataclass(frozen=True, slots=True)
class Reference:
    """One recording and its reference text.

    Attributes:
        name: The recording's name in reports: from the manifest, or its LibriSpeech id.
        audio: The path of the recording.
        text: The words spoken; empty for a recording without speech.
    """

    name: str
    audio: Path
    text: str


def read_references(path: Path) -> list[Reference]:
    """Read a TSV manifest, or a LibriSpeech folder with all folders below it.

    The recordings are not opened here, so a missing recording is found later.

    Raises:
        UsageError: The path does not exist, cannot be read, has a malformed line, or is empty.
    """
    references = _read_librispeech(path) if path.is_dir() else _read_manifest(path)
    if not references:
        raise UsageError(f"{path}: lists no recordings")
    return references


def _read_manifest(path: Path) -> list[Reference]:
    """Lines of `audio<TAB>reference`, with paths relative to the manifest; a header is allowed."""
    references: list[Reference] = []
    for number, line in _lines(path):
        audio, tab, text = line.partition("\t")
        where = f"{path}, line {number}"
        if not tab or not audio.strip():
            raise UsageError(f"{where}: no audio<TAB>reference: {_shorten(line)!r}")
        if "\t" in text:
            columns = line.count("\t") + 1
            raise UsageError(f"{where}: {columns} columns, not two: audio<TAB>reference")
        name = audio.strip()
        if not references and name.lower() in _HEADER_NAMES:
            continue
        references.append(Reference(name, path.parent / name, text.strip()))
    return references


def _read_librispeech(folder: Path) -> list[Reference]:
    """Transcripts in LibriSpeech's layout: `1688-142285.trans.txt` has `1688-142285-0000 TEXT`."""
    transcripts = sorted(folder.rglob(_TRANSCRIPTS))
    if not transcripts:
        manifests = ", ".join(str(manifest) for manifest in sorted(folder.glob("*.tsv")))
        hint = f"; did you mean {manifests}?" if manifests else "; give a TSV manifest instead"
        raise UsageError(f"{folder}: not a LibriSpeech folder (no {_TRANSCRIPTS} in it){hint}")
    references = []
    for transcript in transcripts:
        for number, line in _lines(transcript):
            name, space, text = line.partition(" ")
            if not space:
                raise UsageError(f"{transcript}, line {number}: no id and text: {_shorten(line)!r}")
            references.append(Reference(name, _find_audio(transcript.parent, name), text.strip()))
    return references


def _find_audio(folder: Path, name: str) -> Path:
    """The recording `name` of any format; FLAC, LibriSpeech's own format, comes first."""
    for suffix in (".flac", *sorted(MEDIA_SUFFIXES)):
        audio = folder / f"{name}{suffix}"
        if audio.is_file():
            return audio
    return folder / f"{name}.flac"


def _lines(path: Path) -> list[tuple[int, str]]:
    """Lines with text in them, and their numbers from 1."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(
            f"{path}: no such manifest or LibriSpeech folder; write a file with a line "
            "`audio<TAB>reference` for each recording"
        ) from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{path}, line {number}: not UTF-8; save the file as UTF-8") from None
    # Not splitlines(), which also splits at a form feed or U+2028 inside a sentence.
    lines = enumerate(text.replace("\r\n", "\n").split("\n"), start=1)
    return [(number, line) for number, line in lines if line.strip()]


def _shorten(text: str, length: int = 60) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."
