"""Measures word error rates: `whisper-npu wer`, `python scripts/evaluate_wer.py`.

It measures any number of models, devices, caches, precisions and decode modes on the same
recordings, together with their speed.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from whisper_npu.errors import UsageError
from whisper_npu.runtime.engines.choices import BACKENDS, KV_CACHES, PRECISIONS
from whisper_npu.runtime.options import MODES, TranscribeOptions
from whisper_npu.scripts.common import cli
from whisper_npu.scripts.common.decoding_options import (
    add_decoding_options,
)
from whisper_npu.scripts.common.outputs import check_outputs, needing_the_extra

EPILOG = """\
examples:
  whisper-npu wer references.tsv --language en
  whisper-npu wer LibriSpeech/test-other --model models/base --without-timestamps --max-wer 9.6
  whisper-npu wer long.tsv --model tiny.en --model base --mode sequential --mode batched \\
      --plot wer.png --markdown wer.md

A manifest has one line per recording, audio<TAB>reference; the audio path is relative to the
manifest. The last line printed is the error rate of the corpus in percent, as `WER: 18.70`; several
configurations have one such line each, in order.

exit codes:
  0  everything was done
  1  a recording could not be read, or an error rate is above --max-wer
  2  the command line or a manifest is wrong
  3  a model or a device cannot be used; the other configurations were measured
"""


def build_parser() -> cli.Parser:
    """The command line."""
    parser = cli.Parser(
        "wer",
        description="Measure the word error rate and speed of exported Whisper models.",
        epilog=EPILOG,
        conflict_handler="resolve",  # --mode can be repeated here, unlike in `transcribe`
    )
    parser.add_argument(
        "references",
        nargs="+",
        type=Path,
        metavar="REFERENCES",
        help="recordings with what is said in them: TSV manifests (audio<TAB>reference) and "
        "LibriSpeech folders",
    )
    what = parser.add_argument_group(
        "configurations", "each can be repeated; every combination is measured"
    )
    what.add_argument(
        "--model",
        action="append",
        metavar="DIR",
        help="model folder, or the name of a model, which is exported on first use (default: "
        f"{cli.DEFAULT_MODEL})",
    )
    what.add_argument(
        "--variant",
        action="append",
        metavar="NAME",
        help="graphs to take from a folder with several; see `whisper-npu transcribe --help` "
        "(default: the most exact)",
    )
    what.add_argument(
        "--device",
        type=cli.device,
        action="append",
        metavar="DEVICE",
        help="device that computes: CPU, GPU, NPU, NPU_EMULATED, AUTO; see `whisper-npu transcribe "
        "--help` (default: CPU)",
    )
    what.add_argument(
        "--backend",
        action="append",
        choices=BACKENDS,
        help=f"library that runs the graphs (default: {BACKENDS[0]})",
    )
    what.add_argument(
        "--kv-cache",
        action="append",
        choices=KV_CACHES,
        help="where the key/value states of earlier tokens are kept (default: auto, the fastest)",
    )
    what.add_argument(
        "--precision",
        action="append",
        type=cli.precision(*PRECISIONS),
        choices=PRECISIONS,
        help="number format of the computation; give several to see what each costs in accuracy "
        "(default: auto)",
    )
    what.add_argument(
        "--threads",
        type=int,
        default=0,
        help="number of processor threads; 0 is one per core (default: %(default)s)",
    )

    add_decoding_options(parser)
    what.add_argument(
        "--mode",
        action="append",
        choices=MODES,
        help="how recordings are cut into windows; see `whisper-npu transcribe --help` (default: "
        f"{TranscribeOptions.mode})",
    )

    out = parser.add_argument_group("results")
    out.add_argument(
        "--max-wer",
        type=float,
        metavar="PERCENT",
        help="exit with code 1 if the error rate of a configuration is above this, for CI "
        "(default: no limit)",
    )
    out.add_argument(
        "--worst",
        type=int,
        default=0,
        metavar="N",
        help="print text and reference of the N worst recordings, word by word (default: "
        "%(default)s)",
    )
    out.add_argument(
        "--json", type=Path, metavar="FILE", help="write all results to FILE, texts included"
    )
    out.add_argument(
        "--markdown", type=Path, metavar="FILE", help="write the tables to FILE as Markdown"
    )
    out.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="draw error rate against speed (png, svg, pdf)",
    )
    return parser


def evaluate_wer(arguments: argparse.Namespace) -> int:
    """Measure every configuration of the command line; returns the exit code."""
    # Heavy modules are imported after the command line has been checked.
    with needing_the_extra("measuring error rates"):
        from whisper_npu.scripts.evaluation import report  # noqa: PLC0415
        from whisper_npu.scripts.evaluation.wer import metric_for  # noqa: PLC0415
        from whisper_npu.scripts.evaluation.word_errors import evaluate  # noqa: PLC0415
    from whisper_npu.export.references import read_references  # noqa: PLC0415
    from whisper_npu.scripts.evaluation.configurations import (  # noqa: PLC0415
        common_language,
        measure,
    )

    if arguments.worst < 0:
        raise UsageError(f"--worst is {arguments.worst}; give 0 or more")
    check_outputs((arguments.json, arguments.markdown), arguments.plot)
    references = [reference for path in arguments.references for reference in read_references(path)]
    runs, exit_code = measure(arguments, references)
    if not runs:
        return exit_code
    metric = metric_for(common_language(runs))
    evaluations = [evaluate(run, metric) for run in runs]
    report.show(evaluations, arguments.worst)
    report.write(
        evaluations,
        arguments.references,
        worst=arguments.worst,
        json_file=arguments.json,
        markdown_file=arguments.markdown,
        plot_file=arguments.plot,
    )
    for evaluation in evaluations:
        rate = evaluation.rate
        print(f"{metric.name}: {'-' if rate is None else format(rate, '.2f')}")
    above = report.above(evaluations, arguments.max_wer)
    for line in above:
        print(line, file=sys.stderr)
    return max(exit_code, cli.EXIT_SOME_FAILED if above else cli.EXIT_OK)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    return cli.run(evaluate_wer, build_parser(), argv)


if __name__ == "__main__":
    cli.be_process(main)
