"""Reports evaluations as text, Markdown and JSON. All error rates are percentages."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from whisper_npu.runtime.options import TranscribeOptions
from whisper_npu.scripts.common.outputs import write_text
from whisper_npu.scripts.common.tables import markdown_table, text_table
from whisper_npu.scripts.evaluation import wer
from whisper_npu.scripts.evaluation.word_errors import Evaluation, Transcript
from whisper_npu.version import __version__

Table = Callable[[Sequence[str], Sequence[Sequence[str]], int], str]

_VERSIONS_OF = ("openvino", "numpy", "jiwer", "whisper-normalizer")


def description(settings: dict[str, str]) -> str:
    """One line: `tiny.en, device CPU, kv_cache stateful, precision f32`."""
    model, *rest = settings.items()
    return ", ".join([model[1], *(f"{name} {value}" for name, value in rest)])


def conditions(evaluation: Evaluation) -> str:
    """One line on the recordings and options that all configurations share."""
    metric, run = evaluation.metric, evaluation.run
    options = ", ".join(
        f"{name}={value!r}"
        for name, value in changed(run.options).items()
        if name not in {"language", *run.settings}  # reported elsewhere
    )
    return (
        f"{len(run.transcripts)} recordings, {evaluation.audio_seconds:.1f} s, "
        f"{evaluation.edits.words} {metric.unit}; "
        f"normaliser {metric.normalizer}, language {metric.language}; "
        f"options: {options or 'defaults'}"
    )


def changed(options: TranscribeOptions) -> dict[str, Any]:
    """The options that are not at their defaults."""
    default = TranscribeOptions()
    names = [item.name for item in fields(options)]
    values = {name: getattr(options, name) for name in names}
    return {name: value for name, value in values.items() if value != getattr(default, name)}


def files_table(evaluation: Evaluation, table: Table = text_table) -> str:
    """One row per recording."""
    rows = []
    for transcript, comparison in zip(
        evaluation.run.transcripts, evaluation.comparisons, strict=True
    ):
        edits = comparison.edits
        note = "empty" * comparison.empty or "truncated" * comparison.truncated
        rows.append(
            [
                transcript.reference.name,
                *map(str, (edits.words, edits.substitutions, edits.deletions, edits.insertions)),
                _percent(edits.rate),
                f"{transcript.audio_seconds:.1f}",
                f"{transcript.seconds:.2f}",
                note,
            ]
        )
    metric = evaluation.metric
    header = ["recording", metric.unit, "sub", "del", "ins", f"{metric.name} %"]
    return table([*header, "audio s", "work s", "note"], rows, 1)


def summary_table(evaluations: Sequence[Evaluation], table: Table = text_table) -> str:
    """One row per configuration; several also have the difference from the first."""
    metric = evaluations[0].metric
    header = ["model", *list(evaluations[0].run.settings)[1:], f"{metric.name} %"]
    header += ["95 % interval", "sub", "del", "ins", "empty", "truncated", "failed", "RTF", "RTFx"]
    rows = []
    for evaluation in evaluations:
        edits = evaluation.edits
        row = [*evaluation.run.settings.values(), _percent(evaluation.rate)]
        row.append(_interval(evaluation.interval, "{:.2f} to {:.2f}"))
        counts = (edits.substitutions, edits.deletions, edits.insertions)
        row += map(str, (*counts, evaluation.empty, evaluation.truncated))
        row += [str(len(evaluation.run.failures)), f"{evaluation.rtf:.4f}"]
        rows.append([*row, f"{evaluation.rtfx:.1f}"])
    if len(evaluations) > 1:
        header.append("against the first")
        rows[0].append("")
        for row, evaluation in zip(rows[1:], evaluations[1:], strict=True):
            difference = evaluation.difference(evaluations[0])
            row.append(_interval(difference, "{:+.2f} to {:+.2f}"))
    return table(header, rows, len(evaluations[0].run.settings))


def worst(evaluation: Evaluation, n: int) -> list[tuple[str, str]]:
    """Headings and alignments of the `n` worst recordings."""
    name = evaluation.metric.name
    return [
        (
            f"{transcript.reference.name}: {name} {_percent(comparison.edits.rate)} %"
            if comparison.edits.words
            else f"{transcript.reference.name}: {comparison.edits.insertions} insertions",
            comparison.alignment,
        )
        for transcript, comparison in evaluation.worst(n)
    ]


def text_details(evaluation: Evaluation, n_worst: int) -> str:
    """A configuration's recordings, its worst recordings, and its failures."""
    parts = [f"{description(evaluation.run.settings)}\n", files_table(evaluation)]
    for heading, alignment in worst(evaluation, n_worst):
        parts.append(f"\n{heading}\n\n{alignment}")
    return "\n".join([*parts, ""])


def markdown(evaluations: Sequence[Evaluation], n_worst: int) -> str:
    """The whole evaluation as a Markdown document."""
    first = evaluations[0]
    parts = [
        f"# {first.metric.name} by configuration",
        f"{conditions(first)}. {_versions_line()}.",
        summary_table(evaluations, markdown_table),
    ]
    for evaluation in evaluations:
        parts += [f"## {description(evaluation.run.settings)}"]
        for heading, alignment in worst(evaluation, n_worst):
            parts += [f"### {heading}", f"```text\n{alignment}\n```"]
        parts += ["### Recordings" if n_worst else "", files_table(evaluation, markdown_table)]
        failures = [f"- {failure.error}" for failure in evaluation.run.failures]
        if failures:
            parts += ["### Failed", "\n".join(failures)]
    return "\n\n".join(filter(None, parts)) + "\n"


def to_json(evaluations: Sequence[Evaluation], references: Sequence[str]) -> dict[str, Any]:
    """The whole evaluation, texts included, as values for JSON."""
    metric = evaluations[0].metric
    return {
        "metric": metric.name,
        "normalizer": metric.normalizer,
        "language": metric.language,
        "references": list(references),
        "versions": _versions(),
        "configurations": [_configuration(evaluation, evaluations) for evaluation in evaluations],
    }


def _configuration(evaluation: Evaluation, evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    run, first = evaluation.run, evaluations[0]
    interval = evaluation.interval
    difference = None if evaluation is first else evaluation.difference(first)
    return {
        **run.settings,
        evaluation.metric.name.lower(): evaluation.rate,
        "interval": None if interval is None else list(interval),
        "interval_of_difference_to_first": None if difference is None else list(difference),
        **_edits(evaluation.edits, evaluation.metric),
        "recordings": len(run.transcripts),
        "empty": evaluation.empty,
        "truncated": evaluation.truncated,
        "failed": [
            {"audio": failure.reference.name, "error": failure.error} for failure in run.failures
        ],
        "audio_seconds": evaluation.audio_seconds,
        "processing_seconds": evaluation.seconds,
        "rtf": evaluation.rtf,
        "rtfx": evaluation.rtfx,
        "options": asdict(run.options),
        "files": [
            _file(transcript, comparison, evaluation.metric)
            for transcript, comparison in zip(run.transcripts, evaluation.comparisons, strict=True)
        ],
    }


def _file(transcript: Transcript, comparison: wer.Comparison, metric: wer.Metric) -> dict[str, Any]:
    return {
        "audio": transcript.reference.name,
        "reference": transcript.reference.text,
        "hypothesis": transcript.text,
        "language": transcript.language,
        metric.name.lower(): comparison.edits.rate,
        **_edits(comparison.edits, metric),
        "empty": comparison.empty,
        "truncated": comparison.truncated,
        "audio_seconds": transcript.audio_seconds,
        "work_seconds": transcript.seconds,
        "warnings": list(transcript.warnings),
    }


def _edits(edits: wer.Edits, metric: wer.Metric) -> dict[str, int]:
    return {
        metric.unit: edits.words,
        "substitutions": edits.substitutions,
        "deletions": edits.deletions,
        "insertions": edits.insertions,
    }


def _versions() -> dict[str, str]:
    return {"whisper-npu": __version__} | {name: version(name) for name in _VERSIONS_OF}


def _versions_line() -> str:
    return ", ".join(f"{name} {number}" for name, number in _versions().items())


def _percent(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.2f}"


def _interval(interval: tuple[float, float] | None, form: str) -> str:
    return "-" if interval is None else form.format(*interval)


def show(evaluations: Sequence[Evaluation], worst: int) -> None:
    """Print the evaluations: the `worst` recordings of each, the conditions, and the table."""
    for evaluation in evaluations:
        print(text_details(evaluation, worst))
    print(conditions(evaluations[0]))
    print(summary_table(evaluations), end="\n\n", flush=True)


def write(
    evaluations: Sequence[Evaluation],
    references: Sequence[Path],
    *,
    worst: int,
    json_file: Path | None,
    markdown_file: Path | None,
    plot_file: Path | None,
) -> None:
    """Write the requested files.

    Args:
        evaluations: The evaluations.
        references: The manifests and folders of the recordings.
        worst: Number of recordings that Markdown shows aligned.
        json_file: File for all results, texts included, or None.
        markdown_file: File for the tables, or None.
        plot_file: File for the plot of error rate against speed, or None.

    Raises:
        UsageError: A file cannot be written.
    """
    if json_file:
        content = to_json(evaluations, [str(path) for path in references])
        write_text(json_file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    if markdown_file:
        write_text(markdown_file, markdown(evaluations, worst))
    if plot_file:
        draw(evaluations, plot_file)


def above(evaluations: Sequence[Evaluation], limit: float | None) -> list[str]:
    """A line for each evaluation whose error rate, rounded as it is printed, is above the limit.

    An evaluation without an error rate is above every limit.
    """
    lines = []
    for evaluation in evaluations:
        rate = evaluation.rate
        if limit is None or (rate is not None and round(rate, 2) <= limit):
            continue
        settings = ", ".join(evaluation.run.settings.values())
        found = "has no value: there are no words to compare with"
        if rate is not None:
            found = f"{rate:.2f} is above {limit:g}"
        lines.append(f"{settings}: {evaluation.metric.name} {found}")
    return lines


def draw(evaluations: Sequence[Evaluation], path: Path) -> None:
    """Draw error rate against speed, one point with its interval per configuration.

    Raises:
        UsageError: The file cannot be written.
    """
    from whisper_npu.scripts.common import plots  # noqa: PLC0415 - matplotlib

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
