"""Measures the decoder's cache: `whisper-npu benchmark-kv-cache`, `scripts/benchmark_kv_cache.py`.

Every kind of cache decodes the same window in several lengths. The command measures time, amount of
computation and size of the cache. It fails if two kinds decode different tokens.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from whisper_npu.errors import UsageError
from whisper_npu.runtime.engines.choices import PRECISIONS
from whisper_npu.scripts.common import cli, console
from whisper_npu.scripts.common.decoding_options import add_model_options
from whisper_npu.scripts.common.outputs import check_outputs, write_text

KINDS = ("off", "concat", "static", "stateful")
NEW_TOKENS = (5, 10, 15, 20, 25, 30, 50, 80, 128, 256, 440)

EPILOG = """\
examples:
  whisper-npu benchmark-kv-cache --model tiny.en
  whisper-npu benchmark-kv-cache --model base --json kv.json --plots pictures/ talk.flac
  whisper-npu benchmark-kv-cache --model tiny.en --kinds off,stateful --new-tokens 30,128

The last line printed is the verdict, PASS or FAIL, with its reason.

exit codes:
  0  every kind decoded the same tokens
  1  a kind decoded other tokens, or could not be used
  2  the command line is wrong
  3  the model or the device cannot be used
"""


def build_parser() -> cli.Parser:
    """The command line."""
    parser = cli.Parser(
        "benchmark-kv-cache",
        description="Measure the time and memory of each kind of decoder cache.",
        epilog=EPILOG,
        conflict_handler="resolve",  # --precision has another default here
    )
    add_model_options(parser, kv_cache=False)
    parser.add_argument(
        "file",
        nargs="?",
        metavar="FILE",
        help="recording whose first 30 s are decoded (default: synthetic noise)",
    )
    what = parser.add_argument_group("what to measure")
    what.add_argument(
        "--kinds",
        default=",".join(KINDS),
        metavar="LIST",
        help="kinds of cache to compare, separated by commas (default: %(default)s)",
    )
    what.add_argument(
        "--new-tokens",
        default=",".join(map(str, NEW_TOKENS)),
        metavar="LIST",
        help="numbers of tokens to decode, separated by commas (default: %(default)s)",
    )
    what.add_argument(
        "--precision",
        default="f32",
        type=cli.precision(*PRECISIONS),
        choices=PRECISIONS,
        help="number format of the computation; only f32 guarantees equal tokens "
        "(default: %(default)s)",
    )
    what.add_argument(
        "--language",
        default="en",
        help="language of the recording: a code or an English name (default: %(default)s)",
    )
    what.add_argument(
        "--repeats",
        type=int,
        default=3,
        metavar="N",
        help="number of measured runs; short decodes run three times as often. More runs give "
        "steadier figures (default: %(default)s)",
    )
    out = parser.add_argument_group("results")
    out.add_argument(
        "--json", type=Path, metavar="FILE", help="write all results to FILE, tokens included"
    )
    out.add_argument(
        "--markdown", type=Path, metavar="FILE", help="write the tables to FILE as Markdown"
    )
    out.add_argument(
        "--plots",
        type=Path,
        metavar="DIR",
        help="write kv_cache_time.png and kv_cache_throughput.png into this folder",
    )
    return parser


def benchmark_kv_cache(arguments: argparse.Namespace) -> int:
    """Measure the kinds of cache of the command line; returns the exit code."""
    from whisper_npu.scripts.benchmarks.conditions import (  # noqa: PLC0415
        busy_warning,
        conditions,
        conditions_line,
    )
    from whisper_npu.scripts.benchmarks.kv_cache_kinds import measure_kinds  # noqa: PLC0415
    from whisper_npu.scripts.benchmarks.kv_cache_report import (  # noqa: PLC0415
        cell_table,
        draw,
        growth_table,
        markdown,
        to_json,
        verdict,
    )

    names = _kinds(arguments.kinds)
    new_tokens = _numbers(arguments.new_tokens)
    if arguments.repeats < 1:
        raise UsageError(f"--repeats is {arguments.repeats}; give 1 or more")
    check_outputs((arguments.json, arguments.markdown), plot_folder=arguments.plots)
    folder = cli.find_model(arguments.model, arguments.variant)
    found = conditions(arguments.threads)
    if warning := busy_warning(found):
        console.warning(warning)

    kinds, auto = measure_kinds(arguments, folder, names, new_tokens)
    sound = Path(arguments.file).name if arguments.file else "synthetic noise"
    subject = f"{folder.name} on {arguments.device}, {sound}, forced decoding of one window"

    print(f"{subject}\n{conditions_line(found)}\n")
    print(f"{cell_table(kinds)}\n\n{growth_table(kinds)}\n")
    passed, line = verdict(kinds, auto)
    if arguments.json:
        content = to_json(kinds, found, auto, subject)
        write_text(arguments.json, json.dumps(content, indent=2) + "\n")
    if arguments.markdown:
        write_text(arguments.markdown, markdown(kinds, found, auto, subject))
    if arguments.plots:
        draw(kinds, arguments.plots, subject)
    print(line)
    return cli.EXIT_OK if passed else cli.EXIT_SOME_FAILED


def _kinds(text: str) -> list[str]:
    names = cli.names(text)
    unknown = [name for name in names if name not in KINDS]
    if unknown or not names:
        raise UsageError(f"--kinds takes some of {', '.join(KINDS)}, not {text!r}")
    return list(dict.fromkeys(names))


def _numbers(text: str) -> list[int]:
    try:
        numbers = sorted({int(part) for part in text.split(",") if part.strip()})
    except ValueError:
        numbers = []
    if not numbers or numbers[0] < 1:
        raise UsageError(f"--new-tokens takes numbers from 1 on, not {text!r}")
    return numbers


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    return cli.run(benchmark_kv_cache, build_parser(), argv)


if __name__ == "__main__":
    cli.be_process(main)
