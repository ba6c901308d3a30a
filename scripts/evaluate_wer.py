"""Measures word error rates: `whisper-npu wer`, `python scripts/evaluate_wer.py`.

Any number of models, devices, caches, precisions and decode modes over the same recordings, each
with its speed beside it.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whisper_npu.errors import UsageError, WhisperNpuError
from whisper_npu.runtime.options import MODES, TranscribeOptions
from whisper_npu.scripts.common import cli, console
from whisper_npu.scripts.common.console import one_line
from whisper_npu.scripts.common.decoding_options import (
    BACKENDS,
    KV_CACHES,
    PRECISIONS,
    add_decoding_options,
    decoding_options,
)
from whisper_npu.scripts.common.outputs import check_outputs, needing_the_extra, write_text

if TYPE_CHECKING:
    from whisper_npu.export.references import Reference
    from whisper_npu.runtime.transcription.model import WhisperModel
    from whisper_npu.scripts.evaluation.word_errors import Evaluation, Failure, Run, Transcript

EPILOG = """\
examples:
  whisper-npu wer references.tsv --language en
  whisper-npu wer LibriSpeech/test-other --model models/base --without-timestamps --max-wer 9.6
  whisper-npu wer long.tsv --model tiny.en --model base --mode sequential --mode batched \\
      --plot wer.png --markdown wer.md

A manifest has one line per recording, audio<TAB>reference, the audio relative to the manifest.
The last line printed is the corpus error rate in percent, as `WER: 18.70`; of several
configurations there is one such line each, in order.

exit codes:
  0  everything was done
  1  a recording could not be read, or an error rate is above --max-wer
  2  the command line or a manifest is wrong
  3  a model or a device cannot be used; the other configurations were measured
"""


@dataclass(frozen=True)
class Setup:
    """A model as it is to be loaded."""

    model: str
    device: str
    backend: str
    kv_cache: str
    precision: str

    def __str__(self) -> str:
        settings = f"{self.backend}, kv_cache {self.kv_cache}, precision {self.precision}"
        return f"{self.model} on {self.device}, {settings}"


def build_parser() -> cli.Parser:
    """The command line."""
    parser = cli.Parser(
        "wer",
        description="Measure the word error rate and speed of exported Whisper models.",
        epilog=EPILOG,
        conflict_handler="resolve",  # --mode is given several times here, once in transcribing
    )
    parser.add_argument(
        "references",
        nargs="+",
        type=Path,
        metavar="REFERENCES",
        help="TSV manifests (audio<TAB>reference) and LibriSpeech folders",
    )
    what = parser.add_argument_group("configurations", "each can be repeated; all are combined")
    what.add_argument(
        "--model",
        action="append",
        metavar="DIR",
        help=f"model folder, or a built-in model exported on first use (default: "
        f"{cli.DEFAULT_MODEL})",
    )
    what.add_argument(
        "--device",
        action="append",
        metavar="DEVICE",
        help="CPU, GPU, NPU, NPU_EMULATED, AUTO; never replaced by another (default: CPU)",
    )
    what.add_argument(
        "--backend",
        action="append",
        choices=BACKENDS,
        help=f"what runs the graphs (default: {BACKENDS[0]})",
    )
    what.add_argument(
        "--kv-cache",
        action="append",
        choices=KV_CACHES,
        help="who keeps the decoder's past (default: auto)",
    )
    what.add_argument(
        "--precision",
        action="append",
        choices=PRECISIONS,
        help="arithmetic (default: auto)",
    )
    what.add_argument(
        "--threads", type=int, default=0, help="processor threads; 0 is one per core (default)"
    )

    add_decoding_options(parser)
    what.add_argument(
        "--mode",
        action="append",
        choices=MODES,
        help=f"how long recordings are cut into windows (default: {TranscribeOptions.mode})",
    )

    out = parser.add_argument_group("results")
    out.add_argument(
        "--max-wer",
        type=float,
        metavar="PERCENT",
        help="exit with 1 if the error rate of any configuration is above this",
    )
    out.add_argument(
        "--worst", type=int, default=0, metavar="N", help="show the N worst recordings aligned"
    )
    out.add_argument("--json", type=Path, metavar="FILE", help="write everything, texts included")
    out.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables as Markdown")
    out.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw error rate against speed (png, svg, pdf)"
    )
    return parser


def evaluate_wer(arguments: argparse.Namespace) -> int:
    """Measure what the command line asks for; returns the exit code."""
    # Heavy imports wait until the command line is known to be right.
    with needing_the_extra("measuring error rates"):
        from whisper_npu.scripts.evaluation import report  # noqa: PLC0415
        from whisper_npu.scripts.evaluation.wer import metric_for  # noqa: PLC0415
        from whisper_npu.scripts.evaluation.word_errors import evaluate  # noqa: PLC0415
    from whisper_npu.export.references import read_references  # noqa: PLC0415

    if arguments.worst < 0:
        raise UsageError(f"--worst is {arguments.worst}; give 0 or more")
    check_outputs((arguments.json, arguments.markdown), arguments.plot)
    references = [reference for path in arguments.references for reference in read_references(path)]
    runs, exit_code = _measure(arguments, references)
    if not runs:
        return exit_code
    metric = metric_for(_language(runs))
    evaluations = [evaluate(run, metric) for run in runs]
    for evaluation in evaluations:
        print(report.text_details(evaluation, arguments.worst))
    print(report.conditions(evaluations[0]))
    print(report.summary_table(evaluations), end="\n\n", flush=True)

    if arguments.json:
        content = report.to_json(evaluations, [str(path) for path in arguments.references])
        write_text(arguments.json, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    if arguments.markdown:
        write_text(arguments.markdown, report.markdown(evaluations, arguments.worst))
    if arguments.plot:
        _plot(evaluations, arguments.plot)
    for evaluation in evaluations:
        rate = evaluation.rate
        print(f"{metric.name}: {'-' if rate is None else format(rate, '.2f')}")
    return max(exit_code, _judge(evaluations, arguments.max_wer))


def _measure(
    arguments: argparse.Namespace, references: "Sequence[Reference]"
) -> "tuple[list[Run], int]":
    """Transcribe everything in every configuration; returns the runs and the exit code.

    A configuration that fails is one line on standard error; the others go on.

    Raises:
        ModelError: A model does not exist.
        UsageError: The decoding options are wrong.
    """
    from whisper_npu.scripts.evaluation.word_errors import transcribe_all  # noqa: PLC0415

    modes = list(dict.fromkeys(arguments.mode or [TranscribeOptions.mode]))
    options = {mode: _options(arguments, mode) for mode in modes}  # wrong ones are told at once
    if arguments.max_wer is not None and not arguments.max_wer >= 0:  # NaN is not, either
        raise UsageError("--max-wer takes a percentage, 0 or more")
    setups = _setups(arguments)
    folders = {setup.model: cli.find_model(setup.model) for setup in setups}  # none is missing
    names = _model_names(folders)
    runs: list[Run] = []
    exit_code = cli.EXIT_OK
    for setup in setups:
        model = None
        for mode in modes:
            try:
                model = model or _load(setup, folders[setup.model], arguments.threads)
                settings = {  # what really runs, not what was asked for
                    "model": names[setup.model],
                    "backend": setup.backend,
                    "device": model.backend.device,
                    "kv_cache": model.backend.kv_cache,
                    "precision": model.backend.precision,
                    "mode": mode,
                }
                with _progress(f"{names[setup.model]} {mode}", len(references)) as show:
                    run = transcribe_all(model, options[mode], settings, references, show)
            except WhisperNpuError as error:
                console.error(f"{setup}, mode {mode}: {error}")
                exit_code = max(exit_code, error.exit_code)
                if model is None:
                    break  # it would not load for the next mode either
                continue
            if run.failures:
                exit_code = max(exit_code, cli.EXIT_SOME_FAILED)
            if run.transcripts:
                runs.append(run)
            else:
                console.error(f"{setup}, mode {mode}: no recording could be read")
    return runs, exit_code


def _setups(arguments: argparse.Namespace) -> list[Setup]:
    """Every combination of what the command line repeats."""
    return [
        Setup(*choice)
        for choice in itertools.product(
            dict.fromkeys(arguments.model or [cli.DEFAULT_MODEL]),
            dict.fromkeys(arguments.device or ["CPU"]),
            dict.fromkeys(arguments.backend or BACKENDS[:1]),
            dict.fromkeys(arguments.kv_cache or KV_CACHES[:1]),
            dict.fromkeys(arguments.precision or PRECISIONS[:1]),
        )
    ]


def _load(setup: Setup, folder: Path, threads: int) -> "WhisperModel":
    from whisper_npu.api import load_model  # noqa: PLC0415

    choices: dict[str, Any] = {  # argparse has checked them
        "backend": setup.backend,
        "kv_cache": setup.kv_cache,
        "precision": setup.precision,
    }
    return load_model(folder, device=setup.device, threads=threads, **choices)


def _model_names(folders: dict[str, Path]) -> dict[str, str]:
    """What reports call each model: its folder's name, or all that was typed if two are alike."""
    names = {model: folder.resolve().name for model, folder in folders.items()}
    return names if len(set(names.values())) == len(names) else {model: model for model in names}


def _options(arguments: argparse.Namespace, mode: str) -> TranscribeOptions:
    return decoding_options(argparse.Namespace(**{**vars(arguments), "mode": mode}))


def _language(runs: "Sequence[Run]") -> str:
    """The language whose normaliser compares all runs: given, or else the one heard most often.

    One for all, so that every configuration is measured against the same words.
    """
    first = runs[0]
    if first.options.task == "translate":
        return "en"
    # An English-only model has its language, though none was given to the others.
    given = [run.options.language for run in runs if run.options.language is not None]
    return given[0] if given else first.main_language()


@contextmanager
def _progress(
    description: str, n_recordings: int
) -> "Iterator[Callable[[Transcript | Failure], None]]":
    """A progress bar where standard error is a terminal, and a line for each failure anywhere."""
    from tqdm import tqdm  # noqa: PLC0415

    from whisper_npu.scripts.evaluation.word_errors import Failure  # noqa: PLC0415

    with tqdm(total=n_recordings, desc=description, unit="file", disable=None) as bar:

        def show(result: "Transcript | Failure") -> None:
            if isinstance(result, Failure):
                tqdm.write(f"error: {one_line(result.error)}", file=sys.stderr)
            bar.update()

        yield show


def _judge(evaluations: "Sequence[Evaluation]", limit: float | None) -> int:
    """Exit code 1 if an error rate, rounded as it is printed, is not within the limit."""
    code = cli.EXIT_OK
    for evaluation in evaluations:
        rate = evaluation.rate
        if limit is None or (rate is not None and round(rate, 2) <= limit):
            continue
        settings = ", ".join(evaluation.run.settings.values())
        found = "has no value: there are no words to compare with"
        if rate is not None:
            found = f"{rate:.2f} is above {limit:g}"
        print(f"{settings}: {evaluation.metric.name} {found}", file=sys.stderr)
        code = cli.EXIT_SOME_FAILED
    return code


def _plot(evaluations: "Sequence[Evaluation]", path: Path) -> None:
    """Error rate against speed, one point per configuration, with its interval."""
    from whisper_npu.scripts.common import plots  # noqa: PLC0415

    first = evaluations[0]
    shared, labels = plots.split_labels([evaluation.run.settings for evaluation in evaluations])
    points = [
        plots.Point(label, evaluation.rtfx, evaluation.rate, evaluation.interval)
        for label, evaluation in zip(labels, evaluations, strict=True)
        if evaluation.rate is not None
    ]
    facts = (shared, f"{len(first.run.transcripts)} recordings", "bars: 95 % intervals")
    plots.scatter_with_intervals(
        points,
        path,
        title=f"{first.metric.name} against speed",
        subtitle=", ".join(filter(None, facts)),
        x_label="RTFx: seconds of audio per second of processing (faster to the right)",
        y_label=f"{first.metric.name} in % (better below)",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    return cli.run(evaluate_wer, build_parser(), argv)


if __name__ == "__main__":
    cli.be_process(main)
