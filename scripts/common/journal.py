"""Keeps `transcribe.jsonl`, the journal of an output folder, so that a later run can go on.

A line is appended for each recording when its work ends. The last line of a recording counts. A
line is written after the outputs have their final names, so a `complete` line stands for outputs
that are whole, whenever the program was killed.
"""

import argparse
import hashlib
import json
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from whisper_npu.errors import OutputError, UsageError
from whisper_npu.runtime.model_folder.digests import sha256_file
from whisper_npu.runtime.model_folder.folder import read_model_folder
from whisper_npu.runtime.output.names import output_path
from whisper_npu.runtime.output.writers import PARTIAL

if TYPE_CHECKING:
    from whisper_npu.runtime.options import TranscribeOptions
    from whisper_npu.runtime.results import Transcription
    from whisper_npu.runtime.transcription.stream import TranscriptionStream

JOURNAL = "transcribe.jsonl"

# Options of the command line, other than those of the decoder, that the outputs depend on.
_SETTINGS = (
    *("device", "backend", "kv_cache", "precision"),
    *("highlight_words", "max_line_width", "max_line_count", "max_words_per_line"),
)

Status = Literal["complete", "stopped", "failed", "replacing"]


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of the journal.

    Attributes:
        path: The recording, absolute; `-` for standard input.
        name: The name of its outputs below the folder, see `output_name`.
        status: `complete`; `stopped` and `failed`, with the text so far in `outputs`; `replacing`
            while outputs of an earlier run are replaced.
        digest: sha256 of the recording in hexadecimal; None if it is no file, if it changed during
            the work, or if the work failed.
        size: Bytes of the recording; None if it is no file.
        mtime_ns: Time of its last change, in nanoseconds since the epoch; None if it is no file.
        ctime_ns: The same for its name, owner and place, too, which no program can set back.
        duration: Seconds of audio read.
        work_seconds: Seconds of work for it, with its share of batches with other recordings.
        coverage: Seconds by fate: transcribed, silent, skipped, dropped.
        warnings: Warnings of the transcription.
        error: The reason of a failure.
        outputs: The written files, relative to the folder.
        model_digest: See `ModelFolder.digest`.
        options_digest: A digest of the options for decoding, device and layout.
    """

    path: str
    name: str
    status: Status
    digest: str | None = None
    size: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None
    duration: float | None = None
    work_seconds: float = 0.0
    coverage: dict[str, float] | None = None
    warnings: tuple[str, ...] = ()
    error: str | None = None
    outputs: tuple[str, ...] = ()
    model_digest: str
    options_digest: str


class Journal:
    """The journal of an output folder."""

    def __init__(
        self, folder: str | Path, formats: Sequence[str], model_digest: str, options_digest: str
    ) -> None:
        """Read the journal if there is one; nothing is written yet.

        Args:
            folder: the output folder.
            formats: formats of the outputs.
            model_digest: see `Line`.
            options_digest: see `Line`.

        Raises:
            UsageError: the journal cannot be read.
        """
        self.folder = Path(folder)
        self.path = self.folder / JOURNAL
        self.model_digest = model_digest
        self.options_digest = options_digest
        self._formats = formats
        self._last = {line.name: line for line in _read(self.path)}

    def is_complete(self, file: Path, name: str) -> bool:
        """Whether an earlier run completed a recording as this run would.

        Its outputs are there, and were made from the same content with the same model and options.

        Args:
            file: the recording.
            name: of its outputs.
        """
        line, now = self._last.get(name), _stat(file)
        if line is None or now is None or line.status != "complete":
            return False
        if (line.model_digest, line.options_digest) != (self.model_digest, self.options_digest):
            return False
        for each in self._formats:
            output = output_path(self.folder, name, each)
            if _stat(output) is None or self._below(output) not in line.outputs:
                return False
        if (line.size, line.mtime_ns, line.ctime_ns) == _signature(now):
            return True
        return line.digest is not None and _digest(file) == line.digest

    def begin(self, file: Path, name: str) -> "RecordingLog":
        """Begin the work on a recording.

        Args:
            file: the recording, `-` for standard input.
            name: of its outputs.
        """
        return RecordingLog(self, file, name, self._last.get(name))

    def append(self, line: Line) -> None:
        """Append a line.

        The line is written at once, so that a killed program leaves at most its last line
        incomplete, which the next line does not continue.

        Raises:
            OutputError: the journal cannot be written.
        """
        written = f"{json.dumps(asdict(line))}\n".encode()
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
        try:
            descriptor = os.open(self.path, flags, 0o666)
            try:
                if _is_torn(descriptor):
                    written = b"\n" + written
                if os.write(descriptor, written) < len(written):
                    raise OutputError(f"{self.path}: cannot be written: the disk is full")
            finally:
                os.close(descriptor)
        except OSError as error:
            raise OutputError(
                f"{self.path}: cannot be written: {error.strerror or error}"
            ) from error
        self._last[line.name] = line

    def remove_partial(self, name: str) -> None:
        """Remove the text that an earlier, stopped run kept of a recording."""
        for each in self._formats:
            self._partial_path(name, each).unlink(missing_ok=True)

    def _partial_path(self, name: str, output_format: str) -> Path:
        return output_path(self.folder, f"{name}{PARTIAL}", output_format)

    def relative(self, paths: Iterable[Path]) -> tuple[str, ...]:
        """Paths of outputs relative to the folder."""
        return tuple(map(self._below, paths))

    def _below(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()


class RecordingLog:
    """The work on one recording, which ends as one line of the journal."""

    def __init__(self, journal: Journal, file: Path, name: str, before: Line | None) -> None:
        self._journal = journal
        self._file = file
        self._name = name
        self._before = before
        self._stat = _stat(file)
        self._digest: str | None = None
        self._result: Transcription | None = None
        self._outputs: Sequence[Path] = ()

    def before_outputs(self) -> None:
        """Prepare to give the outputs their final names.

        The content's digest takes long, so it is computed before. A kill between two names would
        leave outputs of two runs; the journal says so before.

        Raises:
            OutputError: the journal cannot be written.
        """
        if self._stat is not None:
            digest, now = _digest(self._file), _stat(self._file)
            if now is not None and _signature(now) == _signature(self._stat):
                self._digest = digest
        if self._before is not None and self._before.status == "complete":
            self._end("replacing")

    def complete(
        self, stream: "TranscriptionStream", result: "Transcription", outputs: Sequence[Path]
    ) -> None:
        """Note that all outputs are written.

        Raises:
            OutputError: the journal cannot be written.
        """
        self.keep(result, outputs)
        self._end("complete", stream)
        if self._before is not None and self._before.status in ("stopped", "failed"):
            self._journal.remove_partial(self._name)

    def keep(self, result: "Transcription", outputs: Sequence[Path]) -> None:
        """Remember the result and the written files for the line of this recording."""
        self._result = result
        self._outputs = outputs

    def stopped(self, stream: "TranscriptionStream") -> None:
        """Note that the work was stopped.

        Raises:
            OutputError: the journal cannot be written.
        """
        self._end("stopped", stream)

    def failed(self, error: Exception, stream: "TranscriptionStream | None") -> None:
        """Note that the recording cannot be transcribed.

        Raises:
            OutputError: the journal cannot be written.
        """
        self._end("failed", stream, str(error))

    def _end(
        self,
        status: Status,
        stream: "TranscriptionStream | None" = None,
        error: str | None = None,
    ) -> None:
        result = self._result
        read = None if stream is None else stream.seconds_read
        self._journal.append(
            Line(
                # Path.absolute would keep `..`, and resolve would follow links.
                path=os.path.abspath(self._file) if str(self._file) != "-" else "-",  # noqa: PTH100
                name=self._name,
                status=status,
                digest=self._digest,
                size=None if self._stat is None else self._stat.st_size,
                mtime_ns=None if self._stat is None else self._stat.st_mtime_ns,
                ctime_ns=None if self._stat is None else self._stat.st_ctime_ns,
                duration=read if result is None else result.duration,
                work_seconds=0.0 if stream is None else sum(stream.times.seconds.values()),
                coverage=None if result is None else result.coverage.seconds(),
                warnings=() if result is None else result.warnings,
                error=error,
                outputs=self._journal.relative(self._outputs),
                model_digest=self._journal.model_digest,
                options_digest=self._journal.options_digest,
            )
        )


def open_journal(
    arguments: argparse.Namespace,
    model_folder: Path,
    options: "TranscribeOptions",
    formats: Sequence[str],
) -> Journal:
    """The journal of a command's output folder.

    Args:
        arguments: the command line: the output folder, the device and the layout of subtitles.
        model_folder: the model's folder.
        options: the options of the transcription.
        formats: formats of the outputs.

    Raises:
        ModelError: the model folder cannot be used.
        UsageError: the journal cannot be read.
    """
    settings = [options.digest(), *(getattr(arguments, name) for name in _SETTINGS)]
    options_digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
    model_digest = read_model_folder(model_folder, arguments.variant).digest()
    return Journal(arguments.output_dir, formats, model_digest, options_digest)


def _read(path: Path) -> list[Line]:
    """The lines of a journal, without the lines that a killed program left incomplete."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be read: {error.strerror or error}; choose another --output-dir"
        ) from None
    lines = []
    for text in content.splitlines():
        try:
            lines.append(msgspec.convert(json.loads(text), Line))
        except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
            continue
    return lines


def _is_torn(descriptor: int) -> bool:
    """Whether the last line of a file lacks its end."""
    size = os.fstat(descriptor).st_size
    if size == 0:
        return False
    os.lseek(descriptor, size - 1, os.SEEK_SET)
    return os.read(descriptor, 1) != b"\n"


def _stat(path: Path) -> os.stat_result | None:
    """The state of a file; None if there is no regular file."""
    try:
        found = path.stat()
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return None
    return found if stat.S_ISREG(found.st_mode) else None


def _signature(state: os.stat_result) -> tuple[int, int, int]:
    return state.st_size, state.st_mtime_ns, state.st_ctime_ns


def _digest(file: Path) -> str | None:
    """The sha256 of a recording; None if it cannot be read."""
    try:
        return sha256_file(file)
    except OSError:
        return None
