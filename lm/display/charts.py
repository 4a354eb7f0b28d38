"""Line charts as inline SVG: they take their colours from the page (`--c0` ... of
lm/display/html.py), need no script, and are read out as a text.

chart(Chart("Loss", "tokens", "nats per token", [Series("train", points), Series("validation", more,
kind="dots")]))
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lm.display.html import Html, element
from lm.system.units import short

Point = tuple[float, float]

WIDTH, HEIGHT = 480, 300  # of the drawing, in its own units; on a page it is as wide as its column
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 26, 42
MOST_POINTS = 800  # of a line: more than there are pixels
MOST_DOTS = 240
COLOURS = 8
STYLE = """
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24em), 1fr)); gap: 1.6em 2em; margin: 1em 0 }
figure.chart { margin: 0; max-width: 36em } figure.chart svg { width: 100%; height: auto; display: block; overflow: visible }
figure.chart figcaption { font-weight: 600; margin-bottom: .3em }
.chart text { font: 12px system-ui, sans-serif; fill: var(--quiet); font-variant-numeric: tabular-nums }
.chart .grid { stroke: var(--line); stroke-width: 1 } .chart .axis { stroke: var(--quiet); stroke-width: 1 }
.chart path { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round }
.chart path.faint { stroke-width: 1; opacity: .45 } .chart path.dots { stroke-width: 1.4; stroke-dasharray: 5 3 }
.chart circle { fill: var(--paper); stroke-width: 1.6 } .chart circle.best { stroke-width: 0 }
.legend { display: flex; flex-wrap: wrap; gap: .1em 1.3em; margin: .2em 0 0; padding: 0; list-style: none; font-size: .875em;
  color: var(--quiet) } .legend li { display: flex; align-items: center; gap: .45em; margin: 0 }
figure.chart .legend svg { width: 24px; height: 12px; flex: none }
"""
STYLE += "".join(
    f".chart .c{i} {{ stroke: var(--c{i}) }} .chart .best.c{i} {{ fill: var(--c{i}) }}\n"
    for i in range(COLOURS)
)


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        points: (x, y), in the order of x; those that are not finite are left out (and on a
            logarithmic axis those not above 0).
        kind: a line; a faint one (single values behind a smoothed line); or dots on a dashed line,
            each of which says its value.
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
    """What is drawn.

    Attributes:
        seconds: x is a time; it is shown in minutes, hours or days where they are many.
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


class Axis:
    """Values to places: linear, or by their logarithm.

    Args:
        values: what has to be on it.
        start, end: where its two ends are drawn.
        log: values are above 0.
        margin: the share of the axis that stays free at either end.
        zero: 0 is its one end.

    Attributes:
        ticks: round values, three to eight of them.
    """

    def __init__(
        self,
        values: Iterable[float],
        start: float,
        end: float,
        log: bool = False,
        margin: float = 0.0,
        zero: bool = False,
    ):
        scaled = [
            *((math.log10(value) if log else value) for value in values),
            *([0.0] if zero and not log else []),
        ]
        low, high = min(scaled), max(scaled)
        if low == high:
            low, high = low - (abs(low) / 2 or 0.5), high + (abs(high) / 2 or 0.5)
        spare = (high - low) * margin
        self._low, self._high = 0.0 if zero and low >= 0 and not log else low - spare, high + spare
        self._start, self._end, self._log = start, end, log
        self.ticks = list(
            _log_ticks(self._low, self._high) if log else _ticks(self._low, self._high)
        )

    def place(self, value: float) -> float:
        """Where a value is drawn."""
        scaled = math.log10(value) if self._log else value
        return self._start + (scaled - self._low) / (self._high - self._low) * (
            self._end - self._start
        )


def chart(what: Chart) -> Html:
    """A figure: its title, the drawing, and a legend where there are several lines. Without any
    point it says that nothing is recorded.
    """
    what = _in_readable_time(
        replace(
            what,
            series=[
                replace(s, points=_finite(s, what), colour=s.colour % COLOURS) for s in what.series
            ],
        )
    )
    series = [s for s in what.series if s.points]
    title = element("figcaption", what.title)
    if not series:
        return element(
            "figure", title, element("p", "nothing recorded", class_="quiet"), class_="chart"
        )
    x = Axis((a for s in series for a, _ in s.points), LEFT, WIDTH - RIGHT, what.x_log, zero=True)
    y = Axis(
        (b for s in series for _, b in s.points), HEIGHT - BOTTOM, TOP, what.y_log, 0.04, what.zero
    )
    drawn = [*_frame(what, x, y), *(part for s in series for part in _drawn(s, x, y, what))]
    drawing = element(
        "svg", *drawn, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=described(what)
    )
    return element(
        "figure", title, drawing, *([_legend(series)] if len(series) > 1 else []), class_="chart"
    )


def described(what: Chart) -> str:
    """The chart in words: from where to where each of its lines goes."""
    lines = []
    for s in (s for s in what.series if s.points):
        (x0, y0), (x1, y1) = s.points[0], s.points[-1]
        lowest, highest = (short(pick(y for _, y in s.points)) for pick in (min, max))
        lines.append(
            f"{s.name}: from {short(y0)} at {short(x0)} to {short(y1)} at {short(x1)}, lowest"
            f" {lowest}, highest {highest}"
        )
    return f"{what.title}: {what.y_label} over {what.x_label}. {'; '.join(lines)}."


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """About `most` points at most: of each share the first, the lowest, the highest and the last,
    so that no peak is lost.
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


def _finite(s: Series, what: Chart) -> list[Point]:
    logs = (what.x_log, what.y_log)
    return [
        point
        for point in s.points
        if all(math.isfinite(v) and (v > 0 or not log) for v, log in zip(point, logs, strict=True))
    ]


def _in_readable_time(what: Chart) -> Chart:
    if not what.seconds:
        return what
    longest = max((x for s in what.series for x, _ in s.points), default=0.0)
    unit, size = next(
        (
            (unit, size)
            for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60))
            if longest > 2 * size
        ),
        ("s", 1),
    )
    shrunk = [
        replace(
            s,
            points=[(x / size, y) for x, y in s.points],
            best=s.best and (s.best[0] / size, s.best[1]),
        )
        for s in what.series
    ]
    return replace(what, x_label=f"{what.x_label} ({unit})", series=shrunk)


def _ticks(low: float, high: float) -> Iterator[float]:
    """Multiples of 1, 2, 2.5 or 5 times a power of ten."""
    rough = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    # From whole numbers: a sum of steps would come to 0.30000000000000004.
    digits = max(0, 1 - math.floor(math.log10(step)))
    yield from (
        round(i * step, digits)
        for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    )


def _log_ticks(low: float, high: float) -> Iterator[float]:
    """1, 2 and 5 times powers of ten, or where that is too many only the powers; `low` and `high`
    are logarithms.
    """
    factors = (1, 2, 5) if high - low < 2.5 else (1,)
    every = max(1, round((high - low) / 6))
    found = [
        f * 10.0**e
        for e in range(math.floor(low), math.ceil(high) + 1)
        for f in factors
        if e % every == 0
    ]
    inside = [value for value in found if low - 1e-9 <= math.log10(value) <= high + 1e-9]
    yield from inside if len(inside) > 1 else (10**low, 10**high)


def _frame(what: Chart, x: Axis, y: Axis) -> Iterator[Html]:
    bottom = HEIGHT - BOTTOM
    for tick, label in zip(y.ticks, _labels(y.ticks), strict=True):
        at = f"{y.place(tick):.1f}"
        yield element("line", class_="grid", x1=LEFT, x2=WIDTH - RIGHT, y1=at, y2=at)
        yield element("text", label, x=LEFT - 8, y=at, dy="0.32em", text_anchor="end", class_="y")
    yield element("line", class_="axis", x1=LEFT, x2=WIDTH - RIGHT, y1=bottom, y2=bottom)
    for tick, label in zip(x.ticks, _labels(x.ticks), strict=True):
        at = f"{x.place(tick):.1f}"
        yield element("line", class_="axis", x1=at, x2=at, y1=bottom, y2=bottom + 4)
        yield element("text", label, x=at, y=bottom + 17, text_anchor="middle", class_="x")
    yield element("text", what.x_label, x=WIDTH - RIGHT, y=HEIGHT - 5, text_anchor="end")
    yield element("text", what.y_label, x=0, y=11)


def _labels(ticks: Sequence[float]) -> list[str]:
    labels = [short(tick) for tick in ticks]
    # far from 0 and close together
    return labels if len(set(labels)) == len(labels) else [f"{tick:.10g}" for tick in ticks]


def _drawn(s: Series, x: Axis, y: Axis, what: Chart) -> Iterator[Html]:
    points = thin(s.points, MOST_DOTS if s.kind == "dots" else MOST_POINTS)
    places = [f"{x.place(a):.2f} {y.place(b):.2f}" for a, b in points]
    yield element(
        "path", d="M" + "L".join(places), class_=f"{s.kind} c{s.colour}", data_name=s.name
    )
    if s.kind != "dots":
        return
    for place, point in zip(places, points, strict=True):
        cx, cy = place.split()
        best = point == s.best
        said = (
            f"{s.name}: {point[1]:.6g} at {short(point[0])} {what.x_label}" + ", the lowest" * best
        )
        kind = f"c{s.colour}" + " best" * best
        yield element(
            "circle",
            element("title", said),
            cx=cx,
            cy=cy,
            r=4.5 if best else 3.2 if len(points) <= 60 else 1.8,
            class_=kind,
        )


def _legend(series: Sequence[Series]) -> Html:
    keys = []
    for s in series:
        parts = [element("path", d="M1 6L23 6", class_=f"{s.kind} c{s.colour}")]
        if s.kind == "dots":
            parts.append(
                element(
                    "circle",
                    cx=12,
                    cy=6,
                    r=3.2,
                    class_=f"c{s.colour}" + " best" * (s.best is not None),
                )
            )
        keys.append(
            element("li", element("svg", *parts, viewBox="0 0 24 12", aria_hidden="true"), s.name)
        )
    return element("ul", *keys, class_="legend")
