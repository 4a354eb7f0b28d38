"""A comparison of two runs as one HTML file: the sections of lm/reports/comparison_views.py, with
drawings, and samples side by side.
"""

from __future__ import annotations

from lm.display.charts import STYLE, Chart, Series, chart
from lm.display.curves import smooth
from lm.display.html import Html, document, element, lines_of
from lm.display.tables import EVERY, FIRST, html_table
from lm.reports.comparison import Comparison, Sample
from lm.reports.comparison_views import sections
from lm.system.units import short

OWN_STYLE = """
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20em), 1fr)); gap: .8em 2em; margin: .5em 0 1.8em }
.pair > div { border-left: 3px solid var(--c0); padding-left: .9em; min-width: 0 } .pair > div + div { border-color: var(--c1) }
.verdict { font-size: 1.1em; border-left: 3px solid var(--mark); padding-left: .9em; margin: 1em 0 }
.a { color: var(--c0) } .b { color: var(--c1) }
"""


def page(c: Comparison) -> str:
    """The whole file."""
    body: list[str] = [
        element(
            "h1",
            element("span", c.names[0], class_="a"),
            " against ",
            element("span", c.names[1], class_="b"),
        )
    ]
    for section in sections(c):
        body.append(element("h2", section.title))
        body += [element("p", said, class_="verdict") for said in section.loud]
        body += [element("p", said, class_="quiet") for said in section.said]
        if section.drawn:
            body.append(element("div", *map(chart, charts(c)), class_="charts"))
        if section.table:
            body.append(html_table(section.table, words=EVERY if section.words else FIRST))
    if c.samples:
        body.append(element("h2", "Samples"))
    for pair in c.samples:
        body.append(
            element(
                "div",
                *(_written(name, sample) for name, sample in zip(c.names, pair, strict=True)),
                class_="pair",
            )
        )
    return document(f"{c.names[0]} against {c.names[1]}", *body, style=STYLE + OWN_STYLE)


def charts(c: Comparison) -> list[Chart]:
    """Validation by tokens and by training time, and the training loss; each run in its colour."""
    by_tokens, by_time, training = list[Series](), list[Series](), list[Series]()
    for colour, (name, run, values) in enumerate(zip(c.names, c.runs, c.values, strict=True)):
        by_tokens.append(
            Series(name, [(tokens, value) for tokens, _, value in values], "dots", colour)
        )
        by_time.append(
            Series(
                name,
                [(seconds, value) for _, seconds, value in values if seconds is not None],
                "dots",
                colour,
            )
        )
        points = run.points("train", "loss")
        smoothed = smooth([loss for _, loss in points])
        training.append(
            Series(
                name,
                [(tokens, loss) for (tokens, _), loss in zip(points, smoothed, strict=True)],
                "line",
                colour,
            )
        )
    return [
        Chart("Validation, by tokens trained on", "tokens", c.unit, by_tokens),
        Chart("Validation, by training time", "time", c.unit, by_time, seconds=True),
        Chart(
            "Training loss, smoothed",
            "tokens",
            c.unit if c.yardstick.column == "loss" else "nats per own token",
            training,
        ),
    ]


def _written(name: str, sample: Sample) -> Html:
    heading = element(
        "p", f"{name}, step {sample.step:,}, {short(sample.tokens)} tokens", class_="quiet small"
    )
    return element("div", heading, element("p", lines_of(sample.text), class_="text"))
