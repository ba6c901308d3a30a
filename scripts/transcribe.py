"""Transcribes audio and video files: `whisper-npu transcribe`, `python scripts/transcribe.py`.

Option names are openai/whisper's.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from whisper_npu.errors import AudioError, UsageError
from whisper_npu.scripts import cli

if TYPE_CHECKING:
    from whisper_npu.runtime.options import TranscribeOptions
    from whisper_npu.runtime.transcribe import TranscriptionStream
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
    where = parser.add_argument_group("model and device")
    where.add_argument(
        "--model",
        default=cli.DEFAULT_MODEL,
        metavar="DIR",
        help="model folder, or a built-in model exported on first use (default: %(default)s)",
    )
    where.add_argument("--device", default="CPU", help="OpenVINO device (default: %(default)s)")
    where.add_argument(
        "--kv-cache",
        default="auto",
        choices=["auto", "stateful", "concat", "static", "off"],
        help="who keeps the decoder's past: the device (stateful), the host (concat, static), "
        "nobody (off: slow, for comparison); auto takes the fastest",
    )
    where.add_argument(
        "--precision",
        default="auto",
        choices=["auto", "f32", "bf16", "f16"],
        help="arithmetic; f32 reproduces PyTorch token by token; auto is bf16 where the stateful "
        "cache runs on a processor that computes in it, else f32",
    )
    where.add_argument(
        "--threads", type=int, default=0, help="processor threads; 0 is one per core (default)"
    )

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
    out.add_argument(
        "--verbose",
        type=cli.boolean,
        default=True,
        metavar="True|False",
        help="print the text as it comes (default), or only a progress bar",
    )
    out.add_argument(
        "--debug",
        action="store_true",
        help="log the contract found, the cache's shapes step by step, and stage times",
    )

    what = parser.add_argument_group("what to transcribe")
    what.add_argument("--language", help="code or English name (default: detected)")
    what.add_argument(
        "--task",
        default="transcribe",
        choices=["transcribe", "translate"],
        help="translate: into English",
    )
    what.add_argument("--initial-prompt", metavar="TEXT", help="text to set names and style")
    what.add_argument(
        "--condition-on-previous-text",
        type=cli.boolean,
        default=True,
        metavar="True|False",
        help="give each window the text before it (default: %(default)s)",
    )
    what.add_argument(
        "--without-timestamps", action="store_true", help="text only, one segment per window"
    )
    what.add_argument(
        "--max-initial-timestamp",
        type=cli.optional(float),
        default=1.0,
        metavar="SECONDS",
        help="how late in a window its first segment may begin (default: %(default)s)",
    )

    how = parser.add_argument_group("decoding")
    how.add_argument(
        "--temperature", type=float, default=0.0, help="0 takes the likeliest token (default)"
    )
    how.add_argument(
        "--temperature-increment-on-fallback",
        type=cli.optional(float),
        default=0.2,
        metavar="STEP",
        help="how far to raise it when a window looks wrong; None: not (default: %(default)s)",
    )
    how.add_argument(
        "--compression-ratio-threshold",
        type=cli.optional(float),
        default=2.4,
        metavar="RATIO",
        help="text that zlib compresses better than this is a loop (default: %(default)s)",
    )
    how.add_argument(
        "--logprob-threshold",
        type=cli.optional(float),
        default=-1.0,
        metavar="LOGPROB",
        help="text less probable on average looks wrong (default: %(default)s)",
    )
    how.add_argument(
        "--no-speech-threshold",
        type=cli.optional(float),
        default=0.6,
        metavar="PROBABILITY",
        help="more probably silence than this, and improbable as text: skipped (default: "
        "%(default)s)",
    )
    how.add_argument(
        "--suppress-tokens",
        default="-1",
        metavar="IDS",
        help="token ids never sampled, separated by commas; -1 is the model's list (default)",
    )
    how.add_argument(
        "--beam-size", type=cli.optional(int), metavar="N", help="beam search (default: greedy)"
    )
    how.add_argument(
        "--best-of", type=int, default=5, metavar="N", help="samples when temperature is above 0"
    )
    how.add_argument(
        "--patience", type=float, default=1.0, help="of beam search (default: %(default)s)"
    )
    how.add_argument(
        "--length-penalty", type=cli.optional(float), help="alpha in ranking candidates"
    )
    return parser


def transcribe(arguments: argparse.Namespace) -> int:
    """Transcribe the files the command line names; returns the exit code."""
    # Heavy imports wait until the command line is known to be right.
    from whisper_npu.api import load_model  # noqa: PLC0415
    from whisper_npu.runtime.audio import list_audio_files  # noqa: PLC0415
    from whisper_npu.runtime.formats import expand_formats  # noqa: PLC0415
    from whisper_npu.runtime.writers import OutputFiles, output_names  # noqa: PLC0415

    _set_up_logging(debug=arguments.debug)
    options = _options(arguments)
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
        kv_cache=arguments.kv_cache,
        precision=arguments.precision,
        threads=arguments.threads,
    )
    options = model.resolve(options)
    for file, name in zip(files, output_names(files), strict=True):
        try:
            stream = model.transcribe(_source(file), options)
            if len(files) > 1 and arguments.verbose:
                print(f"==> {file} <==")
            if formats:
                with OutputFiles(file, arguments.output_dir or ".", formats, name=name) as outputs:
                    _follow(stream, file, outputs, verbose=arguments.verbose)
                    for path in outputs.finish(stream.result()):
                        logger.debug("wrote %s", path)
            else:
                _follow(stream, file, None, verbose=arguments.verbose)
            for warning in stream.result().warnings:
                print(f"warning: {warning}", file=sys.stderr)
        except AudioError as error:
            failures += 1
            print(f"error: {error}", file=sys.stderr)
    return cli.EXIT_SOME_FAILED if failures else cli.EXIT_OK


def _set_up_logging(*, debug: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.handlers = [handler]
    logger.setLevel(logging.DEBUG if debug else logging.INFO)


def _source(file: Path) -> Path | BinaryIO:
    return sys.stdin.buffer if str(file) == "-" else file


def _follow(
    stream: "TranscriptionStream", file: Path, outputs: "OutputFiles | None", *, verbose: bool
) -> None:
    """Show and write segments as they come."""
    from tqdm import tqdm  # noqa: PLC0415

    from whisper_npu.runtime.subtitles import format_timestamp  # noqa: PLC0415

    estimate = stream.duration_estimate
    with tqdm(
        total=None if estimate is None else round(estimate, 2),
        desc=file.name,
        unit="s",
        disable=verbose,
        bar_format=None
        if estimate is None
        else "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s {rate_fmt}",
    ) as bar:
        for segment in stream:
            if verbose:
                start, end = format_timestamp(segment.start), format_timestamp(segment.end)
                print(f"[{start} --> {end}] {segment.text}", flush=True)
            if outputs is not None:
                outputs.segment(segment)
            bar.update(max(0.0, segment.end - bar.n))


def _options(arguments: argparse.Namespace) -> "TranscribeOptions":
    from whisper_npu.runtime.options import TranscribeOptions  # noqa: PLC0415

    return TranscribeOptions(
        language=arguments.language,
        task=arguments.task,
        temperature=_ladder(arguments.temperature, arguments.temperature_increment_on_fallback),
        compression_ratio_threshold=arguments.compression_ratio_threshold,
        logprob_threshold=arguments.logprob_threshold,
        no_speech_threshold=arguments.no_speech_threshold,
        condition_on_previous_text=arguments.condition_on_previous_text,
        initial_prompt=arguments.initial_prompt,
        without_timestamps=arguments.without_timestamps,
        max_initial_timestamp=arguments.max_initial_timestamp,
        suppress_tokens=_token_ids(arguments.suppress_tokens),
        beam_size=arguments.beam_size,
        best_of=arguments.best_of,
        patience=arguments.patience,
        length_penalty=arguments.length_penalty,
    )


def _ladder(start: float, step: float | None) -> tuple[float, ...]:
    """Temperatures from `start` to 1 in steps."""
    if step is None:
        return (start,)
    if step <= 0:
        raise UsageError("--temperature-increment-on-fallback takes a number above 0, or None")
    rungs = int((1.0 - start) / step + 1e-6)
    return tuple(round(start + rung * step, 6) for rung in range(max(0, rungs) + 1))


def _token_ids(text: str) -> tuple[int, ...] | None:
    """Ids in `text`; None for the model's own list."""
    try:
        ids = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise UsageError(
            f"--suppress-tokens takes numbers separated by commas, not {text!r}"
        ) from None
    return None if -1 in ids else ids


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    return cli.run(transcribe, build_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
