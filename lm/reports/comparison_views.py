"""A comparison of two runs for the terminal, for programs and as one HTML file.

The terminal and the page show the same sections; the page adds charts and puts samples side by
side.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from lm.display import charts
from lm.display.charts import Chart, Series, chart
from lm.display.curves import BLOCKS, smooth
from lm.display.html import Html, document, element, lines_of, visible
from lm.display.tables import (
    EVERY,
    FIRST,
    MISSING,
    TERMINAL_WIDTH,
    cut,
    html_table,
    terminal_table,
    wrapped,
)
from lm.reports.comparison import Comparison, Difference, Reached, Sample, at
from lm.runs.record import RunRecord
from lm.system.json_values import count, finite
from lm.system.units import duration, short

MOST_PLACES = 12  # lines of the table of losses; JSON and the page's charts have all
MOST_SAMPLE = 500  # characters in a terminal
COURSE = 60  # blocks
OWN_TOKENS = "each in its own tokens, of its own text: these do not compare with each other"
# Its first 12 digits are enough for a reader.
SHA256 = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")

STYLE = """
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20em), 1fr));
  gap: .8em 2em; margin: .5em 0 1.8em }
.pair > div { border-left: 3px solid var(--c0); padding-left: .9em; min-width: 0 }
.pair > div + div { border-color: var(--c1) }
.verdict { font-size: 1.1em; border-left: 3px solid var(--mark); padding-left: .9em; margin: 1em 0 }
.a { color: var(--c0) }
.b { color: var(--c1) }
"""


class Section(NamedTuple):
    """A part of the report.

    Attributes:
        result: the sentences that the page emphasises.
        notes: all other sentences.
        table: the headings, then the lines; empty for no table.
        words: every column holds words; otherwise only the first does.
        drawn: the curves belong to this section.
    """

    title: str
    result: Sequence[str] = ()
    notes: Sequence[str] = ()
    table: Sequence[Sequence[str]] = ()
    words: bool = False
    drawn: bool = False


def sections(c: Comparison) -> list[Section]:
    """Return all sections that are not empty, without charts and samples."""
    facts_of_b = _facts(c.b)
    facts = {name: (value, facts_of_b[name]) for name, value in _facts(c.a).items()}
    by_source = [
        [name, *(MISSING if loss is None else f"{loss:.4f}" for loss in losses)]
        for name, *losses in c.sources
    ]
    own = [OWN_TOKENS] if by_source and c.yardstick.column != "loss" else []
    all_sections = [
        Section(
            "Verdict",
            [v.words(c.names) for v in c.verdicts],
            [note for v in c.verdicts for note in v.notes] + c.notes,
        ),
        Section(
            "The runs",
            table=[
                ["", *c.names],
                *([name, *both] for name, both in facts.items() if set(both) != {MISSING}),
            ],
        ),
        _losses(c),
        Section("First to reach the other's last loss", notes=_marks(c.reached), table=_reached(c)),
        Section(
            "Last validation of each source, nats per token",
            notes=own,
            table=[["source", *c.names], *by_source] if by_source else [],
        ),
        _differing(
            "Configuration",
            c,
            [difference for difference in c.config if difference.matters],
            "no key that changes a result differs",
        ),
        _differing(
            "Configuration: keys that change no result",
            c,
            [difference for difference in c.config if not difference.matters],
        ),
        _differing(
            "Text, tokenizer, parent, code, packages, machine",
            c,
            c.lineage,
            "all the same, by the checkpoints' records",
        ),
    ]
    return [section for section in all_sections if section.result or section.notes or section.table]


def terminal(c: Comparison) -> Iterator[str]:
    """Yield lines without control characters. Only long names make one longer than 100 cells."""
    yield visible(f"{c.names[0]} against {c.names[1]}")
    for section in sections(c):
        yield f"\n{section.title}"
        for sentence in (*section.result, *section.notes):
            yield from wrapped(sentence, "  ")
        yield from _course(c) if section.drawn else ()
        if section.table:
            columns = EVERY if section.words else FIRST
            shown = terminal_table(section.table, columns, width=TERMINAL_WIDTH, indent="  ")
            yield from shown.split("\n")
    for pair in c.samples:
        yield f"\nSamples at {short(pair[0].tokens)} and {short(pair[1].tokens)} tokens"
        for name, sample in zip(c.names, pair, strict=True):
            yield visible(f"  {name}, step {sample.step:,}, {short(sample.tokens)} tokens")
            yield from wrapped(
                (
                    sample.text
                    if len(sample.text) <= MOST_SAMPLE
                    else f"{sample.text[:MOST_SAMPLE]} ..."
                ),
                "    ",
            )


def page(c: Comparison) -> str:
    """Return the HTML file."""
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
        body += [element("p", sentence, class_="verdict") for sentence in section.result]
        body += [element("p", sentence, class_="quiet") for sentence in section.notes]
        if section.drawn:
            body.append(element("div", *map(chart, charts_of(c)), class_="charts"))
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
    return document(f"{c.names[0]} against {c.names[1]}", *body, style=charts.STYLE + STYLE)


def charts_of(c: Comparison) -> list[Chart]:
    """Return validation by tokens and by time, and training loss; each run has its colour."""
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


def as_json(c: Comparison) -> dict[str, Any]:
    """Return raw numbers, with None for NaN and infinity; values of configurations are JSON."""
    runs = [
        {
            "name": name,
            "folder": str(run.folder),
            "step": run.step,
            "tokens": run.tokens,
            "seconds": run.seconds,
            "last_loss": finite(run.validations[-1].loss) if run.validations else None,
            "lowest_loss": run.best.loss if run.best else None,
            "lowest_at_step": run.best.step if run.best else None,
        }
        for run, name in zip(c.runs, c.names, strict=True)
    ]
    verdicts = [
        {key: finite(value) for key, value in dataclasses.asdict(verdict).items()}
        | {"beyond_noise": verdict.beyond_noise, "words": verdict.words(c.names)}
        for verdict in c.verdicts
    ]
    return {
        "runs": runs,
        "verdicts": verdicts,
        "notes": c.notes,
        "compared_by": c.yardstick._asdict(),
        "curve": [place._asdict() for place in c.places],
        "reached": [
            {
                "last_of": of,
                "value": goal,
                "a": both[0] and both[0]._asdict(),
                "b": both[1] and both[1]._asdict(),
            }
            for of, goal, both in zip(("a", "b"), c.goals or (), c.reached, strict=False)
        ],
        "sources": [{"source": name, "a": a, "b": b} for name, a, b in c.sources],
        "config": [difference._asdict() for difference in c.config],
        "lineage": [difference._asdict() for difference in c.lineage],
        "samples": [{"a": a._asdict(), "b": b._asdict()} for a, b in c.samples],
    }


def _written(name: str, sample: Sample) -> Html:
    heading = element(
        "p", f"{name}, step {sample.step:,}, {short(sample.tokens)} tokens", class_="quiet small"
    )
    return element("div", heading, element("p", lines_of(sample.text), class_="text"))


def _facts(run: RunRecord) -> dict[str, str]:
    parameters = count(run.meta, "n_parameters")
    adapters = count(run.meta, "adapters", "n_parameters")
    last = run.validations[-1] if run.validations else None
    best = run.best
    speed = run.tokens / run.seconds if run.tokens and run.seconds else None
    state = "going" if run.going else "finished" if run.finished else "not finished"
    return {
        "parameters": MISSING if parameters is None else f"{parameters:,}",
        "of adapters": MISSING if adapters is None else f"{adapters:,}",
        "updates": f"{run.step:,}",
        "tokens trained on": MISSING if run.tokens is None else f"{run.tokens:,}",
        "training time": MISSING if run.seconds is None else duration(run.seconds),
        "tokens a second": MISSING if speed is None else f"{speed:,.0f}",
        "last validation loss": f"{last.loss:.4f}" if last else MISSING,
        "lowest validation loss": f"{best.loss:.4f} (step {best.step:,})" if best else MISSING,
        "last bits per byte": (
            f"{last.bits_per_byte:.4f}" if last and math.isfinite(last.bits_per_byte) else MISSING
        ),
        "state": state,
    }


def _losses(c: Comparison) -> Section:
    notes = [c.yardstick.note] if c.yardstick.note else []
    if c.yardstick.column is None:
        return Section("Validation", notes=notes)
    title = f"Validation at the same number of tokens, {c.unit}"
    if not c.places:
        return Section(
            title,
            notes=[*notes, "there is no number of tokens at which both have a value"],
            drawn=True,
        )
    if any(place.between for place in c.places):
        notes.append("~ is interpolated between the two neighbouring validations")
    n = min(MOST_PLACES, len(c.places))
    chosen = [c.places[i * (len(c.places) - 1) // max(1, n - 1)] for i in range(n)]
    lines = [
        [
            f"{place.tokens:,}",
            f"{'~' * (place.between == 'a')}{place.a:.4f}",
            f"{'~' * (place.between == 'b')}{place.b:.4f}",
            f"{place.b - place.a:+.4f}",
        ]
        for place in chosen
    ]
    return Section(
        title, notes=notes, table=[["tokens", *c.names, "difference"], *lines], drawn=True
    )


def _reached(c: Comparison) -> list[list[str]]:
    if c.goals is None:
        return []
    lines = [
        [f"{c.names[i]} ended at {goal:.4f}", *map(_when, both)]
        for i, (goal, both) in enumerate(zip(c.goals, c.reached, strict=True))
    ]
    return [["", *(f"{name} reached it after" for name in c.names)], *lines]


def _when(reached: Reached | None) -> str:
    if reached is None:
        return "never"
    about = "" if reached.exact else "~"
    return f"{about}{reached.tokens:,.0f} tokens" + (
        f", {about}{duration(reached.seconds)}" if reached.seconds is not None else ""
    )


def _marks(reached: Sequence[Sequence[Reached | None]]) -> list[str]:
    between = any(moment is not None and not moment.exact for both in reached for moment in both)
    return (
        [
            "~ is interpolated between two validations; time is training time, without validations"
            " and saving"
        ]
        if between
        else []
    )


def _differing(
    title: str, c: Comparison, differences: Sequence[Difference], none: str = ""
) -> Section:
    lines = [
        [
            difference.key,
            *(
                "nothing" if value is None else SHA256.sub(r"\1", value)
                for value in (difference.a, difference.b)
            ),
        ]
        for difference in differences
    ]
    return Section(
        title,
        notes=[none] if none and not lines else [],
        table=[["key", *c.names], *lines] if lines else [],
        words=True,
    )


def _course(c: Comparison) -> Iterator[str]:
    """Yield both runs' values as blocks, on one scale, over the tokens of the longer run."""
    if not all(c.values) or not (end := max(values[-1].tokens for values in c.values)):
        return
    low, high = (
        pick(point.value for values in c.values for point in values) for pick in (min, max)
    )
    wide = min(24, max(len(visible(name)) for name in c.names))
    for name, points in zip(c.names, c.values, strict=True):
        values = [at(points, end * i / (COURSE - 1)) for i in range(COURSE)]
        blocks = [
            "" if v is None else BLOCKS[round((v - low) / ((high - low) or 1) * (len(BLOCKS) - 1))]
            for v in values
        ]
        yield f"  {cut(visible(name), wide):<{wide}}  {''.join(blocks)}"
    yield f"  {'':{wide}}  one scale: {low:.3f} to {high:.3f}, over {short(end)} tokens"
