"""Transcribes audio and video files: `whisper-npu transcribe`, `python scripts/transcribe.py`.

Option names are openai/whisper's.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from whisper_npu.errors import UsageError
from whisper_npu.runtime.output.formats import FORMATS
from whisper_npu.scripts.common import cli, console
from whisper_npu.scripts.common.console import one_line
from whisper_npu.scripts.common.decoding_options import (
    add_decoding_options,
    add_model_options,
    decoding_options,
    model_options,
)
from whisper_npu.scripts.common.progress import Progress, log_beside
from whisper_npu.scripts.common.signals import Terminated, on_interrupt
from whisper_npu.scripts.common.transcription_batch import (
    Batch,
    find_recordings,
    none_exists,
    without_complete,
)

EPILOG = f"""\
examples:
  whisper-npu transcribe talk.mp3
  whisper-npu transcribe recordings/ --output-dir texts --output-format srt,json
  whisper-npu transcribe recordings/ --output-dir texts --output-format srt,json --skip-existing
  whisper-npu transcribe interview.mp4 --model base --language German
  ffmpeg -i talk.mkv -f wav - | whisper-npu transcribe -

{cli.EXIT_CODES}"""


def build_parser() -> cli.Parser:
    """The command line."""
    parser = cli.Parser(
        "transcribe",
        description=(
            "Transcribe audio and video files with an exported Whisper model. The text is printed. "
            "With\n-o DIR or -f FORMAT it is also written to files: talk.mp3 becomes talk.srt, in "
            "DIR or in\nthe current folder."
        ),
        epilog=EPILOG,
    )
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="recordings, folders (searched with all folders in them), or - for standard input",
    )
    add_model_options(parser)
    out = parser.add_argument_group("output")
    out.add_argument(
        "-o",
        "--output-dir",
        metavar="DIR",
        help="folder in which the files are written (default: the current folder)",
    )
    out.add_argument(
        "-f",
        "--output-format",
        action="append",
        metavar="FORMAT",
        help=f"formats of the files: {', '.join(FORMATS)}, several separated by commas, or all "
        "(default: all with --output-dir; without it no file is written)",
    )
    out.add_argument(
        "--keep-suffix",
        action="store_true",
        help="write talk.mp3.srt instead of talk.srt, for recordings that differ only in their "
        "suffix",
    )
    out.add_argument(
        "--skip-existing",
        action="store_true",
        help="leave out recordings whose files an earlier run completed with the same model and "
        "options, to go on with a run that was stopped or killed; needs --output-dir, in which "
        "transcribe.jsonl notes the state of every recording",
    )
    cli.add_flag(
        out,
        "--highlight-words",
        default=False,
        help="underline each word in srt and vtt while it is spoken; needs --word-timestamps "
        "(default: %(default)s)",
    )
    for limit, what in (
        ("--max-line-width", "characters in a line of srt and vtt"),
        ("--max-line-count", "lines in a subtitle, together with --max-line-width"),
        ("--max-words-per-line", "words in a subtitle, without --max-line-width"),
    ):
        needs = f"largest number of {what}; needs --word-timestamps (default: no limit)"
        out.add_argument(limit, type=int, metavar="N", help=needs)
    cli.add_flag(
        out,
        "--verbose",
        default=True,
        help="print the text while it is decoded (default: True)",
    )
    out.add_argument(
        "--report",
        action="store_true",
        help="print what became of every second: transcribed, silent, skipped or dropped, and why",
    )
    out.add_argument(
        "--debug",
        action="store_true",
        help="log the key/value contract of the graphs, the cache's shapes at each step, and the "
        "time of each stage",
    )

    add_decoding_options(parser)
    return parser


def transcribe(arguments: argparse.Namespace) -> int:
    """Transcribe the files that the command line names; returns the exit code."""
    # Heavy modules are imported after the command line has been checked.
    from whisper_npu.api import load_model  # noqa: PLC0415
    from whisper_npu.runtime.output.formats import expand_formats  # noqa: PLC0415
    from whisper_npu.runtime.output.names import check_names, check_output_dir  # noqa: PLC0415
    from whisper_npu.runtime.output.subtitles import SubtitleOptions  # noqa: PLC0415
    from whisper_npu.scripts.common.journal import open_journal  # noqa: PLC0415

    options = decoding_options(arguments)
    layout = SubtitleOptions(
        highlight_words=arguments.highlight_words,
        max_line_width=arguments.max_line_width,
        max_line_count=arguments.max_line_count,
        max_words_per_line=arguments.max_words_per_line,
    )
    _check_where(arguments)
    for note in layout.check(word_timestamps=options.word_timestamps):
        console.warning(note)
    formats: tuple[str, ...] = ()
    if arguments.output_format or arguments.output_dir:
        formats = expand_formats(",".join(arguments.output_format or ["all"]))
    folder = arguments.output_dir or "."
    recordings, n_missing = find_recordings(arguments.files, keep_suffix=arguments.keep_suffix)
    if formats:
        check_names([(each.file, each.name) for each in recordings], folder, formats)
        check_output_dir(folder)
    if none_exists(recordings):
        return cli.EXIT_SOME_FAILED
    # This may export the model and print lines.
    model_folder = cli.find_model(arguments.model, arguments.variant)
    journal = None
    is_alone = len(recordings) == 1
    if arguments.output_dir:
        journal = open_journal(arguments, model_folder, options, formats)
        if arguments.skip_existing:
            recordings = without_complete(recordings, journal)
            if not recordings:
                return cli.EXIT_SOME_FAILED if n_missing else cli.EXIT_OK
    with Progress([each.file for each in recordings]) as progress:
        log_beside(progress, debug=arguments.debug)
        progress.status = f"loading {one_line(arguments.model)}"

        def show(step: str) -> None:
            progress.status = step

        model = load_model(model_folder, **model_options(arguments), progress=show)
        progress.status = ""
        batch = Batch(recordings, arguments, formats, layout, progress, journal, is_alone=is_alone)
        try:
            with on_interrupt(batch.stop):
                n_failed = batch.run(model, options)
        except (KeyboardInterrupt, Terminated):
            batch.advise()
            raise
    batch.summarise()
    if batch.is_stopped:
        batch.advise()
        raise KeyboardInterrupt
    return cli.EXIT_SOME_FAILED if n_failed + n_missing else cli.EXIT_OK


def _check_where(arguments: argparse.Namespace) -> None:
    """Refuse options for the output that say nothing, or something else than meant."""
    wants = (arguments.verbose, arguments.report, arguments.output_format, arguments.output_dir)
    if not any(wants):
        raise UsageError("--verbose False prints no text: say with -o or -f where it is to go")
    name = Path(arguments.output_dir or "")
    if name.suffix.removeprefix(".") in FORMATS and not name.is_dir():
        raise UsageError(
            f"-o names a folder, and {name} looks like a file: write -o {name.parent} "
            f"-f {name.suffix.removeprefix('.')}"
        )
    if arguments.output_dir == "-":
        raise UsageError("-o names a folder for files; without -o and -f the text is printed")
    if arguments.skip_existing and not arguments.output_dir:
        raise UsageError("--skip-existing needs the --output-dir of the earlier run")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    return cli.run(transcribe, build_parser(), argv)


if __name__ == "__main__":
    cli.be_process(main)
