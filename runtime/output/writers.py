"""Writes transcriptions to files, whole or not at all.

Files are written under another name in the same folder and renamed at the end, so that a stopped
run leaves no half-written file and loses no old file. The formats are in `formats`, the names in
`names`.
"""

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from whisper_npu.errors import OutputError, UsageError
from whisper_npu.runtime.closing import Closing
from whisper_npu.runtime.output.formats import (
    DEFAULT_OPTIONS,
    FORMATS,
    Formatter,
    expand_formats,
    make_formatter,
    require_words,
)
from whisper_npu.runtime.output.names import make_output_dir, output_name, output_path
from whisper_npu.runtime.output.part_files import open_draft
from whisper_npu.runtime.output.subtitles import SubtitleOptions
from whisper_npu.runtime.results import Segment, Transcription
from whisper_npu.spelling import did_you_mean

PARTIAL = ".partial"  # in the name of a file that covers only part of the recording


class OutputFiles(Closing):
    """The output files of one recording, written while it is being transcribed.

    A context manager: call `segment` for each segment, then `finish`, or `keep_partial` if it was
    stopped. Without either, it leaves no files.

    Args:
        audio_path: The recording.
        output_dir: Folder of the outputs; made if it is missing.
        formats: See `expand_formats`.
        options: Layout of subtitles.
        name: See `output_name`; by default the name of the recording itself.

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
        name: str | None = None,
    ) -> None:
        self._outputs: list[_Output] = []
        self._n_segments = 0
        make_output_dir(output_dir)
        name = output_name(audio_path) if name is None else name
        targets = {
            output_format: output_path(output_dir, name, output_format)
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
            self.close()
            raise

    def segment(self, segment: Segment) -> None:
        """Write the next segment to every file."""
        self._n_segments += 1
        for output in self._outputs:
            output.write(output.formatter.segment(segment))

    def finish(self, result: Transcription) -> list[Path]:
        """Complete the files and rename them.

        Args:
            result: The whole transcription; only JSON reads its segments.

        Returns:
            The files, in the order of the formats.
        """
        return self._publish(result, "")

    def keep_partial(self, result: Transcription) -> list[Path]:
        """Keep the partial files of a stopped recording: `talk.partial.srt`.

        Args:
            result: The transcription so far; segments that are not yet written are added.

        Returns:
            The files, in the order of the formats.
        """
        for segment in result.segments[self._n_segments :]:
            self.segment(segment)
        return self._publish(result, PARTIAL)

    def _publish(self, result: Transcription, mark: str) -> list[Path]:
        for output in self._outputs:
            output.write(output.formatter.end(result))
        paths = [output.publish(mark) for output in self._outputs]
        self._outputs = []
        return paths

    def close(self) -> None:
        """Discard the files that were not finished."""
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

    def publish(self, mark: str) -> Path:
        target = self._target.with_name(f"{self._target.stem}{mark}{self._target.suffix}")
        try:
            if self._file is not None:
                self._file.close()
            self._draft.replace(target)
        except OSError as error:
            self.discard()
            raise self._failure(error) from error
        return target

    def discard(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # unwritten content is lost
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
    name: str | None = None,
) -> list[Path]:
    """Write a finished transcription; see `OutputFiles` for arguments and errors.

    Returns:
        The written files, in the order of the formats.
    """
    with OutputFiles(audio_path, output_dir, formats, options, name=name) as outputs:
        for segment in result.segments:
            outputs.segment(segment)
        return outputs.finish(result)


def write_transcript(
    result: Transcription, path: str | Path, options: SubtitleOptions = DEFAULT_OPTIONS
) -> Path:
    """Write a transcription to one file: `write_transcript(result, "talk.srt")`.

    An existing file is replaced, and only by a whole one. A missing folder is made.

    Args:
        result: A transcription: `model.transcribe(...).result()`.
        path: The file. Its suffix names the format: `.txt`, `.vtt`, `.srt`, `.tsv` or `.json`.
        options: The layout of subtitles.

    Returns:
        `path` as a path.

    Raises:
        UsageError: The suffix names no format, or the layout needs the times of words.
        OutputError: The file cannot be written.
    """
    path = Path(path)
    output_format = path.suffix.removeprefix(".").lower()
    if output_format not in FORMATS:
        suffixes = ", ".join(f".{name}" for name in FORMATS)
        hint = did_you_mean(path.suffix, [f".{name}" for name in FORMATS])
        raise UsageError(f"{path}: its suffix names no format; give one of {suffixes}{hint}")
    require_words(result, options)
    output = _Output(path, make_formatter(output_format, options))
    try:
        for segment in result.segments:
            output.write(output.formatter.segment(segment))
        output.write(output.formatter.end(result))
        return output.publish("")
    except BaseException:
        output.discard()
        raise
