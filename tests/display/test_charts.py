"""Charts show the values they were given: python -m pytest tests/display/test_charts.py."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.display import charts
from lm.display.charts import Chart, Series, chart, described, thin
from lm.display.style import LIGHT

SUFFIXES = {"k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
HOSTILE = '</title><script>alert(1)</script>" onload="x \u202e\x1b'


def parsed(content: Chart) -> ElementTree.Element:
    return ElementTree.fromstring(chart(content))


def value_of(text: str) -> float:
    return float(text[:-1]) * SUFFIXES[text[-1]] if text[-1] in SUFFIXES else float(text)


def tick_labels(figure: ElementTree.Element, axis: str) -> list[ElementTree.Element]:
    """Return the labels of an axis: those that are centred for x, those left of the axis for y."""
    texts = list(figure.iter("text"))
    if axis == "x":
        return [text for text in texts if "text-anchor: middle" in text.get("style", "")]
    return [text for text in texts if text.get("x") == "45"]


def back(figure: ElementTree.Element, axis: str, log: bool) -> Callable[[float], float]:
    """Return a function from a place in the drawing to a value, which uses only the ticks."""
    labels = tick_labels(figure, axis)
    values = [value_of(label.text or "") for label in labels]
    if axis == "x":
        places = [float(label.get("x", "")) for label in labels]
    else:  # the grid's lines stand at the ticks, the labels a little below
        paths = [path for path in figure.iter("path") if "var(--line)" in path.get("style", "")]
        places = [float(path.get("d", "").split()[2]) for path in paths]
    slope, start = np.polyfit(places, np.log10(values) if log else values, 1)
    return lambda place: 10 ** (slope * place + start) if log else slope * place + start


def titled(figure: ElementTree.Element) -> list[tuple[str, ElementTree.Element]]:
    """Return all parts of the drawing that have a title, each with its title."""
    groups = [(group.findtext("title"), group) for group in figure.iter("g")]
    return [(title, group) for title, group in groups if title is not None]


def drawn(figure: ElementTree.Element, name: str) -> list[tuple[float, float]]:
    [group] = [group for title, group in titled(figure) if title == name]
    [path] = group.iter("path")
    numbers = [float(part) for part in path.get("d", "").split() if part not in ("M", "L")]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def dots(figure: ElementTree.Element) -> list[tuple[str, ElementTree.Element]]:
    """Return each dot with its title."""
    return [(title, dot) for title, group in titled(figure) for dot in group.iter("circle")]


@pytest.mark.usefixtures("takes_seconds")
@pytest.mark.parametrize(
    ("x_log", "y_log"), [(False, False), (True, False), (False, True), (True, True)]
)
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e6])
def test_points_stand_where_the_ticks_say(x_log, y_log, scale):
    points = [(10.0, 5.7 * scale), (20.0, 3.1 * scale), (45.0, 1.9 * scale), (400.0, 0.11 * scale)]
    figure = parsed(
        Chart(
            "t",
            "x",
            "y",
            [Series("a", points), Series("b", points[1:3], "dots", 1)],
            x_log=x_log,
            y_log=y_log,
        )
    )
    x, y = back(figure, "x", x_log), back(figure, "y", y_log)
    for name, expected in (("a", points), ("b", points[1:3])):
        found = [(x(a), y(b)) for a, b in drawn(figure, name)]
        assert np.allclose(found, expected, rtol=0.01, atol=0.01 * scale if not y_log else 0)
    places = [(x(float(dot.get("cx", ""))), y(float(dot.get("cy", "")))) for _, dot in dots(figure)]
    assert np.allclose(places, points[1:3], rtol=0.01, atol=0.01 * scale if not y_log else 0)


def test_times_are_in_units_that_can_be_read():
    for longest, unit, size in (
        (90.0, "s", 1),
        (1000.0, "minutes", 60),
        (20_000.0, "hours", 3600),
        (400_000.0, "days", 86400),
    ):
        figure = parsed(
            Chart("t", "time", "y", [Series("a", [(0.0, 1.0), (longest, 2.0)])], seconds=True)
        )
        ticks_of = [label for axis in "xy" for label in tick_labels(figure, axis)]
        assert [text.text for text in figure.iter("text") if text not in ticks_of] == [
            f"time ({unit})",
            "y",
        ]
        assert back(figure, "x", False)(drawn(figure, "a")[1][0]) * size == pytest.approx(
            longest, rel=0.01
        )


def test_the_best_point_is_filled_and_says_its_value():
    figure = parsed(
        Chart(
            "t",
            "tokens",
            "y",
            [
                Series(
                    "v", [(1e6, 2.0), (2e6, 1.2345678), (3e6, 1.5)], "dots", best=(2e6, 1.2345678)
                )
            ],
        )
    )
    assert [title for title, _ in dots(figure)] == [
        "v: 2 at 1M tokens",
        "v: 1.23457 at 2M tokens, the lowest",
        "v: 1.5 at 3M tokens",
    ]
    filled = ["fill: var(--c0)" in dot.get("style", "") for _, dot in dots(figure)]
    assert filled == [False, True, False]


@pytest.mark.usefixtures("takes_seconds")
def test_what_is_not_finite_is_not_drawn():
    points = [(0.0, 1.0), (1.0, math.nan), (2.0, math.inf), (3.0, 2.0)]
    assert len(drawn(parsed(Chart("t", "x", "y", [Series("a", points)])), "a")) == 2
    assert len(drawn(parsed(Chart("t", "x", "y", [Series("a", points)], x_log=True)), "a")) == 1
    assert "nothing recorded" in chart(Chart("t", "x", "y", [Series("a", points[1:3])]))


def test_a_peak_survives_thinning():
    points = [(float(i), 1.0) for i in range(100_000)]
    points[54_321] = (54_321.0, 9.0)
    points[77_777] = (77_777.0, -9.0)
    kept = thin(points)
    assert len(kept) <= charts.MOST_POINTS and kept == sorted(kept)
    assert {points[0], points[-1], points[54_321], points[77_777]} <= set(kept)
    assert thin(points[:800]) == points[:800]


def test_it_is_read_out_and_nothing_gets_out_of_it():
    content = Chart(
        HOSTILE, HOSTILE, HOSTILE, [Series(HOSTILE, [(0.0, 3.0), (5.0, 1.0), (9.0, 2.0)], "dots")]
    )
    figure = parsed(content)
    tags = {"figure", "figcaption", "svg", "g", "path", "circle", "text", "title", "ul", "li"}
    assert {tag.tag for tag in figure.iter()} <= tags
    assert {name for tag in figure.iter() for name in tag.attrib} <= {
        "class",
        "viewBox",
        "role",
        "aria-label",
        *("d", "style", "x", "y", "cx", "cy", "r"),
    }
    # There is no address of a namespace, no reference to a file, and no style for other elements.
    assert not re.search(r"http|url\(|@import|<style|<\?|<!", chart(content))
    assert figure.find("svg").attrib["role"] == "img"
    plain = described(
        Chart("Loss", "tokens", "nats", [Series("a", [(0.0, 3.0), (5000.0, 1.0), (9000.0, 2.0)])])
    )
    assert plain == "Loss: nats over tokens. a: from 3 at 0 to 2 at 9k, lowest 1, highest 3."


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
def test_ticks_are_few_in_order_and_inside(low, span):
    high = low + span
    if high - low < 1e-9 * max(abs(low), abs(high), 1e-300):
        return
    check_ticks(charts.ticks(low, high), low, high, most=8)


@given(st.floats(1e-12, 1e12), st.floats(1.0001, 1e15))
def test_logarithmic_ticks_are_few_in_order_and_inside(low, ratio):
    check_ticks(charts.ticks(low, low * ratio, log=True), low, low * ratio, most=12)


def check_ticks(ticks: list[float], low: float, high: float, most: int) -> None:
    assert 2 <= len(ticks) <= most
    assert ticks == sorted(set(ticks))
    slack = 1e-6 * (high - low)
    assert all(low - slack <= tick <= high + slack for tick in ticks)


def test_colours_are_the_pages():
    figure = chart(Chart("t", "x", "y", [Series("a", [(0.0, 1.0)], colour=9)]))
    assert "stroke: var(--c1)" in figure and not re.search("#[0-9a-f]{6}", figure)
    assert not set(re.findall(r"var\(--(\w+)\)", figure)) - set(LIGHT)


def test_the_same_chart_is_the_same_markup():
    content = Chart("t", "x", "y", [Series("a", [(0.0, 1.0), (1.0, 2.0)], "dots")])
    assert chart(content) == chart(content)
