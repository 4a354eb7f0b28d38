"""A comparison of two runs in sections, for the terminal and for programs;
lm/reports/comparison_page.py makes a page of the same sections.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from lm.display.curves import BLOCKS
from lm.display.html import visible
from lm.display.tables import EVERY, FIRST, TERMINAL_WIDTH, cut, terminal_table, wrapped
from lm.reports.alignment import Reached, at
from lm.reports.comparison import Comparison, Difference
from lm.runs.record import RunRecord
from lm.system.json_values import whole
from lm.system.units import duration, short

MOST_PLACES = 12  # lines of the table of losses; JSON and the page's drawing have all of them
MOST_SAMPLE = 500  # characters in a terminal
COURSE = 60  # blocks
NOTHING = "-"
OWN_TOKENS = "each in its own tokens, of its own text: these are not to be held against each other"
# of which a dozen digits tell as much to people
SHA256 = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")


class Section(NamedTuple):
    """A part of the report.

    Attributes:
        loud: what most readers came for.
        said: the rest in words.
        table: headings first; empty: none.
        words: its cells are words; else numbers, behind a first column of words.
        drawn: the curves belong here.
    """

    title: str
    loud: Sequence[str] = ()
    said: Sequence[str] = ()
    table: Sequence[Sequence[str]] = ()
    words: bool = False
    drawn: bool = False


def sections(c: Comparison) -> list[Section]:
    """All but drawings and samples; those that have nothing to say are left out."""
    facts = {name: (value, _facts(c.b)[name]) for name, value in _facts(c.a).items()}
    by_source = [
        [name, *(NOTHING if loss is None else f"{loss:.4f}" for loss in losses)]
        for name, *losses in c.sources
    ]
    own = [OWN_TOKENS] if by_source and c.yardstick.column != "loss" else []
    found = [
        Section(
            "Verdict",
            [v.words(c.names) for v in c.verdicts],
            [note for v in c.verdicts for note in v.notes] + c.notes,
        ),
        Section(
            "The runs",
            table=[
                ["", *c.names],
                *([name, *both] for name, both in facts.items() if set(both) != {NOTHING}),
            ],
        ),
        _losses(c),
        Section("Which was where first", said=_marks(c.reached), table=_reached(c)),
        Section(
            "Last validation of each source, nats per token",
            said=own,
            table=[["source", *c.names], *by_source] if by_source else [],
        ),
        _differing(
            "Configuration",
            c,
            [each for each in c.config if each.matters],
            "no key differs that a run computes from",
        ),
        _differing(
            "Configuration: keys that change no result",
            c,
            [each for each in c.config if not each.matters],
        ),
        _differing(
            "Text, tokenizer, parent, code, packages, machine",
            c,
            c.lineage,
            "all the same, as far as checkpoints tell",
        ),
    ]
    return [section for section in found if section.loud or section.said or section.table]


def terminal(c: Comparison) -> Iterator[str]:
    """Lines of at most 100 cells, of which none can command the terminal."""
    yield visible(f"{c.names[0]} against {c.names[1]}")
    for section in sections(c):
        yield f"\n{section.title}"
        for said in (*section.loud, *section.said):
            yield from wrapped(said, "  ")
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


def as_json(c: Comparison) -> dict[str, Any]:
    """Raw numbers; None where there is none, as JSON has no NaN and no infinity. Values of
    configurations are JSON themselves.
    """
    runs = [
        {
            "name": name,
            "folder": str(run.folder),
            "step": run.step,
            "tokens": run.tokens,
            "seconds": run.seconds,
        }
        | {"last_loss": _finite(run.validations[-1].loss) if run.validations else None}
        | {
            "lowest_loss": run.best.loss if run.best else None,
            "lowest_at_step": run.best.step if run.best else None,
        }
        for run, name in zip(c.runs, c.names, strict=True)
    ]
    verdicts = [
        {key: _finite(value) for key, value in dataclasses.asdict(verdict).items()}
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
        "config": [each._asdict() for each in c.config],
        "lineage": [each._asdict() for each in c.lineage],
        "samples": [{"a": a._asdict(), "b": b._asdict()} for a, b in c.samples],
    }


def _facts(run: RunRecord) -> dict[str, str]:
    parameters, adapters = (
        whole(run.meta, "n_parameters"),
        whole(run.meta, "adapters", "n_parameters"),
    )
    last, best = (run.validations[-1] if run.validations else None), run.best
    speed = run.tokens / run.seconds if run.tokens and run.seconds else None
    state = "going" if run.going else "finished" if run.finished else "not finished"
    return {
        "parameters": NOTHING if parameters is None else f"{parameters:,}",
        "of adapters": NOTHING if adapters is None else f"{adapters:,}",
        "updates": f"{run.step:,}",
        "tokens trained on": NOTHING if run.tokens is None else f"{run.tokens:,}",
        "training time": NOTHING if run.seconds is None else duration(run.seconds),
        "tokens a second": NOTHING if speed is None else f"{speed:,.0f}",
        "last validation loss": f"{last.loss:.4f}" if last else NOTHING,
        "lowest validation loss": f"{best.loss:.4f} (step {best.step:,})" if best else NOTHING,
        "last bits per byte": (
            f"{last.bits_per_byte:.4f}" if last and math.isfinite(last.bits_per_byte) else NOTHING
        ),
        "state": state,
    }


def _losses(c: Comparison) -> Section:
    said = [c.yardstick.says] if c.yardstick.says else []
    if c.yardstick.column is None:
        return Section("Validation", said=said)
    title = f"Validation at the same number of tokens, {c.unit}"
    if not c.places:
        return Section(
            title,
            said=[*said, "there is no number of tokens at which both have a value"],
            drawn=True,
        )
    if any(place.between for place in c.places):
        said.append("~ on the straight line between the two validations beside it")
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
    return Section(title, said=said, table=[["tokens", *c.names, "difference"], *lines], drawn=True)


def _reached(c: Comparison) -> list[list[str]]:
    if c.goals is None:
        return []
    lines = [
        [f"{c.names[i]} ended at {goal:.4f}", *map(_when, both)]
        for i, (goal, both) in enumerate(zip(c.goals, c.reached, strict=True))
    ]
    return [["", *(f"{name} was there after" for name in c.names)], *lines]


def _when(reached: Reached | None) -> str:
    if reached is None:
        return "never"
    about = "" if reached.exact else "~"
    return f"{about}{reached.tokens:,.0f} tokens" + (
        f", {about}{duration(reached.seconds)}" if reached.seconds is not None else ""
    )


def _marks(reached: Sequence[Sequence[Reached | None]]) -> list[str]:
    between = any(each is not None and not each.exact for both in reached for each in both)
    return (
        [
            "~ on the straight line between two validations; time is training time, without"
            " validations and saving"
        ]
        if between
        else []
    )


def _differing(
    title: str, c: Comparison, differences: Sequence[Difference], none: str = ""
) -> Section:
    lines = [
        [
            each.key,
            *(
                "nothing" if value is None else SHA256.sub(r"\1", value)
                for value in (each.a, each.b)
            ),
        ]
        for each in differences
    ]
    return Section(
        title,
        said=[none] if none and not lines else [],
        table=[["key", *c.names], *lines] if lines else [],
        words=True,
    )


def _course(c: Comparison) -> Iterator[str]:
    """Both runs' values in blocks, on one scale, over the tokens of the longer one."""
    if not all(c.values) or not (end := max(values[-1].tokens for values in c.values)):
        return
    low, high = (pick(each.value for values in c.values for each in values) for pick in (min, max))
    wide = min(24, max(len(visible(name)) for name in c.names))
    for name, each in zip(c.names, c.values, strict=True):
        values = [at(each, end * i / (COURSE - 1)) for i in range(COURSE)]
        blocks = [
            "" if v is None else BLOCKS[round((v - low) / ((high - low) or 1) * (len(BLOCKS) - 1))]
            for v in values
        ]
        yield f"  {cut(visible(name), wide):<{wide}}  {''.join(blocks)}"
    yield f"  {'':{wide}}  one scale: {low:.3f} to {high:.3f}, over {short(end)} tokens"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
