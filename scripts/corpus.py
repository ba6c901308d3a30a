"""Transcribes a corpus on Ray: `whisper-npu corpus`, `python scripts/corpus.py`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from whisper_npu.corpus.names import (
    JSON_LINES,
    KINDS,
    PARQUET,
    RESULTS,
    SUBTITLE_FORMATS,
    SUBTITLES,
)
from whisper_npu.errors import DeviceError, ModelError, UsageError
from whisper_npu.runtime.options import TranscribeOptions
from whisper_npu.scripts.common import cli, console
from whisper_npu.scripts.common.corpus_progress import Meter, counted
from whisper_npu.scripts.common.decoding_options import (
    add_decoding_options,
    add_model_options,
    decoding_options,
    model_options,
)
from whisper_npu.scripts.common.outputs import needing_the_extra
from whisper_npu.scripts.common.progress import words
from whisper_npu.spelling import nearest

VERIFY = "verify"
_PURPOSE = "transcribing a corpus"

EPILOG = """\
examples:
  whisper-npu corpus recordings/ --output texts
  whisper-npu corpus manifest.jsonl --output texts --model base --language de --subtitles srt
  whisper-npu corpus cuts.jsonl.gz --output /mnt/shared/texts --address auto
  whisper-npu corpus verify texts

Give the same command again to go on after a stop: only the recordings without a result are
transcribed. See docs/corpus.md.

exit codes:
  0    every recording has a text
  1    some recordings have an error, which is in their row; or an output cannot be written; or the
       error rate is above --max-wer; `verify`: the outputs are not complete
  2    the command line or the manifest is wrong
  3    the model or the device cannot be used
  130  interrupted by Ctrl-C
  143  ended by SIGTERM (129 by SIGHUP)
"""


def build_parser() -> cli.Parser:
    """The command line."""
    parser = cli.Parser(
        "corpus",
        description="Transcribe a corpus, every recording exactly once, on this machine or on a "
        "cluster of Ray.",
        epilog=EPILOG,
    )
    parser.add_argument(
        "manifest",
        metavar="MANIFEST",
        help="manifest of NeMo or lhotse (.jsonl, .json, .gz), TSV (audio<TAB>reference, or a "
        "table of Common Voice), folder of LibriSpeech or Common Voice, parquet with the bytes of "
        "recordings, tar of WebDataset, folder of recordings, or a pattern with *; a path or URL",
    )
    add_model_options(parser)
    out = parser.add_argument_group("corpus")
    out.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="DIR",
        help="folder, or URL of fsspec, for corpus.parquet, corpus.jsonl and the state of the work",
    )
    out.add_argument(
        "--format",
        choices=KINDS,
        metavar="KIND",
        help=f"kind of the manifest: {', '.join(KINDS)} (default: found out by its name and "
        "content)",
    )
    out.add_argument(
        "--subtitles",
        type=cli.some_of(*SUBTITLE_FORMATS),
        default=[],
        metavar="A,B",
        help=f"write subtitles, too: {', '.join(SUBTITLE_FORMATS)} (default: none)",
    )
    out.add_argument(
        "--retry-errors",
        action="store_true",
        help="try recordings again that failed in an earlier run",
    )
    out.add_argument(
        "--max-wer",
        type=cli.amount,
        metavar="PERCENT",
        help="exit with code 1 if the error rate against the references is above this (default: "
        "no limit)",
    )
    out.add_argument(
        "--price-per-hour",
        type=cli.amount,
        metavar="PRICE",
        help="price of an hour of all machines, to show the cost (default: cost is not shown)",
    )
    ray = parser.add_argument_group("Ray")
    ray.add_argument(
        "--address",
        metavar="ADDRESS",
        help="address of a cluster of Ray, or auto (default: this machine alone)",
    )
    ray.add_argument(
        "--actors",
        type=int,
        default=0,
        metavar="N",
        help="number of processes with a model, each with --threads processors; 0 uses all "
        "processors, and tries how to divide them if the work is large (default: %(default)s)",
    )
    ray.add_argument(
        "--dashboard",
        action="store_true",
        help="start Ray's dashboard on this machine",
    )
    add_decoding_options(parser)
    return parser


def build_verify_parser() -> cli.Parser:
    """The command line of `corpus verify`."""
    parser = cli.Parser(
        f"corpus {VERIFY}",
        description="Prove that the outputs of a corpus hold every row of its manifest once, and "
        "account for every second of audio.",
    )
    parser.add_argument("output", metavar="DIR", help="folder or URL of the outputs")
    parser.add_argument(
        "--manifest", metavar="MANIFEST", help="the manifest (default: that of the last run)"
    )
    return parser


def transcribe_corpus(arguments: argparse.Namespace) -> int:
    """Transcribe a corpus; returns the exit code."""
    options = decoding_options(arguments)
    if arguments.actors < 0 or arguments.threads < 0:
        raise UsageError("--actors and --threads take 0 or more")
    meter = Meter(arguments.price_per_hour)
    try:
        with meter:
            _run(arguments, options, meter)
    except BaseException as end:
        is_mistake = isinstance(end, UsageError | ModelError | DeviceError)
        has_begun = meter.last is not None or not isinstance(end, Exception)
        has_done = meter.last is not None and meter.last.done > 0
        if has_done or (has_begun and not is_mistake):
            console.note(_how_to_go_on(meter, arguments.output))
        raise
    from whisper_npu.scripts.evaluation import corpus_errors  # noqa: PLC0415

    try:
        is_well = corpus_errors.report(arguments.output, options, arguments.max_wer)
    finally:
        names = [PARQUET, JSON_LINES, *([SUBTITLES] if arguments.subtitles else [])]
        console.note(f"{arguments.output} has the outputs: {', '.join(names)}")
    return cli.EXIT_OK if is_well else cli.EXIT_SOME_FAILED


def _run(arguments: argparse.Namespace, options: TranscribeOptions, meter: Meter) -> None:
    """Transcribe what is left of a corpus, and write the outputs."""
    meter.say("loading Ray")
    with needing_the_extra(_PURPOSE, "corpus"):
        from whisper_npu.corpus.run import CorpusJob, run_corpus  # noqa: PLC0415
        from whisper_npu.corpus.worker import ModelSettings  # noqa: PLC0415
    meter.clear()  # the search may tell of a download
    settings = ModelSettings(
        model=str(cli.find_model(arguments.model, arguments.variant).absolute()),
        load=model_options(arguments),
        options=options,
    )
    job = CorpusJob(
        manifest=arguments.manifest,
        output=arguments.output,
        settings=settings,
        kind=arguments.format,
        subtitles=arguments.subtitles,
        retry_errors=arguments.retry_errors,
        address=arguments.address,
        actors=arguments.actors,
        dashboard=arguments.dashboard,
    )
    run_corpus(job, meter.show, meter.say)


def _how_to_go_on(meter: Meter, output: str) -> str:
    """What is kept of a run that did not end, and what to do."""
    to_go_on = "to go on, give the same command again"
    if meter.last is None:
        return f"the work had not begun; {to_go_on}"
    done, total = meter.last.done, counted(meter.last.items, "recording")
    # Actors may have stored blocks that they had not reported.
    least = "" if done == meter.last.items else "at least "
    what = f"{least}{done} of {total} of this run done" if done else "the work had begun"
    return f"{what}; {output}/{RESULTS} keeps what is done; {to_go_on}"


def verify(arguments: argparse.Namespace) -> int:
    """Verify the outputs of a corpus; returns the exit code."""
    with needing_the_extra(_PURPOSE, "corpus"):
        from whisper_npu.corpus.verify import verify_corpus  # noqa: PLC0415
    found = verify_corpus(arguments.output, arguments.manifest)
    for line in found.findings:
        print(console.one_line(line))
    print(
        f"{counted(found.rows, 'row')} in the manifest: {found.transcribed} with a text, "
        f"{found.errors} with an error; {words(found.seconds)} of audio in the texts"
    )
    print("not complete" if found.findings else "complete: every row is there once")
    return cli.EXIT_SOME_FAILED if found.findings else cli.EXIT_OK


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == [VERIFY]:
        return cli.run(verify, build_verify_parser(), arguments[1:])
    if arguments and nearest(arguments[0], [VERIFY], 0.7) and not Path(arguments[0]).exists():
        console.error(f"there is no manifest {arguments[0]}: did you mean corpus {VERIFY}?")
        return cli.EXIT_USAGE
    return cli.run(transcribe_corpus, build_parser(), arguments)


if __name__ == "__main__":
    cli.be_process(main)
