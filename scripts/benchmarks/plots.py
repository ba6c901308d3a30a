"""Draws the benchmarks' plots, in the style of `common.plots`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from whisper_npu.scripts.common.plots import PALETTE, new_figure, save

_BAR = 0.6  # height of a bar, as a share of the distance between bars
_MARKERS = "osD^vPX"
_GREY = "#bbbbbb"
_SEEN = 0.005  # share of a bar from which a part is drawn separately
REST = "everything else"


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar made of parts that add up."""

    label: str
    parts: dict[str, float]


@dataclass(frozen=True, slots=True)
class Line:
    """A named curve through measurements; `low` and `high` are the spread around them."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """A group of bars: by name, a value, its spread and its label."""

    label: str
    values: dict[str, tuple[float, float, float]]
    notes: dict[str, str]


def stacked_bars(
    bars: Sequence[Bar], path: Path, *, title: str, subtitle: str, x_label: str
) -> None:
    """Draw bars of parts, the first on top; small parts are joined as `REST`.

    Raises:
        UsageError: The file cannot be written.
    """
    figure, axes = new_figure(title, subtitle, x_label, "")
    names = _largest(bars)
    lefts = [0.0] * len(bars)
    for index, name in enumerate((*names, REST)):
        lengths = [
            sum(bar.parts.values()) - left if name == REST else bar.parts.get(name, 0.0)
            for bar, left in zip(bars, lefts, strict=True)
        ]
        color = _GREY if name == REST else PALETTE[index]
        axes.barh(range(len(bars)), lengths, _BAR, lefts, color=color, label=name)
        lefts = [left + length for left, length in zip(lefts, lengths, strict=True)]
    axes.set_yticks(range(len(bars)), [bar.label for bar in bars])
    axes.set_ylim(-0.6, max(1.6, len(bars) - 0.4))
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    figure.legend(loc="outside lower center", frameon=False, fontsize=9, ncols=4)
    save(figure, path)


def _largest(bars: Sequence[Bar]) -> list[str]:
    """The largest parts of any bar, one per colour, in their order."""
    names = list(dict.fromkeys(name for bar in bars for name in bar.parts if name != REST))
    shares = {
        name: max(bar.parts.get(name, 0.0) / (sum(bar.parts.values()) or 1.0) for bar in bars)
        for name in names
    }
    kept = sorted(names, key=lambda name: -shares[name])[: len(PALETTE)]
    return [name for name in names if name in kept and shares[name] >= _SEEN]


def lines(
    curves: Sequence[Line],
    path: Path,
    *,
    title: str,
    subtitle: str,
    x_label: str,
    y_label: str,
    log_y: bool = False,
) -> None:
    """Draw curves over a logarithmic axis, and write the plot to `path`.

    Raises:
        UsageError: The file cannot be written.
    """
    figure, axes = new_figure(title, subtitle, x_label, y_label)
    for index, curve in enumerate(curves):
        color = PALETTE[index % len(PALETTE)]
        axes.plot(
            curve.x,
            curve.y,
            marker=_MARKERS[index % len(_MARKERS)],
            color=color,
            markersize=5,
            label=curve.label,
        )
        if curve.low is not None and curve.high is not None:
            axes.fill_between(curve.x, curve.low, curve.high, color=color, alpha=0.15, lw=0)
    axes.set_xscale("log", base=2)
    ticks = sorted({x for curve in curves for x in curve.x})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    if log_y:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    save(figure, path)


def grouped_bars(
    groups: Sequence[Group], path: Path, *, title: str, subtitle: str, x_label: str
) -> None:
    """Draw groups of bars with their spread, and write the plot to `path`.

    Raises:
        UsageError: The file cannot be written.
    """
    figure, axes = new_figure(title, subtitle, x_label, "")
    names = list(dict.fromkeys(name for group in groups for name in group.values))
    height = 0.8 / len(names)
    for index, name in enumerate(names):
        for place, group in enumerate(groups):
            if name not in group.values:
                continue
            value, low, high = group.values[name]
            y = place + (index - (len(names) - 1) / 2) * height
            axes.barh(
                y,
                value,
                height * 0.9,
                color=PALETTE[index % len(PALETTE)],
                xerr=[[max(0.0, value - low)], [max(0.0, high - value)]],
                error_kw={"elinewidth": 1, "capsize": 2, "ecolor": "#555555"},
                label=name if place == 0 else None,
            )
            note = group.notes.get(name, "")
            axes.annotate(
                note, (high, y), xytext=(6, 0), textcoords="offset points", va="center", fontsize=8
            )
    axes.set_yticks(range(len(groups)), [group.label for group in groups])
    axes.invert_yaxis()
    axes.margins(x=0.25)
    axes.set_xlim(left=0)
    axes.grid(visible=False, axis="y")
    axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    save(figure, path)
