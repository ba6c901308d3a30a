"""Measures memory and time for recordings of several lengths, generated while they are read.

    python scripts/benchmark_memory.py --model models/tiny.en --content silence --hours 0.17 12

Each length is transcribed in its own process. Memory should not grow with the length, and time
should grow in proportion to it.
"""

import argparse
import multiprocessing
import sys
from collections.abc import Sequence
from pathlib import Path

from whisper_npu.runtime.options import TranscribeOptions

CONTENTS = ("silence", "noise", "speech")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="model folder")
    parser.add_argument(
        "--content",
        choices=CONTENTS,
        default="silence",
        help="sound of the recordings; each kind uses memory in another way (default: %(default)s)",
    )
    parser.add_argument(
        "--speech", type=Path, help="recording that --content speech repeats; required for it"
    )
    parser.add_argument(
        "--hours",
        type=float,
        nargs="+",
        default=[1 / 6, 12.0],
        help="lengths of the recordings (default: 10 minutes and 12 hours)",
    )
    parser.add_argument(
        "--mode",
        choices=("auto", "batched", "sequential"),
        default="auto",
        help="how recordings are cut into windows (default: %(default)s)",
    )
    parser.add_argument(
        "--no-vad", action="store_true", help="decode all audio, audio without speech too"
    )
    parser.add_argument(
        "--live",
        action="store_true",
        help="transcribe as live speech, fed half a second at a time",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print a table; returns the exit code."""
    parser = build_parser()
    wanted = parser.parse_args(arguments)
    if wanted.content == "speech" and wanted.speech is None:
        parser.error("--content speech needs --speech RECORDING")
    from whisper_npu.scripts.benchmarks.memory import (  # noqa: PLC0415 - slow to import
        measure,
        minute_of,
    )

    minute = minute_of(wanted.content, wanted.speech)
    options = TranscribeOptions(language="en", mode=wanted.mode, vad=not wanted.no_vad)
    how = "live" if wanted.live else f"{options.mode}, vad {options.vad}"
    print(f"{wanted.content}, {how}")
    print("| hours | peak MiB | s | s per hour | segments |\n| --- | --- | --- | --- | --- |")
    context = multiprocessing.get_context("spawn")
    for hours in wanted.hours:
        with context.Pool(1) as process:
            job = (wanted.model, minute, hours, options, wanted.live)
            print(process.apply(measure, job), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
