"""The part of a report that shows a ranking, if the run's folder has one: ranking.json, as
`evaluate_checkpoints.py --out` writes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lm.display.html import Html, element, folded, joined
from lm.display.tables import html_table
from lm.runs.record import RunRecord
from lm.system.json_values import found, number, text, whole

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
)  # the others are measured
MOST_PAIRS = 6


def ranking(run: RunRecord) -> Html | None:
    """Each ranking: the table, what can be told apart, the notes; None where there is none."""
    if run.ranking is None:
        return None
    rankings = [each for each in _list(found(run.ranking, "rankings")) if _rows(each)]
    if not rankings:
        return element("p", "ranking.json has nothing that can be shown.", class_="quiet")
    parts = [part for each in rankings for part in _one(each)]
    parts += [
        element("p", f"not ranked: {text(each, 'name')}: {text(each, 'reason')}")
        for each in _list(found(run.ranking, "failed"))
    ]
    return joined([*parts, *_said(found(run.ranking, "notes"))])


def _one(each: Mapping[str, Any]) -> Iterator[Html]:
    rows = _rows(each)
    measured = [key for key in rows[0] if key not in ABOUT and not key.endswith(("_low", "_high"))]
    measured = [key for key in measured if any(number(row, key) is not None for row in rows)]
    yield element("h3", " + ".join(str(name) for name in _all(found(each, "sets"))) or "cases")
    if (about := text(each, "about")) is not None:
        yield element("p", about, class_="quiet small")
    lines = [["checkpoint", "rank", "step", *(key.replace("_", " ") for key in measured)]]
    lines += [
        [
            text(row, "checkpoint") or "–",
            _rank(row),
            _shown(row, "step"),
            *(_shown(row, key) for key in measured),
        ]
        for row in rows
    ]
    cases, by = whole(each, "cases"), text(each, "by")
    of = f"{cases:,} cases; " if cases is not None else ""
    order = f"ordered by {by.replace('_', ' ')}; " if by else ""
    yield html_table(
        lines, f"{of}{order}ranks as far as they are certain, intervals in brackets, shares of one"
    )
    words = [
        said for pair in _list(found(each, "pairs")) if (said := text(pair, "words")) is not None
    ]
    yield from _said(words[:MOST_PAIRS])
    if words[MOST_PAIRS:]:
        yield folded(f"The other {len(words) - MOST_PAIRS} pairs", *_said(words[MOST_PAIRS:]))
    yield from _said(found(each, "notes"))


def _rank(row: Mapping[str, Any]) -> str:
    best, worst = whole(row, "rank_best"), whole(row, "rank_worst")
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
        return "–"
    shown = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    return shown if low is None or high is None else f"{shown} [{low:.4g}, {high:.4g}]"


def _said(lines: object) -> Iterator[Html]:
    if shown := [element("li", line) for line in _all(lines) if isinstance(line, str)]:
        yield element("ul", *shown, class_="small")


def _rows(each: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return _list(found(each, "checkpoints"))


def _list(value: object) -> list[Mapping[str, Any]]:
    return [item for item in _all(value) if isinstance(item, Mapping)]


def _all(value: object) -> Sequence[Any]:
    return value if isinstance(value, list) else []
