"""Line charts as inline SVG, drawn by matplotlib.

They need no script, take their colours from the page (`--c0` ... of lm/display/style.py), so that
light and dark both work, and carry their content as a text for screen readers.

    chart(Chart("Loss", "tokens", "nats per token", [Series("train", points)]))
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from lm.display.html import Html, element, escape, visible
from lm.display.style import COLOURS, DASHES, LIGHT, MATPLOTLIB
from lm.system.units import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Point = tuple[float, float]

WIDTH, HEIGHT = 480, 300  # units of the drawing; on a page it is as wide as its column
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 26, 42  # the same in all charts, so that their axes align
MOST_POINTS = 800  # of a line: more than there are pixels
MOST_DOTS = 240
SVG: dict[str, Any] = MATPLOTLIB | {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "charts",  # the same chart is the same file
    "path.simplify": False,  # `thin` does it, and keeps the extremes
    "font.size": 11,
    "axes.labelsize": 11,
    "axes.labelpad": 8,
    "axes.titlepad": 10,
    "axes.titlesize": 11,
    "axes.titlecolor": LIGHT["quiet"],
    "axes.xmargin": 0,
    "axes.ymargin": 0.04,
    "axes.grid.axis": "y",
    "axes.spines.left": False,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "xtick.bottom": False,
    "ytick.left": False,
}
KINDS: dict[str, dict[str, Any]] = {
    "line": {"linewidth": 2},
    "faint": {"linewidth": 1, "alpha": 0.45},
    "dots": {"linewidth": 1.4, "linestyle": DASHES},
}
STYLE = """
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24em), 1fr));
  gap: 1.6em 2em; margin: 1em 0 }
figure.chart { margin: 0; max-width: 36em }
figure.chart svg { width: 100%; height: auto; display: block; overflow: visible }
figure.chart figcaption { font-weight: 600; margin-bottom: .3em }
.chart text { font: 12px system-ui, sans-serif; font-variant-numeric: tabular-nums }
.legend { display: flex; flex-wrap: wrap; gap: .1em 1.3em; margin: .2em 0 0; padding: 0;
  list-style: none; font-size: .875em; color: var(--quiet) }
.legend li { display: flex; align-items: center; gap: .45em; margin: 0 }
.legend i { width: 24px; border-top: 2px solid }
.legend .faint { border-top-width: 1px; opacity: .6 }
.legend .dots { border-top-style: dashed }
.legend .dots::after { content: ""; display: block; box-sizing: border-box; width: 8px; height: 8px;
  margin: -5px auto -3px; border: 2px solid; border-radius: 50%; background: var(--paper) }
"""
STYLE += "".join(f".legend .c{i} {{ color: var(--c{i}) }}\n" for i in range(len(COLOURS)))


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        points: (x, y), in the order of x. Points that are not finite are not drawn, nor those
            that are not above 0 on a logarithmic axis.
        kind: a line; a faint one (single values behind a smoothed line); or dots on a dashed line,
            each of which shows its value under the pointer.
        colour: its place among the page's eight.
        best: the one of the points that is filled, if any.
    """

    name: str
    points: Sequence[Point]
    kind: Literal["line", "faint", "dots"] = "line"
    colour: int = 0
    best: Point | None = None


@dataclass(frozen=True)
class Chart:
    """Lines over one pair of axes.

    Attributes:
        seconds: x is a time; long times are shown in minutes, hours or days.
        zero: y begins at 0.
    """

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    seconds: bool = False
    x_log: bool = False
    y_log: bool = False
    zero: bool = False


def chart(content: Chart) -> Html:
    """Return a figure: its title, the drawing, and a legend if there are several lines.

    Without any point, the figure says that nothing is recorded.
    """
    series = [replace(s, points=_drawable(s, content)) for s in content.series]
    content = _in_readable_time(replace(content, series=[s for s in series if s.points]))
    title = element("figcaption", content.title)
    if not content.series:
        nothing = element("p", "nothing recorded", class_="quiet")
        return element("figure", title, nothing, class_="chart")
    legend = [_legend(content.series)] if len(content.series) > 1 else []
    return element("figure", title, _drawing(content), *legend, class_="chart")


def described(content: Chart) -> str:
    """Return the chart in words: where each of its lines begins and ends, and its extremes."""
    lines = []
    for s in (s for s in content.series if s.points):
        (x0, y0), (x1, y1) = s.points[0], s.points[-1]
        lowest, highest = (short(pick(y for _, y in s.points)) for pick in (min, max))
        lines.append(
            f"{s.name}: from {short(y0)} at {short(x0)} to {short(y1)} at {short(x1)}, lowest"
            f" {lowest}, highest {highest}"
        )
    return f"{content.title}: {content.y_label} over {content.x_label}. {'; '.join(lines)}."


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """Reduce a line to about `most` points without losing a peak.

    Each share of the line keeps its first, lowest, highest and last point.
    """
    if len(points) <= most:
        return list(points)
    kept: list[Point] = []
    for i in range(shares := max(1, most // 4)):
        share = range(i * len(points) // shares, (i + 1) * len(points) // shares)
        extremes = {
            share[0],
            share[-1],
            min(share, key=lambda j: points[j][1]),
            max(share, key=lambda j: points[j][1]),
        }
        kept += [points[j] for j in sorted(extremes)]
    return kept


def ticks(low: float, high: float, log: bool = False) -> list[float]:
    """Return the round values between two ends, at least two of them and at most about eight.

    On a logarithmic axis these are 1, 2 and 5 times powers of ten, or only the powers if the axis
    is long. The two ends stand in where there is not more than one round value.
    """
    from matplotlib.ticker import LogLocator, MaxNLocator

    if log:
        factors = (1.0, 2.0, 5.0) if high < low * 10**2.5 else (1.0,)
        values = LogLocator(subs=factors, numticks=8).tick_values(low, high)
    else:
        values = MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    margin = 1e-9 * (high - low)
    inside = [float(value) for value in values if low - margin <= value <= high + margin]
    return inside if len(inside) > 1 else [low, high]


def _drawable(s: Series, content: Chart) -> list[Point]:
    logs = (content.x_log, content.y_log)
    return [
        point
        for point in s.points
        if all(math.isfinite(v) and (v > 0 or not log) for v, log in zip(point, logs, strict=True))
    ]


def _in_readable_time(content: Chart) -> Chart:
    if not content.seconds:
        return content
    longest = max((x for s in content.series for x, _ in s.points), default=0.0)
    units = (("days", 86400), ("hours", 3600), ("minutes", 60))
    unit, size = next(((unit, size) for unit, size in units if longest > 2 * size), ("s", 1))
    series = [
        replace(
            s,
            points=[(x / size, y) for x, y in s.points],
            best=s.best and (s.best[0] / size, s.best[1]),
        )
        for s in content.series
    ]
    return replace(content, x_label=f"{content.x_label} ({unit})", series=series)


def _drawing(content: Chart) -> Html:
    """Draw the chart with matplotlib and return its SVG as a part of the page."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(SVG):
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72))
        across, down = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        axes = figure.add_axes((LEFT / WIDTH, BOTTOM / HEIGHT, across / WIDTH, down / HEIGHT))
        figure.patch.set_visible(False)
        axes.patch.set_visible(False)
        titles: dict[str, Html] = {}
        for i, s in enumerate(content.series):
            titles |= _draw(axes, s, content.x_label, f"s{i}")
        _scale(axes, content)
        return _as_html(figure, titles, described(content))


def _draw(axes: Axes, s: Series, x_label: str, gid: str) -> dict[str, Html]:
    """Draw one series; return the title of each of its parts, by the part's id."""
    colour = COLOURS[s.colour % len(COLOURS)]
    points = thin(s.points, MOST_DOTS if s.kind == "dots" else MOST_POINTS)
    axes.plot(*zip(*points, strict=True), color=colour, gid=gid, clip_on=False, **KINDS[s.kind])
    titles = {gid: element("title", s.name)}
    for i, (x, y) in enumerate(points if s.kind == "dots" else ()):
        best = (x, y) == s.best
        axes.plot(
            x,
            y,
            "o",
            color=colour,
            markersize=9 if best else 6.4 if len(points) <= 60 else 3.6,
            markeredgewidth=0 if best else 1.6,
            markerfacecolor=colour if best else LIGHT["paper"],
            gid=f"{gid}-{i}",
            clip_on=False,
        )
        value = f"{s.name}: {y:.6g} at {short(x)} {x_label}"
        titles[f"{gid}-{i}"] = element("title", value + ", the lowest" * best)
    return titles


def _scale(axes: Axes, content: Chart) -> None:
    """Set the axes' scales, ends, ticks and labels."""
    if content.x_log:
        axes.set_xscale("log")
    elif axes.dataLim.x0 >= 0:
        axes.set_xlim(left=0)
    if content.y_log:
        axes.set_yscale("log")
    elif content.zero and axes.dataLim.y0 >= 0:
        axes.set_ylim(bottom=0)
    for axis, log in (axes.xaxis, content.x_log), (axes.yaxis, content.y_log):
        values = ticks(*axis.get_view_interval(), log)
        labels = [short(value) for value in values]
        if len(set(labels)) < len(labels):  # far from 0 and close together
            labels = [f"{value:.10g}" for value in values]
        axis.set_ticks(values, labels)
        axis.set_ticks([], minor=True)
        for line in axis.get_gridlines():
            line.set_clip_on(False)
    axes.set_xlabel(visible(content.x_label), loc="right", parse_math=False)
    axes.set_title(
        visible(content.y_label), loc="left", parse_math=False, x=-LEFT / (WIDTH - LEFT - RIGHT)
    )


def _as_html(figure: Figure, titles: dict[str, Html], label: str) -> Html:
    """Return matplotlib's SVG for a page: its colours and fonts, titles, and no ids or links.

    matplotlib has escaped all text in it.
    """
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(file, format="svg", metadata=nothing)
    _, _, svg = file.getvalue().partition("</defs>")  # skips the header and a style sheet
    for pattern, replacement in (
        (r">\s+<", "><"),
        (r"\s*\n\s*", " "),
        (r"(?<=\.\d\d)\d+(?=[ )\"])", ""),  # a hundredth of a unit is exact enough
        (r"font-(size|family): [^;]*; ", ""),
        (r' transform="rotate\(-0 [^)]*\)"', ""),
        *((f": {colour}", f": var(--{name})") for name, colour in LIGHT.items()),
    ):
        svg = re.sub(pattern, replacement, svg)
    # A dot is a link to a path around 0, which begins at its radius: several drawings on one page
    # would have the same ids.
    radii = dict(re.findall('<path id="(\\w+)" d="M 0 ([0-9.]+) C', svg))
    svg = re.sub("<defs>.*?</defs>", "", svg)
    svg = re.sub(
        '<use xlink:href="#(\\w+)" x="([^"]*)" y="([^"]*)"',
        lambda dot: f'<circle cx="{dot[2]}" cy="{dot[3]}" r="{radii[dot[1]]}"',
        svg,
    )
    svg = re.sub('<g id="([^"]*)">', lambda group: "<g>" + titles.get(group[1], ""), svg)
    box = f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}"'
    return Html(f"<svg {box}>{svg.strip()}")


def _legend(series: Sequence[Series]) -> Html:
    keys = (
        element("li", element("i", class_=f"{s.kind} c{s.colour % len(COLOURS)}"), s.name)
        for s in series
    )
    return element("ul", *keys, class_="legend")
