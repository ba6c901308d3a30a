"""Uses files, live speech and the server for hours, and watches memory, handles and threads.

This is `make soak HOURS=1`; the last figures are in docs/performance.md.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from whisper_npu.errors import UsageError
from whisper_npu.scripts.common import cli, console
from whisper_npu.scripts.common.outputs import check_outputs, needing_the_extra
from whisper_npu.scripts.common.tables import markdown_table

if TYPE_CHECKING:
    from whisper_npu.scripts.benchmarks.soak import Sample

_MOST_GROWTH = 0.02  # of memory
_MIB = 1 << 20
_SHOWN_FAULTS = 20
_LEAST_SAMPLES = 4  # one in each quarter

EPILOG = """\
examples:
  python scripts/soak.py talk.wav --hours 1
  python scripts/soak.py short.wav long.mp3 --model models/base --hours 8 --plot soak.png

exit codes:
  0  nothing grew, and every recording had the same text each time
  1  memory grew by more than 2 %, a handle or a thread was not given back, or a text changed
  2  the command line is wrong
  3  the model or the device cannot be used
"""


def build_parser() -> cli.Parser:
    """The command line."""
    parser = cli.Parser(
        "soak",
        description=(
            "Use files, live speech and the server together for hours, and watch what they hold.\n"
            "The last quarter is compared with the second; the first is left to warm up."
        ),
        epilog=EPILOG,
    )
    parser.add_argument("recordings", nargs="+", metavar="FILE", help="recordings to transcribe")
    parser.add_argument(
        "--model", default="tiny.en", help="model folder or name (default: %(default)s)"
    )
    parser.add_argument("--hours", type=float, default=1.0, help="how long (default: %(default)g)")
    parser.add_argument(
        "--interval",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="time between two samples (default: %(default)g)",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the memory (png, svg, pdf)")
    return parser


def soak(arguments: argparse.Namespace) -> int:
    """Use, watch and judge; returns the exit code."""
    if not (arguments.hours > 0 and arguments.interval > 0):  # NaN is not above 0
        raise UsageError("--hours and --interval must be above 0")
    if 3600 * arguments.hours < _LEAST_SAMPLES * arguments.interval:
        least = _LEAST_SAMPLES * arguments.interval / 3600
        raise UsageError(f"quarters of the samples are compared: give --hours {least:.2g} or more")
    check_outputs([], arguments.plot)
    model = cli.find_model(arguments.model)
    with needing_the_extra("a soak", "dev"):
        from whisper_npu.scripts.benchmarks import soak as work  # noqa: PLC0415

    print(f"{'minutes':>8} {'process':<8} {'MiB':>6} {'handles':>8} {'threads':>8}", flush=True)

    def show(name: str, sample: "Sample") -> None:
        figures = f"{sample.memory / _MIB:>6.0f} {sample.handles:>8} {sample.threads:>8}"
        print(f"{sample.seconds / 60:>8.1f} {name:<8} {figures}", flush=True)

    samples, tally = work.soak(
        str(model), arguments.recordings, 3600 * arguments.hours, arguments.interval, show
    )
    rows, is_flat = [], True
    for name, taken in samples.items():
        more = work.growth(taken)
        is_flat &= more.memory <= _MOST_GROWTH and max(more.handles, more.threads) <= 0
        last = taken[-1]
        rows.append(
            [
                name,
                f"{last.memory / _MIB:.0f}",
                f"{more.memory:+.1%}",
                f"{last.handles} ({more.handles:+.0f})",
                f"{last.threads} ({more.threads:+.0f})",
            ]
        )
    print()
    print(markdown_table(["process", "MiB", "growth", "handles", "threads"], rows))
    print(", ".join(f"{count} x {kind}" for kind, count in tally.done.items()))
    for fault in tally.faults[:_SHOWN_FAULTS]:
        console.error(fault)
    if arguments.plot:
        _draw(samples, arguments.plot)
    return cli.EXIT_OK if is_flat and not tally.faults else cli.EXIT_SOME_FAILED


def _draw(samples: "Mapping[str, Sequence[Sample]]", path: Path) -> None:
    """Draw the memory of each process over time."""
    from whisper_npu.scripts.common.plots import new_figure, save  # noqa: PLC0415 - slow to import

    figure, axes = new_figure("Memory of a soak", "resident, children included", "minutes", "MiB")
    for name, taken in samples.items():
        minutes = [sample.seconds / 60 for sample in taken]
        axes.plot(minutes, [sample.memory / _MIB for sample in taken], label=name)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    save(figure, path)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    return cli.run(soak, build_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
