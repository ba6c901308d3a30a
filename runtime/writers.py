"""Transcriptions to files: what the files are called, and writing them whole or not at all.

Files are written under another name in the same folder and renamed at the end, so that a run that
is stopped leaves neither half a file nor a lost old one. The formats are in `formats`.
"""

import contextlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from whisper_npu.errors import OutputError, UsageError
from whisper_npu.runtime.drafts import open_draft
from whisper_npu.runtime.formats import DEFAULT_OPTIONS, Formatter, expand_formats, make_formatter
from whisper_npu.runtime.results import Segment, Transcription
from whisper_npu.runtime.subtitles import SubtitleOptions


def output_names(audio_paths: Sequence[str | Path]) -> list[Path]:
    """Choose output names, without their suffix, such that no two recordings share one.

    A recording gives its stem, as in openai/whisper: `talk.mp3` gives `talk`. Where two would share
    it, both keep their suffix (`talk.mp3`, `talk.wav`); where that does not tell them apart, their
    folders below the folder common to all (`monday/talk`, `tuesday/talk`); at last both. Names that
    differ in case only count as the same. Standard input (`-`) gives `stdin`.

    Args:
        audio_paths: All recordings of one run; a path named twice gives one name twice.

    Returns:
        Paths relative to the output folder, in the order of `audio_paths`.
    """
    paths = [Path("stdin") if str(path) == "-" else Path(path) for path in audio_paths]
    absolute = [Path(os.path.abspath(path)) for path in paths]  # noqa: PTH100 - also drops ".."
    below = _below_common_folder(absolute)
    candidates = {
        path: (
            Path(path.stem),
            Path(path.name),
            relative.with_name(path.stem),
            relative,
        )
        for path, relative in zip(absolute, below, strict=True)
    }
    level = dict.fromkeys(candidates, 0)
    while True:
        keys = {path: str(names[level[path]]).casefold() for path, names in candidates.items()}
        counts = Counter(keys.values())
        shared = [path for path in keys if counts[keys[path]] > 1 and level[path] < 3]
        if not shared:
            break
        for path in shared:
            level[path] += 1
    return [candidates[path][level[path]] for path in absolute]


def _below_common_folder(paths: Sequence[Path]) -> list[Path]:
    """Each path relative to the deepest folder that holds all; drive letters become folders."""
    parts = [(path.anchor.strip("\\/:"), *path.parts[1:]) for path in paths]
    shortest = min((len(part) - 1 for part in parts), default=0)
    depth = 0
    while depth < shortest and len({part[depth] for part in parts}) == 1:
        depth += 1
    return [Path(*part[depth:]) for part in parts]


def output_path(
    audio_path: str | Path,
    output_dir: str | Path,
    output_format: str,
    *,
    name: Path | None = None,
) -> Path:
    """Where the transcription of a recording goes.

    Args:
        audio_path: The recording.
        output_dir: Folder of the outputs.
        output_format: One of `FORMATS`, which is also the suffix.
        name: What `output_names` chose, when there are several recordings.
    """
    stem = output_names([audio_path])[0] if name is None else name
    return Path(output_dir) / stem.with_name(f"{stem.name}.{output_format}")


class OutputFiles:
    """The output files of one recording, written while it is being transcribed.

    A context manager: `segment` for each segment, then `finish`. Left without `finish`, it leaves
    nothing behind.

    Args:
        audio_path: The recording.
        output_dir: Folder of the outputs; created where it is missing.
        formats: See `expand_formats`.
        options: Layout of subtitles.
        name: See `output_path`.

    Raises:
        UsageError: A format is unknown, or the folder cannot be made.
        OutputError: A file cannot be written, or is the recording itself.
    """

    def __init__(
        self,
        audio_path: str | Path,
        output_dir: str | Path,
        formats: str | Iterable[str],
        options: SubtitleOptions = DEFAULT_OPTIONS,
        *,
        name: Path | None = None,
    ) -> None:
        self._outputs: list[_Output] = []
        try:
            Path(output_dir).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"{output_dir}: cannot be made: {error.strerror or error};"
                " choose another --output-dir"
            ) from None
        targets = {
            output_format: output_path(audio_path, output_dir, output_format, name=name)
            for output_format in expand_formats(formats)
        }
        recording = Path(audio_path).resolve()
        for target in targets.values():
            if target.resolve() == recording:
                raise OutputError(
                    f"{target}: is the recording, and is not written over; choose an --output-dir"
                )
        try:
            for output_format, target in targets.items():
                self._outputs.append(_Output(target, make_formatter(output_format, options)))
        except OutputError:
            self._discard()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._discard()

    def segment(self, segment: Segment) -> None:
        """Write the next segment to every file."""
        for output in self._outputs:
            output.write(output.formatter.segment(segment))

    def finish(self, result: Transcription) -> list[Path]:
        """Complete the files and give them their names.

        Args:
            result: The whole transcription; only JSON reads its segments.

        Returns:
            The files, in the order of the formats.
        """
        for output in self._outputs:
            output.write(output.formatter.end(result))
        paths = [output.publish() for output in self._outputs]
        self._outputs = []
        return paths

    def _discard(self) -> None:
        for output in self._outputs:
            output.discard()
        self._outputs = []


class _Output:
    """One file under a temporary name."""

    def __init__(self, target: Path, formatter: Formatter) -> None:
        self.formatter = formatter
        self._target = target
        self._file: TextIO | None = None
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            self._draft, self._file = open_draft(target.parent)
        except OSError as error:
            raise self._failure(error) from error
        self.write(formatter.begin())

    def write(self, text: str) -> None:
        if self._file is None:
            raise ValueError("the output is already closed")
        try:
            self._file.write(text)
        except OSError as error:
            self.discard()
            raise self._failure(error) from error

    def publish(self) -> Path:
        try:
            if self._file is not None:
                self._file.close()
            self._draft.replace(self._target)
        except OSError as error:
            self.discard()
            raise self._failure(error) from error
        return self._target

    def discard(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # what could not be written is thrown away
                self._file.close()
            self._draft.unlink(missing_ok=True)
            self._file = None

    def _failure(self, error: OSError) -> OutputError:
        return OutputError(f"{self._target}: cannot be written: {error.strerror or error}")


def write(
    result: Transcription,
    audio_path: str | Path,
    output_dir: str | Path,
    formats: str | Iterable[str],
    options: SubtitleOptions = DEFAULT_OPTIONS,
    *,
    name: Path | None = None,
) -> list[Path]:
    """Write a finished transcription; see `OutputFiles` for arguments and errors.

    Returns:
        The files written, in the order of the formats.
    """
    with OutputFiles(audio_path, output_dir, formats, options, name=name) as outputs:
        for segment in result.segments:
            outputs.segment(segment)
        return outputs.finish(result)
