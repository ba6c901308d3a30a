"""Transcribes a batch of recordings, and prints and writes their texts."""

import argparse
import contextlib
import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TextIO

from whisper_npu.errors import AudioError, DeviceError, OutputError
from whisper_npu.scripts.common import cli, console
from whisper_npu.scripts.common.progress import Progress, words
from whisper_npu.scripts.common.signals import Terminated

if TYPE_CHECKING:
    from whisper_npu.runtime.options import TranscribeOptions
    from whisper_npu.runtime.output.subtitles import SubtitleOptions
    from whisper_npu.runtime.output.writers import OutputFiles
    from whisper_npu.runtime.results import Transcription
    from whisper_npu.runtime.transcription.model import WhisperModel
    from whisper_npu.runtime.transcription.stream import TranscriptionStream
    from whisper_npu.scripts.common.journal import Journal, RecordingLog

logger = logging.getLogger("whisper_npu")


@dataclass(frozen=True)
class Recording:
    """A recording to transcribe, and the name of its output files; see `output_name`."""

    file: Path
    name: str


def find_recordings(names: Sequence[str], *, keep_suffix: bool) -> tuple[list[Recording], int]:
    """The recordings that the command line names, each once, and the number of missing names."""
    from whisper_npu.runtime.audio.stream import list_audio_files  # noqa: PLC0415
    from whisper_npu.runtime.output.names import output_name  # noqa: PLC0415

    found: dict[tuple[str, str], Recording] = {}
    n_missing = 0
    for name in names:
        folder = Path(name) if Path(name).is_dir() else None
        if re.match("[a-z]+://", name):  # as a path it would be another name
            n_missing += 1
            console.error(f"{name}: addresses are not fetched; download the recording first")
            continue
        try:
            files = [Path("-")] if name == "-" else list_audio_files([name])
        except AudioError as error:
            n_missing += 1
            console.error(error)
            continue
        for file in files:
            recording = Recording(file, output_name(file, folder, keep_suffix=keep_suffix))
            # Path.absolute would keep `..`, and resolve would follow links to other names.
            found.setdefault((os.path.abspath(file), recording.name), recording)  # noqa: PTH100
    return list(found.values()), n_missing


def none_exists(recordings: Sequence[Recording]) -> bool:
    """Whether there is nothing to transcribe; prints an error for each recording that is missing.

    A misspelt name is told before a model is fetched, exported or loaded. If any recording exists,
    or is standard input, nothing is printed: the missing recordings fail in their turn.
    """
    from whisper_npu.runtime.audio.paths import open_path  # noqa: PLC0415

    # Path.exists raises for a folder that may not be entered; the error of `open_path` says more.
    if any(each.file == Path("-") or os.path.exists(each.file) for each in recordings):  # noqa: PTH110
        return False
    for each in recordings:
        try:
            open_path(each.file, str(each.file)).close()
        except AudioError as error:
            console.error(error)
    return True


def without_complete(recordings: Sequence[Recording], journal: "Journal") -> list[Recording]:
    """The recordings that no earlier run completed; prints the number of the others."""
    left = [each for each in recordings if not journal.is_complete(each.file, each.name)]
    n_complete = len(recordings) - len(left)
    if n_complete:
        console.note(f"{n_complete} of {len(recordings)} files are complete, and are skipped")
    return left


class Batch:
    """Recordings that are transcribed together with the options of a command line."""

    def __init__(
        self,
        recordings: Sequence[Recording],
        arguments: argparse.Namespace,
        formats: Sequence[str],
        layout: "SubtitleOptions",
        progress: Progress,
        journal: "Journal | None" = None,
        *,
        is_alone: bool,
    ) -> None:
        """Prepare the batch; nothing begins yet.

        Args:
            recordings: the recordings, in the order of their texts.
            arguments: `output_dir`, `verbose` and `report` are read.
            formats: formats of the files; if empty, no file is written.
            layout: the layout of subtitles.
            progress: shows the progress of every recording.
            journal: gets a line for every recording; None for no journal.
            is_alone: whether the command line names a single recording, which is encoded shorter.
                A batch of which one recording is left is not alone, so that its text stays the
                same.
        """
        self._recordings = recordings
        self._arguments = arguments
        self._formats = formats
        self._layout = layout
        self._progress = progress
        self._journal = journal
        self._is_alone = is_alone
        self._logs: dict[Recording, RecordingLog] = {}  # of the opened recordings
        self._streams: list[TranscriptionStream] = []
        self._n_done = 0
        self.is_stopped = False

    def run(self, model: "WhisperModel", options: "TranscribeOptions") -> int:
        """Transcribe; a recording that fails is one line, and the others go on.

        Returns:
            the number of failed recordings.
        """
        sources: Iterable[Path | BinaryIO] = self._sources()
        if self._is_alone:
            sources = list(sources)
        streams = model.transcribe_all(sources, options, on_open=self._opened)
        n_failed = 0
        # After a stop there are fewer streams than recordings.
        for place, (recording, stream) in enumerate(zip(self._recordings, streams, strict=False)):
            if self._arguments.verbose and not self._is_alone:
                self._print(f"==> {console.one_line(recording.file)} <==", sys.stdout)
            try:
                if isinstance(stream, AudioError):
                    raise stream
                with contextlib.closing(stream):
                    self._transcribe(recording, stream)
                    self._n_done += not stream.is_partial
                    self._progress.ended(place, stream.seconds_read)
            except (AudioError, OutputError) as error:
                n_failed += 1
                opened = None if isinstance(stream, AudioError) else stream
                self._progress.ended(place, opened.seconds_read if opened else 0.0, failed=True)
                self._print(f"error: {console.one_line(error)}", sys.stderr)
                self._log_failure(recording, error, opened)
            self._logs.pop(recording, None)
            if stream in self._streams:
                self._streams.remove(stream)  # frees the stream, which holds the whole text
        return n_failed

    def stop(self) -> None:
        """Finish the windows being decoded, and begin no others; for a signal handler."""
        self.is_stopped = True
        for stream in list(self._streams):
            stream.stop()
        self._progress.finish("finishing (Ctrl-C ends at once)")

    def summarise(self) -> None:
        """Print the work done, if the progress was shown."""
        summary = self._progress.summary()
        if self.is_stopped:
            summary = f"{self._n_done} of {len(self._recordings)} files are done"
        if summary is not None:
            print(summary, file=sys.stderr)

    def advise(self) -> None:
        """Tell how to go on after a stop. A recording that was stopped begins anew."""
        is_of_several = len(self._recordings) > 1
        if self._journal is not None and is_of_several and self._n_done < len(self._recordings):
            self._print("to go on, give the same command with --skip-existing", sys.stderr)

    def _sources(self) -> Iterator[Path | BinaryIO]:
        for recording in self._recordings:
            if self.is_stopped:
                return
            if self._journal is not None:
                self._logs[recording] = self._journal.begin(recording.file, recording.name)
            yield cli.standard_input() if str(recording.file) == "-" else recording.file

    def _opened(self, stream: "TranscriptionStream | AudioError") -> None:
        self._progress.opened(stream)
        if isinstance(stream, AudioError):
            return
        self._streams.append(stream)
        if self.is_stopped:
            stream.stop()

    def _transcribe(self, recording: Recording, stream: "TranscriptionStream") -> None:
        """Print and write segments while they are decoded, and report on the whole recording."""
        from whisper_npu.runtime.output.subtitles import format_timestamp  # noqa: PLC0415

        with self._outputs(recording) as outputs:
            try:
                for segment in stream:
                    if outputs is not None:
                        outputs.segment(segment)
                    if self._arguments.verbose:
                        start, end = format_timestamp(segment.start), format_timestamp(segment.end)
                        channel = "" if segment.channel is None else f"[{segment.channel}] "
                        self._print(f"[{start} --> {end}] {channel}{segment.text}", sys.stdout)
                result = stream.result()
            except AudioError:  # the rest cannot be read; the text before it is complete
                if outputs is not None and stream.partial_result().segments:
                    self._keep(recording, stream.partial_result(), outputs)
                raise
            except (KeyboardInterrupt, Terminated, DeviceError, MemoryError):
                try:
                    self._keep(recording, stream.partial_result(), outputs)
                    self._log_stop(recording, stream)
                except OutputError as problem:  # must not take the place of what ends the program
                    self._print(f"error: {console.one_line(problem)}", sys.stderr)
                raise
            if stream.is_partial:
                self._keep(recording, result, outputs)
                self._log_stop(recording, stream)
                return
            if outputs is not None:
                self._finish(recording, stream, result, outputs)
        name = "" if self._is_alone else f"{recording.file}: "
        for warning in result.warnings:
            self._print(f"warning: {console.one_line(f'{name}{warning}')}", sys.stderr)
        if self._arguments.report:
            for line in report_lines(result):
                self._print(line, sys.stderr)

    def _outputs(
        self, recording: Recording
    ) -> "contextlib.AbstractContextManager[OutputFiles | None]":
        from whisper_npu.runtime.output.writers import OutputFiles  # noqa: PLC0415

        if not self._formats:
            return contextlib.nullcontext()
        folder = self._arguments.output_dir or "."
        return OutputFiles(recording.file, folder, self._formats, self._layout, name=recording.name)

    def _finish(
        self,
        recording: Recording,
        stream: "TranscriptionStream",
        result: "Transcription",
        outputs: "OutputFiles",
    ) -> None:
        """Give the files their final names, and note that they are complete."""
        log = self._logs.get(recording)
        if log is not None:
            log.before_outputs()
        paths = outputs.finish(result)
        for path in paths:
            logger.debug("wrote %s", path)
        if log is not None:
            log.complete(stream, result, paths)

    def _keep(
        self, recording: Recording, result: "Transcription", outputs: "OutputFiles | None"
    ) -> None:
        """Keep the text of a stopped recording, and print its place."""
        kept: list[Path] = []
        if not result.segments:
            where = "nothing of it is transcribed yet"
        else:
            where = f"transcribed up to {words(result.segments[-1].end)}"
            if outputs is not None:
                kept = outputs.keep_partial(result)
                where = f"{where}, which is in {', '.join(map(str, kept))}"
        if recording in self._logs:
            self._logs[recording].keep(result, kept)
        self._print(
            f"stopped: {console.one_line(recording.file)}: {console.one_line(where)}", sys.stderr
        )

    def _log_stop(self, recording: Recording, stream: "TranscriptionStream") -> None:
        if recording in self._logs:
            self._logs[recording].stopped(stream)

    def _log_failure(
        self, recording: Recording, error: Exception, stream: "TranscriptionStream | None"
    ) -> None:
        """Note the failure in the journal; the batch goes on even if that fails."""
        if recording not in self._logs:
            return
        try:
            self._logs[recording].failed(error, stream)
        except OutputError as problem:
            self._print(f"error: {console.one_line(problem)}", sys.stderr)

    def _print(self, line: str, out: TextIO) -> None:
        with self._progress.paused():
            print(line, file=out, flush=True)


def report_lines(result: "Transcription") -> Iterator[str]:
    """Lines on what became of a recording's time, and on the device."""
    for channel in result.coverage.channels or (None,):
        yield from _channel_lines(result, channel)
    ran = f"{result.device}, {result.precision}, {result.kv_cache} cache"
    yield f"ran on {ran}; language {result.language}"


def _channel_lines(result: "Transcription", channel: str | None) -> Iterator[str]:
    """Lines on what became of the time of one channel or track, or of the whole recording."""
    totals = result.coverage.seconds(channel)
    seconds = ", ".join(f"{fate} {total:.2f} s" for fate, total in totals.items())
    name = "" if channel is None else f"{channel}: "
    yield f"{name}{sum(totals.values()):.2f} s of audio: {seconds}"
    for span in result.coverage.spans:
        if span.fate != "transcribed" and span.channel == channel:
            where = f"{span.start:.2f} to {span.end:.2f} s"
            yield f"  {where}: {span.fate}: {span.reason}"
    segments = [segment for segment in result.segments if segment.channel == channel]
    for window in {segment.seek: segment for segment in segments}.values():
        for retry in window.retries:
            where = f"window of {window.start:.2f} s"
            yield f"  {where}: temperature {retry.temperature}: {retry.reason}"
    for segment in segments:
        if segment.flaw is not None:
            yield f"  {segment.start:.2f} s: doubtful: {segment.flaw}"
