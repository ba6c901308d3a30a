"""Transcribes live audio from standard input: `whisper-npu stream`, `python scripts/stream.py`."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from whisper_npu.errors import UsageError
from whisper_npu.runtime.output.formats import FORMATS
from whisper_npu.scripts.common import cli, console
from whisper_npu.scripts.common.decoding_options import (
    add_decoding_options,
    add_model_options,
    decoding_options,
)

# Repeated here, so that `--help` does not load an engine.
SAMPLE_FORMATS = ("s16le", "s32le", "f32le")

EPILOG = """\
examples:
  arecord -q -f S16_LE -r 16000 -c 1 -t raw | whisper-npu stream
  arecord -q -f cd -t wav | whisper-npu stream --model base --language German
  ffmpeg -loglevel error -i rtsp://camera/1 -f wav - | whisper-npu stream --json-lines
  arecord -q -f cd -t wav | whisper-npu stream --save meeting.srt --save meeting.json
  ffmpeg -loglevel error -f dshow -i audio=Microphone -f s16le -ar 16000 -ac 1 - | \\
    whisper-npu stream

A sentence is printed when it is certain not to change. On a terminal, the sentence that is being
spoken is shown below. The end of the input or Ctrl-C ends the session: the rest is transcribed, and
the exit code is 0. A second Ctrl-C stops at once.

exit codes:
  0    the input was transcribed to its end
  1    the input cannot be read
  2    the command line is wrong
  3    the model or the device cannot be used
  130  stopped at once
  143  ended by SIGTERM (129 by SIGHUP)
"""


def build_parser() -> cli.Parser:
    """The command line."""
    parser = cli.Parser(
        "stream",
        description="Transcribe speech from standard input while it is being spoken.",
        epilog=EPILOG,
        allow_abbrev=False,  # argparse would take --mode of `transcribe` for --model
    )
    audio = parser.add_argument_group(
        "input", "raw samples, or a WAV stream, whose header says the format, rate and channels"
    )
    audio.add_argument(
        "--format", choices=SAMPLE_FORMATS, help="format of raw samples (default: s16le)"
    )
    audio.add_argument(
        "--rate",
        type=cli.positive,
        metavar="HZ",
        help="sample rate of raw samples (default: 16000)",
    )
    audio.add_argument(
        "--channels",
        dest="n_channels",
        type=cli.positive,
        metavar="N",
        help="number of channels of raw samples (default: 1)",
    )
    audio.add_argument(
        "--min-chunk",
        type=float,
        default=1.0,
        metavar="SECONDS",
        help="seconds of new audio before the next decoding. A smaller value shows text sooner and "
        "takes more work (default: 1)",
    )
    audio.add_argument(
        "--pause",
        type=float,
        default=0.5,
        metavar="SECONDS",
        help="seconds of silence after which all text is final; a smaller value makes it final "
        "sooner (default: %(default)s)",
    )
    out = parser.add_argument_group("output")
    out.add_argument(
        "--json-lines",
        action="store_true",
        help="print one JSON object per line, for programs: committed text, which never changes, "
        "and tentative text, which may change",
    )
    out.add_argument(
        "--save",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="also write the text to FILE; its suffix chooses the format: "
        f"{', '.join(FORMATS)}. Until the input ends the name has .partial in it. Can be repeated",
    )
    add_model_options(parser)
    add_decoding_options(parser, live=True)
    return parser


def stream(arguments: argparse.Namespace) -> int:
    """Transcribe standard input while it arrives; returns the exit code."""
    options = decoding_options(arguments)
    if sys.stdin is not None and sys.stdin.isatty():
        raise UsageError("standard input is a terminal: pipe audio into it; see --help")
    arriving = cli.standard_input()
    # Heavy modules are imported after the command line has been checked.
    from whisper_npu.scripts.common.live_output import SavedFile  # noqa: PLC0415
    from whisper_npu.scripts.common.live_transcription import transcribe_live  # noqa: PLC0415

    with ExitStack() as stack:
        files = [stack.enter_context(SavedFile(path)) for path in dict.fromkeys(arguments.save)]
        warnings = transcribe_live(arguments, options, arriving, files)
    for warning in warnings:
        console.warning(warning)
    return cli.EXIT_OK


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    return cli.run(stream, build_parser(), argv)


if __name__ == "__main__":
    cli.be_process(main)
