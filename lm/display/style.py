"""The colours and the drawing style that pages, charts and pictures share."""

from __future__ import annotations

from typing import Any

# Text has a contrast of 4.5 to its ground, a chart's line one of 3 (WCAG 2.2, AA);
# tests/display/test_html.py computes both. c0 ... c7 are the colours of series.
LIGHT = {
    "paper": "#fcfcfa",
    "ink": "#22262b",
    "quiet": "#5c646d",
    "line": "#dedfdc",
    "soft": "#f1f1ed",
    "mark": "#8a5a00",
    "c0": "#2166ac",
    "c1": "#c2452d",
    "c2": "#2b7f4f",
    "c3": "#a05f00",
    "c4": "#7a4fa3",
    "c5": "#0e7784",
    "c6": "#8c4a3c",
    "c7": "#5a6068",
}
DARK = {
    "paper": "#16191d",
    "ink": "#e3e5e7",
    "quiet": "#9ea6af",
    "line": "#353a41",
    "soft": "#1f2328",
    "mark": "#e6b455",
    "c0": "#6cb0f0",
    "c1": "#f28b74",
    "c2": "#69c795",
    "c3": "#e5ae4d",
    "c4": "#bd98e6",
    "c5": "#4fc4d1",
    "c6": "#d39c8c",
    "c7": "#a6adb5",
}
COLOURS = [colour for name, colour in LIGHT.items() if name[1:].isdigit()]

# matplotlib's settings. Charts in a page replace each of these colours by the page's variable.
MATPLOTLIB: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.edgecolor": LIGHT["quiet"],
    "axes.labelcolor": LIGHT["quiet"],
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.xmargin": 0.02,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LIGHT["line"],
    "grid.linewidth": 0.8,
    "xtick.color": LIGHT["quiet"],
    "ytick.color": LIGHT["quiet"],
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "lines.solid_capstyle": "round",
}
DASHES = (0, (4, 2))  # of the line through measured points
