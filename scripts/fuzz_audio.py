"""Decodes thousands of damaged recordings and counts the outcomes: `make fuzz`.

Each recording must be read, read with a warning, or refused with one line. A signal, a hang or any
other exception is a fault of whisper-npu; the files that cause it are kept.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from whisper_npu.errors import UsageError
from whisper_npu.scripts.common import cli

EPILOG = """\
examples:
  python scripts/fuzz_audio.py
  python scripts/fuzz_audio.py --files 500 --model models/tiny.en
  python scripts/fuzz_audio.py --seed 7 --keep /tmp/failing

exit codes:
  0  every file was read or refused
  1  a file caused a signal, a hang or a traceback; it is kept
  2  the command line is wrong
"""


def build_parser() -> cli.Parser:
    """The command line."""
    parser = cli.Parser(
        "fuzz_audio",
        description="Decode damaged recordings of every kind, and count the outcomes.",
        epilog=EPILOG,
    )
    parser.add_argument(
        "--files",
        type=int,
        default=5_000,
        help="number of damaged files to decode (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="seed of the damage; the same seed makes the same files (default: %(default)s)",
    )
    parser.add_argument(
        "--limit",
        type=float,
        default=60,
        metavar="SECONDS",
        help="time after which a file counts as a hang (default: %(default)s)",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=os.cpu_count() or 1,
        help="number of processes (default: one per core)",
    )
    parser.add_argument(
        "--keep",
        metavar="DIR",
        default="build/fuzz",
        help="folder for the files that cause a fault (default: %(default)s)",
    )
    parser.add_argument(
        "--isolated",
        action="store_true",
        help="run FFmpeg in its child process, as `transcribe` does; its crashes are then hidden",
    )
    parser.add_argument(
        "--model",
        metavar="DIR",
        help="run the files through `whisper-npu transcribe` with this model, instead of only "
        "decoding their audio",
    )
    parser.add_argument(
        "recordings",
        nargs="*",
        metavar="FILE",
        help="recordings to damage in addition to the generated ones",
    )
    return parser


def fuzz(arguments: argparse.Namespace) -> int:
    """Damage, decode and count; returns the exit code."""
    from whisper_npu.scripts.benchmarks.audio_fuzzing import (  # noqa: PLC0415 - slow to import
        FAULTS,
        OUTCOMES,
        find_verdicts,
        write_files,
    )

    if min(arguments.files, arguments.jobs) < 1 or arguments.limit <= 0:
        raise UsageError("--files, --jobs and --limit must be above 0")
    kept = Path(arguments.keep)
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="fuzz-audio-") as folder:
        files = write_files(
            Path(folder), arguments.files, arguments.seed, [*map(Path, arguments.recordings)]
        )
        for verdict in find_verdicts(
            files,
            jobs=arguments.jobs,
            limit=arguments.limit,
            isolated=arguments.isolated,
            model=arguments.model,
        ):
            counts[verdict.outcome] += 1
            if verdict.outcome in FAULTS:
                kept.mkdir(parents=True, exist_ok=True)
                shutil.copy(verdict.path, kept)
                place = kept / verdict.path.name
                print(f"{verdict.outcome}: {place}: {verdict.text}", file=sys.stderr)
    print(f"{arguments.files} files, seed {arguments.seed}:")
    for outcome in OUTCOMES:
        print(f"  {outcome:<20} {counts[outcome]:>6}")
    return cli.EXIT_SOME_FAILED if any(counts[each] for each in FAULTS) else cli.EXIT_OK


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    return cli.run(fuzz, build_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
