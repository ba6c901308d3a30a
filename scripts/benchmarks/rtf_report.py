"""Reports the results of benchmark_rtf.py as text, Markdown and JSON."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from whisper_npu.scripts.benchmarks.conditions import conditions_line
from whisper_npu.scripts.benchmarks.engine_process import Start
from whisper_npu.scripts.benchmarks.recordings import Recording
from whisper_npu.scripts.benchmarks.roofline import Machine, StageRoof
from whisper_npu.scripts.benchmarks.rtf import Measurement
from whisper_npu.scripts.benchmarks.spread import Spread
from whisper_npu.scripts.common.tables import markdown_table, text_table
from whisper_npu.scripts.evaluation import wer

Table = Callable[[Sequence[str], Sequence[Sequence[str]], int], str]

UNCHECKED = "accuracy is unchecked: no --references were given"
_MIB = 1 << 20
_GIGA = 1e9


@dataclass(frozen=True)
class Accuracy:
    """The error rate that belongs to a speed.

    Attributes:
        name: `WER` or `CER`.
        rate: Percent over all recordings with references; None if they have no words.
        interval: Its 95 % confidence interval, or None.
        recordings: Number of recordings with references.
    """

    name: str
    rate: float | None
    interval: tuple[float, float] | None
    recordings: int


def accuracy(
    recordings: Sequence[Recording], texts: Sequence[str], language: str
) -> Accuracy | None:
    """The error rate of texts; None if no recording has a reference."""
    metric = wer.metric_for(language)
    edits = [
        wer.compare(recording.reference, text, metric).edits
        for recording, text in zip(recordings, texts, strict=True)
        if recording.reference is not None
    ]
    if not edits:
        return None
    return Accuracy(metric.name, wer.total(edits).rate, wer.bootstrap_interval(edits), len(edits))


@dataclass(frozen=True)
class Workload:
    """Recordings measured in every configuration.

    Attributes:
        name: Its name in reports.
        recordings: The transcribed recordings.
        measurements: One measurement per configuration.
        accuracies: One accuracy per configuration; None without references.
    """

    name: str
    recordings: tuple[Recording, ...]
    measurements: tuple[Measurement, ...]
    accuracies: tuple[Accuracy | None, ...]

    @property
    def audio_seconds(self) -> float:
        """Length of all recordings."""
        return self.measurements[0].runs[0].audio_seconds

    @property
    def description(self) -> str:
        """One line."""
        n = len(self.recordings)
        runs = len(self.measurements[0].runs)
        return (
            f"{self.name}: {n} recording{'s' * (n != 1)}, {self.audio_seconds:.1f} s; medians of "
            f"{runs} run{'s' * (runs != 1)} after one to warm up (lowest to highest)"
        )

    @property
    def accuracy_note(self) -> str | None:
        """A note on recordings of unknown accuracy; None if there are none."""
        checked = self.accuracies[0].recordings if self.accuracies[0] else 0
        if not checked:
            return UNCHECKED
        if checked < len(self.recordings):
            missing = len(self.recordings) - checked
            return f"accuracy is unchecked for {missing} of {len(self.recordings)} recordings"
        return None


def speed_table(workload: Workload, table: Table = text_table) -> str:
    """One row per configuration; several also have the factor of speed against the first."""
    settings = list(workload.measurements[0].loaded.settings)
    header = ["configuration", *settings, "RTFx", "RTF", "error rate", "tokens/s", "ms/token"]
    header += ["first token ms", "first segment ms"]
    several = len(workload.measurements) > 1
    if several:
        header.append("speed against the first")
    rows = []
    for measured, checked in zip(workload.measurements, workload.accuracies, strict=True):
        loaded = measured.loaded
        row = [loaded.configuration.label, *loaded.settings.values()]
        row += [measured.rtfx.text(), f"{measured.rtf:.4f}", _rate(checked)]
        row += [measured.tokens_per_second.text(".0f")]
        row += [f"{1000 * measured.token_seconds.median:.2f}"]
        row += [_milliseconds(measured.first_token), _milliseconds(measured.first_segment)]
        if several:
            first = workload.measurements[0]
            row.append("" if measured is first else measured.against(first).text(".2f"))
        rows.append(row)
    return table(header, rows, 1 + len(settings))


def stage_table(workload: Workload, table: Table = text_table) -> str:
    """Seconds and share of every stage, configuration by configuration."""
    header = ["stage"]
    for measured in workload.measurements:
        header += [f"{measured.loaded.configuration.label} s", "%"]
    names = dict.fromkeys(stage for each in workload.measurements for stage in each.stages)
    rows = []
    for name in names:
        row = [name]
        for measured in workload.measurements:
            total = sum(stage.median for stage in measured.stages.values())
            stage = measured.stages.get(name)
            row.append("-" if stage is None else f"{stage.median:.3f}")
            row.append("-" if stage is None else f"{100 * stage.median / total:.1f}")
        rows.append(row)
    return table(header, rows, 1)


def start_table(measurements: Sequence[Measurement], table: Table = text_table) -> str:
    """Start-up and memory, each measured in a separate process."""
    header = ["configuration", "cold start s", "warm start s", "peak memory MiB"]
    rows = [
        [
            measured.loaded.configuration.label,
            _start(measured.cold),
            _start(measured.warm),
            memory(measured.warm.peak_bytes if measured.warm else None),
        ]
        for measured in measurements
    ]
    return table(header, rows, 1)


def roof_table(stages: Sequence[StageRoof], table: Table = text_table) -> str:
    """One row per stage, compared with the machine's peak."""
    header = ["stage", "s", "% of time", "GFLOP/s", "GB/s", "least s", "% of peak", "waits for"]
    rows = []
    for stage in stages:
        row = [stage.stage, f"{stage.seconds:.3f}", f"{100 * stage.share:.1f}"]
        if stage.flops is None or stage.bandwidth is None or stage.roof_seconds is None:
            row += ["-"] * 5
        else:
            row += [f"{stage.flops / _GIGA:.0f}", f"{stage.bandwidth / _GIGA:.1f}"]
            row += [f"{stage.roof_seconds:.3f}", f"{100 * stage.roof_seconds / stage.seconds:.0f}"]
            row += [stage.bound]
        rows.append(row)
    return table(header, rows, 1)


def machine_line(machine: Machine) -> str:
    """The machine's peaks in one line."""
    peaks = ", ".join(f"{name} {flops / _GIGA:.0f}" for name, flops in machine.flops.items())
    return f"matrix products in GFLOP/s: {peaks}; memory {machine.bandwidth / _GIGA:.1f} GB/s"


def next_line(stages: Sequence[StageRoof]) -> str:
    """A line on the stage with the most time above its least time."""
    stage = max(stages, key=lambda each: each.above)
    return (
        f"most to gain: {stage.stage}, {stage.above:.3f} s above the least of "
        f"{stage.roof_seconds or 0.0:.3f} s"
    )


def markdown(
    workloads: Sequence[Workload],
    found: dict[str, Any],
    machine: Machine | None,
    roofs: Sequence[StageRoof],
) -> str:
    """All results as a Markdown document."""
    parts = ["# Speed", conditions_line(found) + "."]
    for workload in workloads:
        parts += [f"## {workload.name}", workload.description + "."]
        if workload.accuracy_note:
            parts.append(f"**{workload.accuracy_note}**")
        parts += [speed_table(workload, markdown_table), stage_table(workload, markdown_table)]
    first = workloads[0].measurements
    if first[0].warm:
        parts += ["## Start and memory", start_table(first, markdown_table)]
    if machine is not None:
        parts += ["## Roofline", machine_line(machine) + ".", roof_table(roofs, markdown_table)]
    return "\n\n".join(parts) + "\n"


def to_json(
    workloads: Sequence[Workload],
    found: dict[str, Any],
    machine: Machine | None,
    roofs: Sequence[StageRoof],
) -> dict[str, Any]:
    """All results as values for JSON; `rtfx` is of the first workload and configuration."""
    first = workloads[0]
    checked = first.accuracies[0]
    return {
        "rtfx": first.measurements[0].rtfx.median,
        "wer": None if checked is None else checked.rate,
        "conditions": found,
        "workloads": [_workload(workload) for workload in workloads],
        "roofline": None
        if machine is None
        else {
            "flops": machine.flops,
            "bandwidth": machine.bandwidth,
            "stages": [asdict(stage) for stage in roofs],
        },
    }


def _workload(workload: Workload) -> dict[str, Any]:
    return {
        "name": workload.name,
        "recordings": [recording.name for recording in workload.recordings],
        "audio_seconds": workload.audio_seconds,
        "accuracy_note": workload.accuracy_note,
        "configurations": [
            _configuration(measured, checked, workload.measurements[0])
            for measured, checked in zip(workload.measurements, workload.accuracies, strict=True)
        ],
    }


def _configuration(
    measured: Measurement, checked: Accuracy | None, first: Measurement
) -> dict[str, Any]:
    total = sum(stage.median for stage in measured.stages.values())
    return {
        "label": measured.loaded.configuration.label,
        **measured.loaded.settings,
        "options": asdict(measured.loaded.options),
        "rtfx": measured.rtfx.to_dict(),
        "rtf": measured.rtf,
        "accuracy": None if checked is None else asdict(checked),
        "processing_seconds": [run.seconds for run in measured.runs],
        "tokens_per_second": measured.tokens_per_second.to_dict(),
        "seconds_per_token": measured.token_seconds.to_dict(),
        "first_token_seconds": _dict(measured.first_token),
        "first_segment_seconds": _dict(measured.first_segment),
        "stages": {
            name: {**stage.to_dict(), "share": stage.median / total}
            for name, stage in measured.stages.items()
        },
        "cold_start": None if measured.cold is None else asdict(measured.cold),
        "warm_start": None if measured.warm is None else asdict(measured.warm),
        "speed_against_first": None if measured is first else measured.against(first).to_dict(),
        "texts": list(measured.runs[-1].texts),
    }


def memory(n_bytes: int | None) -> str:
    """Bytes in MiB."""
    return "-" if n_bytes is None else f"{n_bytes / _MIB:.0f}"


def _dict(found: Spread | None) -> dict[str, float] | None:
    return None if found is None else found.to_dict()


def _start(start: Start | None) -> str:
    return "-" if start is None else f"{start.seconds:.2f}"


def _milliseconds(found: Spread | None) -> str:
    return "-" if found is None else f"{1000 * found.median:.0f}"


def _rate(checked: Accuracy | None) -> str:
    if checked is None or checked.rate is None:
        return "unchecked" if checked is None else "-"
    return f"{checked.name} {checked.rate:.2f} %"


def show(
    workloads: Sequence[Workload],
    found: dict[str, Any],
    machine: Machine | None,
    roofs: Sequence[StageRoof],
) -> None:
    """Print the tables.

    Args:
        workloads: The measured workloads; the first has the starts, if they were measured.
        found: The conditions.
        machine: The machine's peaks; None without the roofline.
        roofs: The stages compared with the peaks.
    """
    print(conditions_line(found))
    for workload in workloads:
        print(f"\n{workload.description}")
        if workload.accuracy_note:
            print(workload.accuracy_note)
        print(f"\n{speed_table(workload)}\n\n{stage_table(workload)}")
    started = workloads[0].measurements
    if any(measured.warm is not None for measured in started):
        print(f"\n{start_table(started)}")
    if machine is not None:
        print(f"\n{machine_line(machine)}\n\n{roof_table(roofs)}")
        print(f"\n{next_line(roofs)}")
    print()


def draw(workload: Workload, path: Path) -> None:
    """Draw the stages of every configuration, stacked, per hour of audio.

    Raises:
        UsageError: The file cannot be written.
    """
    from whisper_npu.scripts.benchmarks import plots  # noqa: PLC0415 - matplotlib

    per_hour = 3600 / workload.audio_seconds
    bars = [
        plots.Bar(
            f"{measured.loaded.configuration.label}\nRTFx {measured.rtfx.median:.0f}",
            {name: stage.median * per_hour for name, stage in measured.stages.items()},
        )
        for measured in workload.measurements
    ]
    settings = workload.measurements[0].loaded.settings
    plots.stacked_bars(
        bars,
        path,
        title="Where the time goes",
        subtitle=f"{', '.join(settings.values())}; {workload.audio_seconds:.0f} s of audio",
        x_label="seconds of processing per hour of audio (less is better)",
    )
