"""Measures speed: `whisper-npu benchmark`, `python scripts/benchmark_rtf.py`.

It measures how many seconds of audio are transcribed per second, the time of each stage, the time
to the first words, and how much of the machine is used, for any number of configurations.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from whisper_npu.errors import UsageError
from whisper_npu.scripts.benchmarks.rtf_configurations import (
    LENGTHS,
    add_one_by_one,
    read_configurations,
    separate_lengths,
)
from whisper_npu.scripts.common import cli, console
from whisper_npu.scripts.common.decoding_options import add_decoding_options, add_model_options
from whisper_npu.scripts.common.outputs import check_outputs, needing_the_extra, write_text

BUILT_IN = "beckett"

EPILOG = f"""\
examples:
  whisper-npu benchmark talk.flac --language en
  whisper-npu benchmark --references long.tsv --compare precision=f32 \\
      --compare "kv-cache=concat mode=sequential" --json rtf.json --plot rtf.png
  whisper-npu benchmark --model base --lengths --roofline

Times count from opening a file to its text, without loading the model. The last line printed is the
speed of the first configuration, as `RTFx: 187.3`.

{cli.EXIT_CODES}"""


def build_parser() -> cli.Parser:
    """The command line."""
    parser = cli.Parser(
        "benchmark",
        description="Measure how fast an exported Whisper model transcribes.",
        epilog=EPILOG,
    )
    parser.add_argument(
        "files",
        nargs="*",
        metavar="FILE",
        help="recordings and folders (default: the recordings of --references, else the built-in "
        "recording)",
    )
    what = parser.add_argument_group("what to measure")
    what.add_argument(
        "--references",
        action="append",
        default=[],
        metavar="TSV",
        help="recordings with what is said in them: a TSV of audio<TAB>reference, or a LibriSpeech "
        "folder. The word error rate is then shown beside the speed",
    )
    what.add_argument(
        "--lengths",
        nargs="*",
        metavar="SECONDS",
        help="also measure recordings of these lengths, made from the given recordings, to see how "
        f"speed depends on length ({' '.join(f'{length:g}' for length in LENGTHS)} if no number "
        "follows)",
    )
    what.add_argument(
        "--compare",
        action="append",
        default=[],
        metavar="OPTIONS",
        help="also measure the configuration of the command line with these options changed, as in "
        '"precision=f32 mode=sequential". Can be repeated',
    )
    what.add_argument(
        "--repeats",
        type=int,
        default=5,
        metavar="N",
        help="number of measured runs; more runs give steadier figures (default: %(default)s)",
    )
    add_one_by_one(what)
    what.add_argument(
        "--no-start",
        action="store_true",
        help="do not measure cold start, warm start and peak memory, which need separate processes",
    )
    what.add_argument(
        "--roofline",
        action="store_true",
        help="also measure this processor's peak speeds and show each stage beside them",
    )
    out = parser.add_argument_group("results")
    out.add_argument(
        "--json", type=Path, metavar="FILE", help="write all results to FILE, texts included"
    )
    out.add_argument(
        "--markdown", type=Path, metavar="FILE", help="write the tables to FILE as Markdown"
    )
    out.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw the times of the stages (png, svg, pdf)"
    )
    add_model_options(parser)
    add_decoding_options(parser)
    return parser


def benchmark_rtf(arguments: argparse.Namespace) -> int:
    """Measure the configurations of the command line; returns the exit code."""
    lengths = separate_lengths(arguments)
    if arguments.repeats < 1:
        raise UsageError(f"--repeats is {arguments.repeats}; give 1 or more")
    check_outputs((arguments.json, arguments.markdown), arguments.plot)
    configurations = read_configurations(arguments)
    with needing_the_extra("error rates"):
        from whisper_npu.scripts.benchmarks import rtf_report as report  # noqa: PLC0415
    from whisper_npu.scripts.benchmarks.conditions import (  # noqa: PLC0415
        busy_warning,
        conditions,
    )
    from whisper_npu.scripts.benchmarks.recordings import find_recordings  # noqa: PLC0415
    from whisper_npu.scripts.benchmarks.rtf import load  # noqa: PLC0415
    from whisper_npu.scripts.benchmarks.rtf_workloads import (  # noqa: PLC0415
        measure_lengths,
        measure_roofline,
        measure_starts,
        measure_workload,
    )

    paths = arguments.files
    if not paths and not arguments.references:
        from whisper_npu.export.assets import fetch  # noqa: PLC0415

        paths = [fetch(BUILT_IN)]
    recordings = find_recordings(paths, arguments.references)
    found = conditions(arguments.threads)
    if warning := busy_warning(found):
        console.warning(warning)
    loaded = [load(configuration) for configuration in configurations]

    workloads = [measure_workload("recordings", loaded, recordings, arguments.repeats)]
    if not arguments.no_start:
        for measured in workloads[0].measurements:
            measure_starts(measured, recordings)
    with tempfile.TemporaryDirectory(prefix="whisper-npu-") as folder:
        workloads += measure_lengths(lengths, loaded, recordings, arguments.repeats, Path(folder))
    machine, roofs = measure_roofline(loaded[0], recordings) if arguments.roofline else (None, [])

    report.show(workloads, found, machine, roofs)
    if arguments.json:
        content = report.to_json(workloads, found, machine, roofs)
        write_text(arguments.json, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    if arguments.markdown:
        write_text(arguments.markdown, report.markdown(workloads, found, machine, roofs))
    if arguments.plot:
        report.draw(workloads[0], arguments.plot)
    print(f"RTFx: {workloads[0].measurements[0].rtfx.median:.1f}")
    return cli.EXIT_OK


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    return cli.run(benchmark_rtf, build_parser(), argv)


if __name__ == "__main__":
    cli.be_process(main)
