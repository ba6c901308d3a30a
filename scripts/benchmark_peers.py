"""Compares with other recognisers: `whisper-npu benchmark-peers`, `scripts/benchmark_peers.py`.

OpenVINO GenAI, faster-whisper, whisper.cpp and transformers run the same checkpoint on the same
recordings. Each runs in its own process, and all take turns with whisper-npu, run by run. They are
installed in a separate environment. The checkpoint is converted for each of them.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from whisper_npu.errors import UsageError
from whisper_npu.scripts.benchmarks.peers import PEERS
from whisper_npu.scripts.common import cli, console
from whisper_npu.scripts.common.outputs import check_outputs, needing_the_extra, write_text
from whisper_npu.spelling import did_you_mean

EPILOG = f"""\
examples:
  whisper-npu benchmark-peers long/references.tsv --model tiny.en
  whisper-npu benchmark-peers long.tsv utterances.tsv --model base --language en \\
      --peers openvino-genai-int8,faster-whisper-batched --json peers.json --plot peers.png

Every manifest is one set of recordings and has its own figures. All recognisers decode greedily;
their other options keep their defaults. A recogniser that gives timestamps only on request is asked
for them only with recordings longer than 30 s, which it cannot transcribe without timestamps.

{cli.EXIT_CODES}"""


def build_parser() -> cli.Parser:
    """The command line."""
    parser = cli.Parser(
        "benchmark-peers",
        description="Compare speed, accuracy, memory and start-up with other recognisers.",
        epilog=EPILOG,
    )
    parser.add_argument(
        "references",
        nargs="+",
        type=Path,
        metavar="REFERENCES",
        help="recordings with what is said in them: TSV manifests (audio<TAB>reference) and "
        "LibriSpeech folders",
    )
    what = parser.add_argument_group("what to compare")
    what.add_argument(
        "--model",
        default=cli.DEFAULT_MODEL,
        metavar="DIR",
        help="whisper-npu's model folder, or the name of a model (default: %(default)s)",
    )
    what.add_argument(
        "--checkpoint",
        metavar="SOURCE",
        help="checkpoint that the model was exported from; the other recognisers get it, too "
        "(default: the checkpoint in the model's manifest)",
    )
    what.add_argument(
        "--language",
        default="en",
        help="code of the language of the recordings (default: %(default)s)",
    )
    what.add_argument(
        "--peers",
        default=",".join(PEERS),
        metavar="LIST",
        help="recognisers to compare with, separated by commas (default: %(default)s)",
    )
    what.add_argument(
        "--threads",
        type=int,
        default=0,
        help="number of processor threads of each recogniser; 0 leaves each its own default "
        "(default: %(default)s)",
    )
    what.add_argument(
        "--repeats",
        type=int,
        default=3,
        metavar="N",
        help="number of measured runs; more runs give steadier figures (default: %(default)s)",
    )
    what.add_argument(
        "--one-by-one",
        action="store_true",
        help="let whisper-npu, too, begin a recording only when the one before it has its text; by "
        "default it decodes several recordings together",
    )
    what.add_argument(
        "--environment",
        type=Path,
        metavar="DIR",
        help="virtual environment of the other recognisers, made if it does not exist (default: in "
        "the user's cache)",
    )
    out = parser.add_argument_group("results")
    out.add_argument(
        "--json", type=Path, metavar="FILE", help="write all results to FILE, texts included"
    )
    out.add_argument(
        "--markdown", type=Path, metavar="FILE", help="write the tables to FILE as Markdown"
    )
    out.add_argument("--plot", type=Path, metavar="FILE", help="draw the speeds (png, svg, pdf)")
    return parser


def benchmark_peers(arguments: argparse.Namespace) -> int:
    """Compare the recognisers of the command line; returns the exit code."""
    with needing_the_extra("comparing accuracy"):
        from whisper_npu.scripts.benchmarks import peer_report as report  # noqa: PLC0415
    from whisper_npu.scripts.benchmarks.conditions import (  # noqa: PLC0415
        busy_warning,
        conditions,
        conditions_line,
    )
    from whisper_npu.scripts.benchmarks.peer_contestants import (  # noqa: PLC0415
        compare_with_progress,
        make_contestants,
    )
    from whisper_npu.scripts.benchmarks.recordings import find_recordings  # noqa: PLC0415

    if arguments.repeats < 1:
        raise UsageError(f"--repeats is {arguments.repeats}; give 1 or more")
    if arguments.threads < 0:
        raise UsageError(f"--threads is {arguments.threads}; give 0 or more")
    check_outputs((arguments.json, arguments.markdown), arguments.plot)
    names = _peer_names(arguments.peers)
    sets = {
        _set_name(path, arguments.references): find_recordings([], [path])
        for path in arguments.references
    }
    contestants, failed = make_contestants(arguments, names)
    found = conditions(arguments.threads)
    if warning := busy_warning(found):
        console.warning(warning)
    with tempfile.TemporaryDirectory(prefix="whisper-npu-") as folder:
        result = compare_with_progress(contestants, sets, arguments, Path(folder))
    failed = failed or len(result.contestants) < len(contestants)

    model = cli.find_model(arguments.model).name
    print(f"{model}; {conditions_line(found)}")
    print(f"{report.versions_line(result)}\n")
    for compared in result.sets:
        print(f"{report.set_line(compared)}\n\n{report.set_table(result, compared)}\n")
    print(f"{report.start_line(result)}\n\n{report.start_table(result)}\n")
    if arguments.json:
        content = report.to_json(result, found, model)
        write_text(arguments.json, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    if arguments.markdown:
        write_text(arguments.markdown, report.markdown(result, found, model))
    if arguments.plot:
        report.draw(result, arguments.plot, model)
    for line in report.verdicts(result):
        print(line)
    return cli.EXIT_SOME_FAILED if failed else cli.EXIT_OK


def _peer_names(text: str) -> list[str]:
    names = cli.names(text)
    unknown = [name for name in names if name not in PEERS]
    if unknown or not names:
        hint = did_you_mean(unknown[0], PEERS) if unknown else ""
        raise UsageError(f"--peers takes some of {', '.join(PEERS)}, not {text!r}{hint}")
    return list(dict.fromkeys(names))


def _set_name(path: Path, paths: Sequence[Path]) -> str:
    """A manifest's name in reports: its folder, because most are called references.tsv."""
    short = path.name if path.is_dir() else path.resolve().parent.name
    alike = [other for other in paths if other.resolve().parent.name == short]
    return short if len(alike) <= 1 else str(path)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    return cli.run(benchmark_peers, build_parser(), argv)


if __name__ == "__main__":
    cli.be_process(main)
