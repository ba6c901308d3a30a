"""Draws plots of measurements without a display; the file's suffix chooses the format."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox

from whisper_npu.errors import UsageError
from whisper_npu.spelling import did_you_mean

# Okabe & Ito's palette, which colour-blind people can tell apart.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
FORMATS = (".pdf", ".png", ".svg")
_INK, _FAINT = "#222222", "#888888"
_SIZE = (8.0, 5.0)  # inches
_DPI = 150
_MARKERS = "osD^vPX"

# Places for a label, in points from its point; near places come first.
_LABEL_PLACES = tuple(
    (dx, dy)
    for distance in (5, 14, 26, 40, 56)
    for dx, dy in ((8, distance), (8, -distance), (-8, distance), (-8, -distance))
)


@dataclass(frozen=True, slots=True)
class Point:
    """A measurement with a name; `interval` is the lowest and highest `y`, if known."""

    label: str
    x: float
    y: float
    interval: tuple[float, float] | None = None


def check_format(path: Path) -> None:
    """Check before hours of measuring that a plot can be written to a file.

    Raises:
        UsageError: The suffix is no picture format.
    """
    if path.suffix.lower() not in FORMATS:
        hint = did_you_mean(path.suffix, FORMATS)
        raise UsageError(f"{path}: a plot is written as one of {', '.join(FORMATS)}{hint}")


def split_labels(settings: Sequence[dict[str, str]]) -> tuple[str, list[str]]:
    """The common part of all settings, and for each setting the part that differs."""
    names = list(settings[0]) if settings else []
    varying = [name for name in names if len({each[name] for each in settings}) > 1]
    shared = ", ".join(f"{settings[0][name]}" for name in names if name not in varying)
    return shared, [", ".join(each[name] for name in varying) for each in settings]


def new_figure(title: str, subtitle: str, x_label: str, y_label: str) -> tuple[Figure, Axes]:
    """An empty plot in the common style."""
    figure = Figure(figsize=_SIZE, dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", pad=22, fontsize=13, fontweight="bold", color=_INK)
    axes.annotate(
        subtitle,
        (0, 1),
        xycoords="axes fraction",
        xytext=(0, 8),
        textcoords="offset points",
        fontsize=9,
        color=_FAINT,
    )
    axes.set_xlabel(x_label, color=_INK)
    axes.set_ylabel(y_label, color=_INK)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_FAINT)
    axes.tick_params(colors=_INK)
    return figure, axes


def save(figure: Figure, path: Path) -> None:
    """Write the plot.

    Raises:
        UsageError: The file cannot be written.
    """
    try:
        figure.savefig(path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror or error}") from None


def scatter_with_intervals(
    points: Sequence[Point], path: Path, *, title: str, subtitle: str, x_label: str, y_label: str
) -> None:
    """Draw named points with vertical intervals, and write the plot to `path`.

    Raises:
        UsageError: The file cannot be written.
    """
    figure, axes = new_figure(title, subtitle, x_label, y_label)
    for index, point in enumerate(points):
        low, high = point.interval or (point.y, point.y)
        axes.errorbar(
            point.x,
            point.y,
            # A percentile interval need not contain its estimate; an error bar cannot be negative.
            yerr=[[max(0.0, point.y - low)], [max(0.0, high - point.y)]],
            fmt=_MARKERS[index // len(PALETTE) % len(_MARKERS)],
            color=PALETTE[index % len(PALETTE)],
            markersize=8,
            capsize=4,
            elinewidth=1.5,
        )
    axes.margins(x=0.2, y=0.15)
    axes.set_xlim(left=max(0.0, axes.get_xlim()[0]))
    axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8))
    _label(figure, axes, points)
    save(figure, path)


def _label(figure: Figure, axes: Axes, points: Sequence[Point]) -> None:
    """Write each label near its point, where it hides neither points nor other labels."""
    FigureCanvasAgg(figure)  # the figure keeps the canvas: labels are measured in its pixels
    figure.draw_without_rendering()  # positions are known after the layout
    frame = axes.get_window_extent()
    taken = [_pixels(axes, point) for point in points]
    for index, point in enumerate(points):
        color = PALETTE[index % len(PALETTE)]
        hidden: list[float] = []
        for place in _LABEL_PLACES:
            note = _annotate(axes, point, place, color)
            box = note.get_window_extent()
            outside = box.width * box.height - _overlap(box, frame)
            hidden.append(outside + sum(_overlap(box, other) for other in taken))
            note.remove()
            if hidden[-1] <= 0:
                break
        best = _LABEL_PLACES[hidden.index(min(hidden))]
        note = _annotate(axes, point, best, color)
        taken.append(note.get_window_extent())


def _annotate(axes: Axes, point: Point, place: tuple[int, int], color: str) -> Annotation:
    dx, dy = place
    return axes.annotate(
        point.label,
        (point.x, point.y),
        xytext=place,
        textcoords="offset points",
        ha="left" if dx > 0 else "right",
        va="bottom" if dy > 0 else "top",
        fontsize=9,
        color=color,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},  # no grid through the text
    )


def _pixels(axes: Axes, point: Point) -> Bbox:
    """The area of a point and its interval, in pixels."""
    low, high = point.interval or (point.y, point.y)
    (x, bottom), (_, top) = axes.transData.transform([(point.x, low), (point.x, high)])
    return Bbox.from_extents(x - 10, bottom - 10, x + 10, top + 10)


def _overlap(one: Bbox, other: Bbox) -> float:
    """The common area of two boxes, in square pixels."""
    common = Bbox.intersection(one, other)
    return 0.0 if common is None else float(common.width * common.height)
