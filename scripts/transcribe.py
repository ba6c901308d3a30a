"""Transcribes audio and video files: `whisper-npu transcribe`, `python scripts/transcribe.py`.

Option names are openai/whisper's.
"""

import argparse
import contextlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NoReturn

from whisper_npu.errors import AudioError, OutputError, UsageError
from whisper_npu.scripts import cli
from whisper_npu.scripts.decoding_options import (
    add_decoding_options,
    add_model_options,
    decoding_options,
)

if TYPE_CHECKING:
    from tqdm import tqdm

    from whisper_npu.runtime.results import Transcription
    from whisper_npu.runtime.transcription_stream import TranscriptionStream
    from whisper_npu.runtime.writers import OutputFiles

logger = logging.getLogger("whisper_npu")

EPILOG = f"""\
examples:
  whisper-npu transcribe talk.mp3
  whisper-npu transcribe recordings/ --output-dir texts --output-format srt,json
  whisper-npu transcribe interview.mp4 --model base --language German
  ffmpeg -i talk.mkv -f wav - | whisper-npu transcribe -

{cli.EXIT_CODES}"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="transcribe",
        description="Transcribe audio and video files with an exported Whisper model.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="recordings, folders (searched for recordings, however deep), or - for standard input",
    )
    add_model_options(parser)
    out = parser.add_argument_group("output")
    out.add_argument(
        "-o", "--output-dir", metavar="DIR", help="write files there (default: the current folder)"
    )
    out.add_argument(
        "-f",
        "--output-format",
        metavar="FORMAT",
        help="txt, vtt, srt, tsv, json, several separated by commas, or all "
        "(default: nothing is written without --output-dir, all with it)",
    )
    cli.add_flag(
        out,
        "--highlight-words",
        default=False,
        help="underline each word as it is spoken, in srt and vtt; needs --word-timestamps",
    )
    for limit, what in (
        ("--max-line-width", "characters in a line of srt and vtt"),
        ("--max-line-count", "lines in a cue, with --max-line-width"),
        ("--max-words-per-line", "words in a cue, without --max-line-width"),
    ):
        needs = f"{what}, at most; needs --word-timestamps"
        out.add_argument(limit, type=int, metavar="N", help=needs)
    cli.add_flag(
        out,
        "--verbose",
        default=True,
        help="print the text as it comes (default), or only a progress bar",
    )
    out.add_argument(
        "--report",
        action="store_true",
        help="say what became of every second: transcribed, silent, skipped or dropped, and why",
    )
    out.add_argument(
        "--debug",
        action="store_true",
        help="log the contract found, the cache's shapes step by step, and stage times",
    )

    add_decoding_options(parser)
    return parser


def transcribe(arguments: argparse.Namespace) -> int:
    """Transcribe the files the command line names; returns the exit code."""
    # Heavy imports wait until the command line is known to be right.
    from whisper_npu.api import load_model  # noqa: PLC0415
    from whisper_npu.runtime.audio import list_audio_files  # noqa: PLC0415
    from whisper_npu.runtime.formats import expand_formats  # noqa: PLC0415
    from whisper_npu.runtime.subtitles import SubtitleOptions  # noqa: PLC0415
    from whisper_npu.runtime.writers import OutputFiles, output_names  # noqa: PLC0415

    _set_up_logging(debug=arguments.debug)
    options = decoding_options(arguments)
    layout = SubtitleOptions(
        highlight_words=arguments.highlight_words,
        max_line_width=arguments.max_line_width,
        max_line_count=arguments.max_line_count,
        max_words_per_line=arguments.max_words_per_line,
    )
    wants = (arguments.verbose, arguments.report, arguments.output_format, arguments.output_dir)
    if not any(wants):
        raise UsageError("--verbose False prints no text: say with -o or -f where it is to go")
    for note in layout.check(word_timestamps=options.word_timestamps):
        print(f"warning: {note}", file=sys.stderr)
    formats: tuple[str, ...] = ()
    if arguments.output_format or arguments.output_dir:
        formats = expand_formats(arguments.output_format or "all")

    failures = 0
    files: list[Path] = []
    for name in arguments.files:
        try:
            files += [Path("-")] if name == "-" else list_audio_files([name])
        except AudioError as error:
            failures += 1
            print(f"error: {error}", file=sys.stderr)
    model = load_model(
        cli.find_model(arguments.model),
        device=arguments.device,
        backend=arguments.backend,
        kv_cache=arguments.kv_cache,
        precision=arguments.precision,
        threads=arguments.threads,
    )
    streams = model.transcribe_all((_source(file) for file in files), options)
    show_names = len(files) > 1 and arguments.verbose
    for file, name, stream in zip(files, output_names(files), streams, strict=True):
        if show_names:
            print(f"==> {file} <==")
        try:
            if isinstance(stream, AudioError):
                raise stream
            with contextlib.ExitStack() as stack:
                stack.enter_context(contextlib.closing(stream))
                outputs = None
                if formats:
                    folder = arguments.output_dir or "."
                    writing = OutputFiles(file, folder, formats, layout, name=name)
                    outputs = stack.enter_context(writing)
                _finish(stream, file, outputs, arguments)
        except (AudioError, OutputError) as error:
            failures += 1
            print(f"error: {error}", file=sys.stderr)
    return cli.EXIT_SOME_FAILED if failures else cli.EXIT_OK


def _finish(
    stream: "TranscriptionStream",
    file: Path,
    outputs: "OutputFiles | None",
    arguments: argparse.Namespace,
) -> None:
    """Follow a transcription to its end, and say what there is to say of it."""
    _follow(stream, file, outputs, verbose=arguments.verbose)
    result = stream.result()
    if outputs is not None:
        for path in outputs.finish(result):
            logger.debug("wrote %s", path)
    for warning in result.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if arguments.report:
        _report(result)


def _set_up_logging(*, debug: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.handlers = [handler]
    logger.setLevel(logging.DEBUG if debug else logging.INFO)


def _source(file: Path) -> Path | BinaryIO:
    return cli.standard_input() if str(file) == "-" else file


def _follow(
    stream: "TranscriptionStream", file: Path, outputs: "OutputFiles | None", *, verbose: bool
) -> None:
    """Show and write segments as they come."""
    from whisper_npu.runtime.subtitles import format_timestamp  # noqa: PLC0415

    with contextlib.ExitStack() as stack:
        bar = None if verbose else stack.enter_context(_progress_bar(stream, file))
        for segment in stream:
            if outputs is not None:
                outputs.segment(segment)
            if bar is not None:
                bar.update(max(0.0, segment.end - bar.n))
            else:
                start, end = format_timestamp(segment.start), format_timestamp(segment.end)
                channel = "" if segment.channel is None else f"[{segment.channel}] "
                print(f"[{start} --> {end}] {channel}{segment.text}", flush=True)


def _progress_bar(stream: "TranscriptionStream", file: Path) -> "tqdm[NoReturn]":
    from tqdm import tqdm  # noqa: PLC0415 - only imported where it is shown

    seconds = stream.duration_estimate
    if seconds is None:
        return tqdm(desc=file.name, unit="s")
    layout = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s {rate_fmt}"
    return tqdm(desc=file.name, unit="s", total=round(seconds, 2), bar_format=layout)


def _report(result: "Transcription") -> None:
    """Print how the time of a recording is accounted for, and where it ran."""
    for channel in result.coverage.channels or (None,):
        _report_channel(result, channel)
    ran = f"{result.device}, {result.precision}, {result.kv_cache} cache"
    print(f"ran on {ran}; language {result.language}", file=sys.stderr)


def _report_channel(result: "Transcription", channel: str | None) -> None:
    """Print how the time of one channel or track is accounted for, or of all there is."""
    totals = result.coverage.seconds(channel)
    seconds = ", ".join(f"{fate} {total:.2f} s" for fate, total in totals.items())
    name = "" if channel is None else f"{channel}: "
    print(f"{name}{sum(totals.values()):.2f} s of audio: {seconds}", file=sys.stderr)
    for span in result.coverage.spans:
        if span.fate != "transcribed" and span.channel == channel:
            where = f"{span.start:.2f} to {span.end:.2f} s"
            print(f"  {where}: {span.fate}: {span.reason}", file=sys.stderr)
    segments = [segment for segment in result.segments if segment.channel == channel]
    for window in {segment.seek: segment for segment in segments}.values():
        for retry in window.retries:
            where = f"window of {window.start:.2f} s"
            print(f"  {where}: temperature {retry.temperature}: {retry.reason}", file=sys.stderr)
    for segment in segments:
        if segment.flaw is not None:
            print(f"  {segment.start:.2f} s: doubtful: {segment.flaw}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    return cli.run(transcribe, build_parser(), argv)


if __name__ == "__main__":
    cli.be_process(main)
