"""Charts for a page, drawn without pyplot: no display is needed, and the user's matplotlib stays as it is.

``draw`` gives one chart in the style of the page, whatever is plotted on its axes.
"""

import base64
import io
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

from lightning_kd.report.page import Picture, check_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STUDENT, TEACHER = "#2a78d6", "#e07b39"
"""The colours of the two networks, which are told apart in light and dark, and by those who see red as green."""
COLOURS = (STUDENT, TEACHER, "#2c9c72", "#a15ec2", "#c2476b", "#b39a1e", "#1f9fb5")
"""The colours of further lines."""
_WHOLE = "#7b8794"
"""The colour of the whole loss, which is dashed, for a part may hide it."""
INK, FAINT = "#010203", "#040506"
"""Colours that stand for those of letters and of thin lines, which light and dark pages have in other shades."""
_SHADES = (
    "<style>svg{--ink:#3c4654;--faint:#dde2e9}"
    "@media (prefers-color-scheme:dark){svg{--ink:#b8c2cf;--faint:#39424e}}</style>"
)
_STYLE = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "lightning_kd",
    "font.family": ["sans-serif"],
    "font.size": 9.0,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.8,
    "axes.unicode_minus": True,
    "text.usetex": False,
    "text.parse_math": False,
}


def draw(
    plot: Callable[["Axes"], None], *, alt: str, caption: str = "", width: float = 4.6, height: float = 2.9
) -> Picture:
    """Draw one chart in the style of the page, as SVG.

    Args:
        plot: Draws on the axes. ``INK`` and ``FAINT`` are the colours of letters and of thin lines.
        alt: What the chart shows, with its main numbers.
        caption: What stands below it.
        width: Its width in inches, of 96 pixels each. 4.6 is still legible on a phone.
        height: Its height in inches.

    Raises:
        MissingExtraError: If matplotlib is not installed; names the extra.

    Example:
        >>> picture = draw(lambda axes: axes.plot([1, 2], [3, 4]) and None, alt="A line from 3 to 4.")
        >>> picture.uri[:26], picture.alt
        ('data:image/svg+xml;base64,', 'A line from 3 to 4.')
    """
    check_extra("matplotlib")
    from matplotlib import style
    from matplotlib.figure import Figure

    with warnings.catch_warnings(), style.context(["default", _STYLE]):
        # a letter that the font lacks is drawn by the browser, and axes that get narrow are still axes
        warnings.simplefilter("ignore", UserWarning)
        figure = Figure(figsize=(width, height), layout="constrained")
        plot(figure.add_subplot())
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    svg = re.sub(r"(<svg [^>]*>)", lambda found: found[1] + _SHADES, file.getvalue(), count=1)
    svg = svg.replace(INK, "var(--ink)").replace(FAINT, "var(--faint)")
    svg = svg[svg.index("<svg ") :]
    uri = "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
    return Picture(uri, alt, caption, round(96 * width))


def line_chart(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    alt: str,
    x: str = "step",
    title: str = "",
    caption: str = "",
    log: bool = False,
    colours: Sequence[str] = COLOURS,
    marker: str | None = None,
) -> Picture:
    """Draw lines by name.

    Args:
        lines: The x and y values of each line.
        alt: What the chart shows.
        x: What the x axis is.
        title: What the y axis is, above the chart.
        caption: What stands below the chart.
        log: Whether the y axis is logarithmic, if every value is positive.
        colours: Colours, one for each line, which begin anew if there are more lines.
        marker: How a point is marked.
    """

    def plot(axes: "Axes") -> None:
        for number, (name, (at, values)) in enumerate(lines.items()):
            dot = marker or ("o" if len(at) < 2 else None)
            colour = colours[number % len(colours)]
            style = "--" if colour == _WHOLE else "-"
            axes.plot(at, values, style, label=name, color=colour, marker=dot, markersize=4)
        if log and all(value > 0 for _, values in lines.values() for value in values):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("")
        axes.set_xlabel(x)
        axes.set_title(title)
        _legend(axes, lines)

    return draw(plot, alt=alt, caption=caption)


def bar_chart(
    names: Sequence[str],
    bars: Mapping[str, Sequence[float]],
    *,
    alt: str,
    title: str = "",
    caption: str = "",
    colours: Sequence[str] = COLOURS,
    limit: float | None = None,
) -> Picture:
    """Draw groups of horizontal bars, the first name on top.

    Args:
        names: The names of the groups.
        bars: One value for each group, by the name of the bar.
        alt: What the chart shows.
        title: What the x axis is, above the chart.
        caption: What stands below the chart.
        colours: Colours, one for each bar of a group.
        limit: Where the x axis ends.
    """

    def plot(axes: "Axes") -> None:
        thick = 0.8 / len(bars)
        for number, (name, values) in enumerate(bars.items()):
            places = [at - 0.4 + (number + 0.5) * thick for at in range(len(names))]
            axes.barh(places, values, height=thick * 0.92, label=name, color=colours[number % len(colours)])
        axes.set_yticks(range(len(names)), [_short(name) for name in names])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_title(title)
        if limit is not None:
            axes.set_xlim(0, limit)
        _legend(axes, bars)

    return draw(plot, alt=alt, caption=caption, height=1.0 + max(0.26, 0.13 * len(bars) + 0.06) * len(names))


def heat_map(
    values: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    alt: str,
    row_title: str = "",
    column_title: str = "",
    title: str = "",
    caption: str = "",
    digits: int = 2,
    low: float | None = 0.0,
    high: float | None = 1.0,
) -> Picture:
    """Draw a table of numbers as colours, with the numbers in the cells.

    Args:
        values: The numbers, row by row.
        rows: The names of the rows.
        columns: The names of the columns.
        alt: What the chart shows.
        row_title: What the rows are.
        column_title: What the columns are.
        title: What the numbers are, above the chart.
        caption: What stands below the chart.
        digits: Digits after the point of the numbers in the cells; -1 writes none.
        low: The number of the palest colour, ``None`` for the smallest.
        high: The number of the strongest colour, ``None`` for the largest.
    """
    import numpy as np

    table = np.asarray(values, dtype=float)
    bottom = float(np.nanmin(table)) if low is None else low
    top = float(np.nanmax(table)) if high is None else high

    def plot(axes: "Axes") -> None:
        axes.imshow(table, cmap="viridis", vmin=bottom, vmax=top, aspect="auto")
        axes.set_xticks(range(len(columns)), [_short(name) for name in columns], rotation=45, ha="right")
        axes.set_yticks(range(len(rows)), [_short(name) for name in rows])
        axes.grid(visible=False)
        axes.set_xlabel(column_title)
        axes.set_ylabel(row_title)
        axes.set_title(title)
        for i, row in enumerate(table if digits >= 0 else ()):
            for j, value in enumerate(row):
                bright = value > bottom + 0.6 * (top - bottom)
                words = "" if np.isnan(value) else f"{value:.{digits}f}"
                axes.text(j, i, words, ha="center", va="center", fontsize=8, color="#101418" if bright else "#f4f6f8")

    width, height = 1.6 + 0.52 * len(columns), 1.4 + 0.34 * len(rows)
    return draw(plot, alt=alt, caption=caption, width=max(3.4, min(width, 9.0)), height=max(2.4, min(height, 9.0)))


def colours_of(names: Iterable[str]) -> list[str]:
    """Return a colour for each part of a loss, the same in every chart; the whole loss is grey.

    Example:
        >>> colours_of(["loss", "task"]) == ["#7b8794", STUDENT]
        True
    """
    parts = cycle(COLOURS)
    return [_WHOLE if name == "loss" else next(parts) for name in names]


def _legend(axes: "Axes", names: Mapping[str, object]) -> None:
    """Name the colours below the chart, where they cover nothing."""
    if len(names) > 1:
        columns = max(1, min(len(names), 60 // (6 + max(map(len, names)))))
        axes.figure.legend(loc="outside lower left", ncols=columns)


def _short(name: str, most: int = 26) -> str:
    """Return a name that fits beside an axis: the end says more than the beginning."""
    return name if len(name) <= most else "\N{HORIZONTAL ELLIPSIS}" + name[1 - most :]
