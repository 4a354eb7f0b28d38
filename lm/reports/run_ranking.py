"""The part of a report that shows ranking.json, which `evaluate_checkpoints.py --out` writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lm.display.html import Html, element, folded, joined
from lm.display.tables import MISSING, html_table
from lm.runs.record import RunRecord
from lm.system.json_values import count, lookup, number, text

ABOUT = (
    "checkpoint",
    "path",
    "links",
    "step",
    "parameters",
    "tokenizer",
    "rank",
    "rank_best",
    "rank_worst",
    "by",
)  # all other keys are measures
MOST_PAIRS = 6


def ranking(run: RunRecord) -> Html | None:
    """Return each ranking with its table, pairs and notes; None if the run has no ranking."""
    if run.ranking is None:
        return None
    rankings = [item for item in _list(lookup(run.ranking, "rankings")) if _rows(item)]
    if not rankings:
        return element("p", "ranking.json holds nothing that can be shown.", class_="quiet")
    parts = [part for item in rankings for part in _one(item)]
    parts += [
        element("p", f"not ranked: {text(failure, 'name')}: {text(failure, 'reason')}")
        for failure in _list(lookup(run.ranking, "failed"))
    ]
    return joined([*parts, *_sentences(lookup(run.ranking, "notes"))])


def _one(item: Mapping[str, Any]) -> Iterator[Html]:
    rows = _rows(item)
    measured = [key for key in rows[0] if key not in ABOUT and not key.endswith(("_low", "_high"))]
    measured = [key for key in measured if any(number(row, key) is not None for row in rows)]
    yield element("h3", " + ".join(str(name) for name in _all(lookup(item, "sets"))) or "cases")
    if (about := text(item, "about")) is not None:
        yield element("p", about, class_="quiet small")
    lines = [["checkpoint", "rank", "step", *(key.replace("_", " ") for key in measured)]]
    lines += [
        [
            text(row, "checkpoint") or MISSING,
            _rank(row),
            _shown(row, "step"),
            *(_shown(row, key) for key in measured),
        ]
        for row in rows
    ]
    cases, by = count(item, "cases"), text(item, "by")
    counted = f"{cases:,} cases; " if cases is not None else ""
    order = f"ordered by {by.replace('_', ' ')}; " if by else ""
    yield html_table(
        lines,
        f"{counted}{order}uncertain ranks are ranges, intervals in brackets, shares of one",
    )
    sentences = [
        words for pair in _list(lookup(item, "pairs")) if (words := text(pair, "words")) is not None
    ]
    yield from _sentences(sentences[:MOST_PAIRS])
    if sentences[MOST_PAIRS:]:
        yield folded(
            f"The other {len(sentences) - MOST_PAIRS} pairs", *_sentences(sentences[MOST_PAIRS:])
        )
    yield from _sentences(lookup(item, "notes"))


def _rank(row: Mapping[str, Any]) -> str:
    best, worst = count(row, "rank_best"), count(row, "rank_worst")
    return (
        _shown(row, "rank")
        if best is None or worst is None
        else f"{best}"
        if best == worst
        else f"{best}–{worst}"
    )


def _shown(row: Mapping[str, Any], key: str) -> str:
    value, low, high = (number(row, name) for name in (key, f"{key}_low", f"{key}_high"))
    if value is None:
        return MISSING
    shown = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    return shown if low is None or high is None else f"{shown} [{low:.4g}, {high:.4g}]"


def _sentences(lines: object) -> Iterator[Html]:
    if shown := [element("li", line) for line in _all(lines) if isinstance(line, str)]:
        yield element("ul", *shown, class_="small")


def _rows(item: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return _list(lookup(item, "checkpoints"))


def _list(value: object) -> list[Mapping[str, Any]]:
    return [item for item in _all(value) if isinstance(item, Mapping)]


def _all(value: object) -> Sequence[Any]:
    return value if isinstance(value, list) else []
