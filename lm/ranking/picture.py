"""A ranking as a picture: a panel for each set of cases, a dot with its interval for each
checkpoint, the best on top.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lm.display.curves import COLOURS, STYLE
from lm.ranking.ranking import Ranking

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ABREAST = 2  # panels
TALLEST = 400  # inches of the whole; matplotlib refuses 2^16 pixels, which 437 are


def picture(rankings: Sequence[Ranking]) -> Figure:
    """Draw it; `lm.display.curves.save` writes it down. A checkpoint has one colour in all panels."""
    import matplotlib
    from matplotlib.figure import Figure

    names = list(
        dict.fromkeys(entrant.name for ranking in rankings for entrant in ranking.entrants)
    )
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    across = min(ABREAST, len(rankings))
    down = math.ceil(len(rankings) / across)
    height = min(1.1 + 0.32 * max(len(ranking.entrants) for ranking in rankings), TALLEST / down)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.2 * across, height * down))
        figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12)
        panels = figure.subplots(down, across, squeeze=False).ravel()
        for panel, ranking in zip(panels, rankings, strict=False):
            _draw(panel, ranking, colours)
        for panel in panels[len(rankings) :]:
            panel.set_axis_off()
    return figure


def _draw(panel: Any, ranking: Ranking, colours: dict[str, str]) -> None:
    scale = 100 if ranking.by.kind == "share" else 1
    for height, place in enumerate(ranking.order.places):
        name, (value, low, high) = (
            ranking.entrants[place].name,
            (scale * number for number in ranking.scores[ranking.by.key][place]),
        )
        if math.isfinite(low):
            panel.plot([low, high], [height, height], color=colours[name], linewidth=2, alpha=0.6)
        panel.plot(value, height, "o", color=colours[name], markersize=7)
    if ranking.by.key.endswith("accuracy") and ranking.chance is not None:
        panel.axvline(scale * ranking.chance, color="#777777", linestyle=(0, (4, 2)), linewidth=1.2)
        panel.annotate(
            " chance",
            (scale * ranking.chance, 1),
            xycoords=("data", "axes fraction"),
            va="top",
            fontsize=8,
            color="#555555",
        )
    panel.set_yticks(
        range(len(ranking.entrants)),
        [ranking.entrants[place].name for place in ranking.order.places],
    )
    panel.set_ylim(len(ranking.entrants) - 0.5, -0.5)
    panel.grid(axis="y", visible=False)
    title = panel.set_title(
        ranking.cases.name if ranking.cases else f"mean of {len(ranking.parts)} sets"
    )
    better = "" if ranking.by.higher else ", lower is better"
    panel.set_xlabel(f"{ranking.by.key.replace('_', ' ')}{', %' if scale == 100 else ''}{better}")
    for text in (title, *panel.get_yticklabels()):
        text.set_parse_math(False)  # a dollar sign in a name is a dollar sign
