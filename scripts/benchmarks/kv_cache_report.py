"""Reports the results of benchmark_kv_cache.py as text, Markdown, JSON and plots."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from whisper_npu.scripts.benchmarks.conditions import conditions_line
from whisper_npu.scripts.benchmarks.kv_cache_figures import (
    BASELINE,
    Cell,
    Difference,
    Kind,
    find_difference,
    speed_up,
)
from whisper_npu.scripts.benchmarks.spread import Spread
from whisper_npu.scripts.common.tables import markdown_table, text_table

Table = Callable[[Sequence[str], Sequence[Sequence[str]], int], str]

_KIB = 1 << 10
_TOLD = (128, 256)  # lengths in the verdict, besides the shortest and the longest
_CLOSE = 1.05  # medians within this factor count as equal


def cell_table(kinds: Sequence[Kind], table: Table = text_table) -> str:
    """One row per number of tokens and kind."""
    header = ["new tokens", "cache", "decode ms", "ms/token", "against off", "tokens/s"]
    header += ["peak tokens/s", "K/V positions", "cross K/V positions", "cache KiB"]
    header += ["cross KiB", "KiB/token", "success %"]
    rows = []
    for n_tokens in _lengths(kinds):
        for kind in kinds:
            cell = kind.cells.get(n_tokens)
            if cell is not None:
                rows.append([str(n_tokens), kind.name, *_figures(kinds, cell)])
    return table(header, rows, 2)


def _figures(kinds: Sequence[Kind], cell: Cell) -> list[str]:
    success = f"{100 * cell.success_rate:.0f}"
    if not cell.decodes or cell.cost is None:
        return ["-"] * 10 + [success]
    faster = against_off(kinds, cell)
    cost = cell.cost
    return [
        _milliseconds(cell.seconds),
        f"{1000 * cell.token_seconds:.2f}",
        "-" if faster is None else f"{faster.median:.2f}",
        f"{cell.tokens_per_second:.0f}",
        f"{cell.peak_tokens_per_second:.0f}",
        str(cost.self_positions),
        str(cost.cross_positions),
        f"{cost.self_bytes / _KIB:.0f}",
        f"{cost.cross_bytes / _KIB:.0f}",
        f"{abs(cost.bytes_per_token) / _KIB:.1f}",  # the fit to a constant may give -0
        success,
    ]


def growth_table(kinds: Sequence[Kind], table: Table = text_table) -> str:
    """How the time per token grows in the longest decode of each kind."""
    header = ["cache", "precision", "tokens", "growth us/token per token", "variance us^2"]
    header += ["last tokens against 32nd", "process KiB/token"]
    rows = []
    for kind in kinds:
        cell, growth, late = kind.longest, kind.growth, kind.late_to_early
        if cell is None:
            continue
        resident = None if cell.cost is None else cell.cost.resident_per_token
        rows.append(
            [
                kind.name,
                kind.precision,
                str(cell.n_tokens),
                "-" if growth is None else f"{1e6 * growth[0]:+.2f}",
                "-" if growth is None else f"{1e12 * growth[1]:.0f}",
                "-" if late is None else f"{late:.2f}",
                "-" if resident is None else f"{resident / _KIB:.0f}",
            ]
        )
    return table(header, rows, 2)


def against_off(kinds: Sequence[Kind], cell: Cell) -> Spread | None:
    """The factor of speed of a cell against no cache; None if that was not measured."""
    for kind in kinds:
        baseline = kind.cells.get(cell.n_tokens)
        if kind.name == BASELINE and baseline is not None and baseline.decodes:
            return None if baseline is cell else speed_up(cell, baseline)
    return None


def slower_lengths(kinds: Sequence[Kind], name: str) -> dict[int, str]:
    """Numbers of tokens at which another kind is clearly faster than `name`, and which one."""
    found = {}
    chosen = next((kind for kind in kinds if kind.name == name), None)
    for n_tokens, cell in (chosen.cells if chosen else {}).items():
        others = [
            (other.cells[n_tokens].seconds.median, other.name)
            for other in kinds
            if n_tokens in other.cells and other.cells[n_tokens].decodes
        ]
        if not others or not cell.decodes:
            continue
        best, fastest = min(others)
        if cell.seconds.median > _CLOSE * best:
            found[n_tokens] = fastest
    return found


def verdict(kinds: Sequence[Kind], auto: str) -> tuple[bool, str]:
    """Whether every kind worked and decoded the same tokens, and a line with the main figures.

    Args:
        kinds: The measured kinds.
        auto: The kind that `--kv-cache auto` takes.
    """
    difference = find_difference(kinds)
    if difference is not None:
        return False, _difference_line(difference)
    failed = [kind for kind in kinds if kind.error or not _complete(kind)]
    if failed:
        reason = failed[0].error or "not every decode gave its tokens"
        return False, f"FAIL: {', '.join(kind.name for kind in failed)}: {reason}"
    parts = [f"tokens equal in {', '.join(kind.name for kind in kinds)}"]
    chosen = next((kind for kind in kinds if kind.name == auto), None)
    if chosen is not None:
        faster = {
            n: ratio.median
            for n, cell in chosen.cells.items()
            if (ratio := against_off(kinds, cell)) is not None
        }
        if faster:
            told = [n for n in faster if n in {min(faster), *_TOLD, max(faster)}]
            ratios = ", ".join(f"{faster[n]:.1f}x at {n}" for n in told)
            slow = [str(n) for n, ratio in faster.items() if ratio < 1]
            never = f"slower at {', '.join(slow)}" if slow else "never slower"
            parts.append(f"{auto} against no cache {ratios} tokens, {never}")
        late = chosen.late_to_early
        if late is not None:
            parts.append(f"its last tokens take {late:.2f}x the 32nd")
        slower = slower_lengths(kinds, auto)
        parts.append(
            f"auto ({auto}) is fastest at every length"
            if not slower
            else f"auto ({auto}) is not fastest at "
            + ", ".join(f"{n} ({other} is)" for n, other in slower.items())
        )
    return True, f"PASS: {'; '.join(parts)}"


def _complete(kind: Kind) -> bool:
    return bool(kind.cells) and all(cell.success_rate == 1 for cell in kind.cells.values())


def _difference_line(found: Difference) -> str:
    return (
        f"FAIL: {found.kind} decodes another token at position {found.position} of "
        f"{found.n_tokens} than the first kind: its cache is wrong, or rounds otherwise"
    )


def markdown(kinds: Sequence[Kind], found: dict[str, Any], auto: str, subject: str) -> str:
    """All results as a Markdown document."""
    parts = ["# The decoder's cache", f"{subject}. {conditions_line(found)}."]
    parts += [cell_table(kinds, markdown_table), growth_table(kinds, markdown_table)]
    return "\n\n".join([*parts, verdict(kinds, auto)[1]]) + "\n"


def to_json(
    kinds: Sequence[Kind], found: dict[str, Any], auto: str, subject: str
) -> dict[str, Any]:
    """All results as values for JSON."""
    passed, line = verdict(kinds, auto)
    return {
        "passed": passed,
        "verdict": line,
        "subject": subject,
        "auto": auto,
        "auto_is_slower_at": {str(n): other for n, other in slower_lengths(kinds, auto).items()},
        "conditions": found,
        "kinds": {kind.name: _kind(kinds, kind) for kind in kinds},
    }


def _kind(kinds: Sequence[Kind], kind: Kind) -> dict[str, Any]:
    growth = kind.growth
    return {
        "precision": kind.precision,
        "error": kind.error,
        "growth_seconds_per_token": None if growth is None else growth[0],
        "variance_seconds_squared": None if growth is None else growth[1],
        "last_tokens_against_32nd": kind.late_to_early,
        "lengths": {str(n): _cell(kinds, cell) for n, cell in kind.cells.items()},
    }


def _cell(kinds: Sequence[Kind], cell: Cell) -> dict[str, Any]:
    if not cell.decodes:
        return {"success_rate": cell.success_rate}
    faster = against_off(kinds, cell)
    return {
        "decode_seconds": cell.seconds.to_dict(),
        "seconds_per_token": cell.token_seconds,
        "speed_against_off": None if faster is None else faster.to_dict(),
        "tokens_per_second": cell.tokens_per_second,
        "peak_tokens_per_second": cell.peak_tokens_per_second,
        "success_rate": cell.success_rate,
        "counted": None if cell.cost is None else asdict(cell.cost),
        "step_seconds": cell.steps.tolist(),
        "tokens": list(cell.decodes[0].tokens),
    }


def draw(kinds: Sequence[Kind], folder: Path, subject: str) -> list[Path]:
    """Write the two plots: decode time and throughput against length.

    Raises:
        UsageError: A file cannot be written.
    """
    from whisper_npu.scripts.benchmarks.plots import Line, lines  # noqa: PLC0415 - matplotlib

    done = {
        kind.name: [cell for cell in kind.cells.values() if cell.decodes]
        for kind in kinds
        if kind.longest
    }
    time_plot, speed_plot = folder / "kv_cache_time.png", folder / "kv_cache_throughput.png"
    lines(
        [
            Line(
                name,
                [cell.n_tokens for cell in cells],
                [cell.seconds.median for cell in cells],
                [cell.seconds.lowest for cell in cells],
                [cell.seconds.highest for cell in cells],
            )
            for name, cells in done.items()
        ],
        time_plot,
        title="Decode time by kind of cache",
        subtitle=subject,
        x_label="new tokens",
        y_label="seconds (less is better)",
        log_y=True,
    )
    lines(
        [
            Line(
                name,
                [cell.n_tokens for cell in cells],
                [cell.tokens_per_second for cell in cells],
                [cell.n_tokens / cell.seconds.highest for cell in cells],
                [cell.n_tokens / cell.seconds.lowest for cell in cells],
            )
            for name, cells in done.items()
        ],
        speed_plot,
        title="Throughput by kind of cache",
        subtitle=subject,
        x_label="new tokens",
        y_label="tokens per second (more is better)",
    )
    return [time_plot, speed_plot]


def _lengths(kinds: Sequence[Kind]) -> list[int]:
    return sorted({n_tokens for kind in kinds for n_tokens in kind.cells})


def _milliseconds(found: Spread) -> str:
    low, high = 1000 * found.lowest, 1000 * found.highest
    return f"{1000 * found.median:.1f} ({low:.1f} to {high:.1f})"
