"""Reports the results of benchmark_peers.py as text, Markdown, JSON and a plot."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from whisper_npu.scripts.benchmarks.conditions import conditions_line
from whisper_npu.scripts.benchmarks.engine_process import START_CLIP
from whisper_npu.scripts.benchmarks.peer_comparison import OURS, Result, SetResult
from whisper_npu.scripts.benchmarks.spread import spread
from whisper_npu.scripts.common.tables import markdown_table, text_table
from whisper_npu.scripts.evaluation import wer

Table = Callable[[Sequence[str], Sequence[Sequence[str]], int], str]

_MIB = 1 << 20


def versions_line(result: Result) -> str:
    """The versions of all compared packages, in one line."""
    packages = {
        package: number
        for versions in result.versions.values()
        for package, number in versions.items()
    }
    return ", ".join(f"{package} {number}" for package, number in packages.items())


def set_line(compared: SetResult) -> str:
    """A line on the recordings of a set."""
    runs = len(compared.answers[OURS])
    how = "one after another"
    if not compared.one_by_one:
        how = f"given all at once, which only {OURS} makes use of"
    return (
        f"{compared.name}: {len(compared.recordings)} recordings, {compared.audio_seconds:.1f} s, "
        f"{how}; medians of {runs} rounds after one to warm up (lowest to highest)"
    )


def set_table(result: Result, compared: SetResult, table: Table = text_table) -> str:
    """One row per recogniser."""
    header = ["recogniser", "RTFx", f"{compared.metric.name} %", "95 % interval"]
    header += ["words left out", "ours is faster by"]
    rows = []
    for name in result.contestants:
        edits = compared.edits(name)
        interval = wer.bootstrap_interval(edits)
        total = wer.total(edits)
        rate = total.rate
        rows.append(
            [
                name,
                compared.rtfx(name).text(),
                "-" if rate is None else f"{rate:.2f}",
                "-" if interval is None else "{:.2f} to {:.2f}".format(*interval),
                str(total.deletions),
                "" if name == OURS else compared.ratio(name).text(".2f"),
            ]
        )
    return table(header, rows, 1)


def start_line(result: Result) -> str:
    """A line on the recording of the starts."""
    runs = len(result.starts[OURS])
    return (
        f"start: from the start of the process to the text of {START_CLIP:g} s of audio, caches "
        f"warm; medians of {runs} starts. Peak memory of that process, and of the one that "
        "transcribed everything"
    )


def start_table(result: Result, table: Table = text_table) -> str:
    """One row per recogniser."""
    header = ["recogniser", "start s", "ours is faster by", "MiB at start", "MiB over all"]
    rows = []
    for name in result.contestants:
        rows.append(
            [
                name,
                result.start(name).text(".2f"),
                "" if name == OURS else result.start_ratio(name).text(".2f"),
                _mebibytes(_start_memory(result, name)),
                _mebibytes(result.peak_bytes.get(name)),
            ]
        )
    return table(header, rows, 1)


def verdicts(result: Result) -> list[str]:
    """One line per set and peer."""
    lines = []
    for compared in result.sets:
        mine = wer.total(compared.edits(OURS)).rate
        for name in result.peers:
            rate = wer.total(compared.edits(name)).rate
            errors = (
                "" if mine is None or rate is None else f" at {mine:.2f} % against {rate:.2f} %"
            )
            lines.append(
                f"{compared.name}: {compared.ratio(name).median:.2f} times as fast as {name}"
                f"{errors} {compared.metric.name}"
            )
    return lines


def markdown(result: Result, found: dict[str, Any], model: str) -> str:
    """All results as a Markdown document."""
    parts = [f"# {model} beside other recognisers"]
    parts.append(f"{conditions_line(found)}; {versions_line(result)}.")
    for compared in result.sets:
        parts += [f"{set_line(compared)}.", set_table(result, compared, markdown_table)]
    parts += [f"{start_line(result)}.", start_table(result, markdown_table)]
    return "\n\n".join(parts) + "\n"


def to_json(result: Result, found: dict[str, Any], model: str) -> dict[str, Any]:
    """All results as values for JSON."""
    return {
        "model": model,
        "conditions": found,
        "versions": result.versions,
        "sets": [_set(result, compared) for compared in result.sets],
        "starts": {
            name: {
                "seconds": result.start(name).to_dict(),
                "ours_is_faster_by": result.start_ratio(name).to_dict(),
                "peak_bytes": _start_memory(result, name),
                "peak_bytes_over_all": result.peak_bytes.get(name),
            }
            for name in result.contestants
        },
    }


def _set(result: Result, compared: SetResult) -> dict[str, Any]:
    recognisers = {}
    for name in result.contestants:
        edits = compared.edits(name)
        recognisers[name] = {
            "rtfx": compared.rtfx(name).to_dict(),
            "ours_is_faster_by": compared.ratio(name).to_dict(),
            compared.metric.name.lower(): wer.total(edits).rate,
            "interval": wer.bootstrap_interval(edits),
            "edits": asdict(wer.total(edits)),
            "seconds": [list(answer.seconds) for answer in compared.answers[name]],
            "texts": list(compared.answers[name][-1].texts),
        }
    return {
        "name": compared.name,
        "recordings": [recording.name for recording in compared.recordings],
        "audio_seconds": compared.audio_seconds,
        "files": "one by one" if compared.one_by_one else "together",
        "recognisers": recognisers,
    }


def draw(result: Result, path: Path, model: str) -> None:
    """Draw the speed and error rate of every recogniser on every set.

    Raises:
        UsageError: The file cannot be written.
    """
    from whisper_npu.scripts.benchmarks.plots import Group, grouped_bars  # noqa: PLC0415

    groups = []
    for compared in result.sets:
        values, notes = {}, {}
        for name in result.contestants:
            found = compared.rtfx(name)
            values[name] = (found.median, found.lowest, found.highest)
            rate = wer.total(compared.edits(name)).rate
            notes[name] = (
                f"{found.median:.0f}"
                if rate is None
                else (f"{found.median:.0f} ({compared.metric.name} {rate:.1f} %)")
            )
        groups.append(
            Group(f"{compared.name}\n{len(compared.recordings)} recordings", values, notes)
        )
    grouped_bars(
        groups,
        path,
        title=f"Speed of Whisper {model} on a processor",
        subtitle="error rates in brackets; bars: lowest to highest run",
        x_label="RTFx: seconds of audio per second of processing (more is better)",
    )


def _start_memory(result: Result, name: str) -> int | None:
    peaks = [start.peak_bytes for start in result.starts[name] if start.peak_bytes is not None]
    return round(spread(peaks).median) if peaks else None


def _mebibytes(n_bytes: int | None) -> str:
    return "-" if n_bytes is None else f"{n_bytes / _MIB:.0f}"
