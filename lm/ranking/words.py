"""The table, sentences and notes of a ranking. The terminal prints them, and lm/ranking/files.py
writes them into files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lm.display.html import visible
from lm.display.tables import MISSING, Table, terminal_table
from lm.evaluation.intervals import RESAMPLES, Interval
from lm.ranking.entrants import Entrant
from lm.ranking.measures import CENTRED, FIGURES, MEASURES, Kind
from lm.ranking.ranking import CONFIDENCE, Pair, Ranking
from lm.system.errors import printable
from lm.system.json_values import finite

LONGEST_NAME = 40  # characters of a checkpoint's name in the terminal
MOST_PAIRS = 6  # sentences about pairs in the terminal
INTERVALS = (
    f"[low, high]: {100 * CONFIDENCE:.0f} % intervals, from {RESAMPLES:,} draws of the cases; all"
    f" differences claimed under one table hold together with {100 * CONFIDENCE:.0f} % confidence"
)
FORMATS = {"share": "{:z.1f}", "number": "{:z.3f}", "count": "{:,.0f}"}  # z: no minus before a zero
# The columns of a table, the most informative first. The terminal has as many as fit.
COLUMN_ORDER = [
    "accuracy",
    "bits_per_byte",
    "val_loss",
    "exact",
    "contains",
    "regex",
    "ended_share",
    "repetition",
    "novel_share",
    "longest_copied",
    "centred_accuracy",
    "val_bits_per_byte",
    "distinct_2",
    "distinct_1",
    "generated_per_second",
    "scored_per_second",
    "nats_per_token",
]


class Column(NamedTuple):
    """A number for each entrant, and its interval (`limits`) if it has one."""

    key: str
    label: str
    kind: Kind
    values: list[float | None]
    limits: list[Interval] | None = None

    def cell(self, i: int, limited: bool) -> str:
        """Return the formatted number of an entrant, with its interval if `limited`."""
        value, limits = shown(self.kind, self.values[i]), self.limits and self.limits[i]
        if not limited or not limits:
            return value
        return (
            f"{value} [{', '.join(shown(self.kind, limit) for limit in limits[1:])}]"
            if math.isfinite(limits.low)
            else f"{value} [?]"
        )


def shown(kind: Kind, value: float | None) -> str:
    """Return a formatted number: shares in percent, unknown numbers as a dash."""
    if value is None:
        return MISSING
    return FORMATS[kind].format(100 * value if kind == "share" else value)


def columns(ranking: Ranking) -> list[Column]:
    """Return all numbers of the entrants. The first column orders them; the others follow
    COLUMN_ORDER.
    """
    columns = [
        Column(
            measure.key,
            measure.label,
            measure.kind,
            [score.value for score in ranking.scores[measure.key]],
            ranking.scores[measure.key],
        )
        for measure in (CENTRED, *MEASURES)
        if measure.key in ranking.scores
    ]
    for figure in FIGURES:
        values = [figure.read(result) for result in ranking.results]
        if any(value is not None for value in values):
            columns.append(Column(figure.key, figure.label, figure.kind, values))
    validated = [entrant.recorded for entrant in ranking.entrants]
    losses = [finite(v.loss) if v else None for v in validated]
    columns.append(Column("val_loss", "val loss", "number", losses))
    columns.append(
        Column(
            "val_bits_per_byte",
            "val bits/byte",
            "number",
            [finite(v.bits_per_byte) if v else None for v in validated],
        )
    )
    return sorted(
        columns,
        key=lambda column: -1 if column.key == ranking.by.key else COLUMN_ORDER.index(column.key),
    )


def table(ranking: Ranking, width: int | None = None, links: bool = True) -> Table:
    """Return the heading and a line for each entrant, the best first.

    Args:
        width: the width of the terminal. The table has as many columns as fit, and intervals in the
            first one only. None means all columns with all intervals.
        links: whether the names of links follow a checkpoint's own name.
    """
    best_first = ranking.order.best_first
    lines = [
        ["checkpoint", "rank"],
        *(
            [_named(ranking.entrants[number], width, links), _ranks(ranking, number)]
            for number in best_first
        ),
    ]
    first, *others = columns(ranking)
    parts = [
        Column(name, visible(name), ranking.by.kind, list(values))
        for name, (_, values) in ranking.tags.items()
    ]
    for column in (first, *([] if ranking.cases else parts), *others):
        limited = column.limits is not None and (width is None or column is first)
        heading = f"{column.label}{', %' * (column.kind == 'share')}{' [low, high]' * limited}"
        cells = [heading, *(column.cell(number, limited) for number in best_first)]
        wider = [[*line, cell] for line, cell in zip(lines, cells, strict=True)]
        if (
            width is None
            or column is first
            or max(map(len, terminal_table(wider).splitlines())) <= width
        ):
            lines = wider
    return lines


def heading(ranking: Ranking) -> str:
    """Return the title of a table: the set, its number of cases, and the accuracy of guessing."""
    if ranking.cases is None:
        return (
            f"all together: the mean of {', '.join(map(visible, ranking.parts))}"
            f" ({_cases(ranking)})"
            + ("; 0 is chance, 100 is all right" if ranking.by is CENTRED else "")
        )
    chance = "" if ranking.chance is None else f", chance {100 * ranking.chance:.1f} % accuracy"
    return f"{visible(ranking.cases.name)}: {len(ranking.cases.cases):,} cases{chance}"


def summary(ranking: Ranking) -> list[str]:
    """Return sentences about the first place: which entrants it is better than, and which it cannot
    be told apart from.
    """
    pairs, count = ranking.order.pairs, len(ranking.entrants)
    if count > 2 and not any(pair.told_apart for pair in pairs):
        largest = max(abs(limit) for pair in pairs for limit in pair.difference[1:])
        limit = (
            f": differences up to {shown(ranking.by.kind, largest)} {ranking.by.words} would not"
            " show"
            if math.isfinite(largest)
            else ""
        )
        return [f"none of these {count} can be told apart on {_cases(ranking)}{limit}"]
    first = ranking.order.best_first[0]
    lines = [sentence(ranking, pair) for pair in pairs if pair.first == first][:MOST_PAIRS]
    rest = len(pairs) - len(lines)
    return (
        [*lines, f"and {rest:,} more pair{'s' * (rest != 1)}: --json or --out has them"]
        if rest
        else lines
    )


def sentence(ranking: Ranking, pair: Pair) -> str:
    """Return the sentence about a pair: which one is better and by how much, or that the cases do
    not tell.
    """
    first, second = (ranking.entrants[i].name for i in pair[:2])
    value, low, high = (shown(ranking.by.kind, number) for number in pair.difference)
    difference = f"{value} {ranking.by.words} [{low}, {high}]"
    if pair.told_apart:
        return f"{first} is better than {second} by {difference}"
    reason = f"difference {difference}" if math.isfinite(pair.difference.low) else "too few"
    return f"{first} and {second} cannot be told apart on {_cases(ranking)} ({reason})"


def notes(ranking: Ranking) -> Iterator[str]:
    """Yield what a reader must know about the numbers of one set."""
    if ranking.cases is not None:
        for measure in MEASURES:
            n_cases = sum(measure.asks(case) for case in ranking.cases.cases)
            if skipped := n_cases - ranking.n_cases.get(measure.key, 0):
                yield (
                    f"{measure.label}: skips {skipped:,} of {n_cases:,} cases, which are too long"
                    " for a context"
                )
    cut = [
        (result.cut, entrant.name)
        for entrant, result in zip(ranking.entrants, ranking.results, strict=False)
        if result.cut
    ]
    for count in sorted({count for count, _ in cut}):
        names = ", ".join(name for n, name in cut if n == count)
        yield (
            f"{count:,} prompt{'s' * (count != 1)} exceeded the context and lost the oldest tokens:"
            f" {names}"
        )


def general_notes(rankings: Sequence[Ranking]) -> Iterator[str]:
    """Yield what a reader must know about the numbers of all sets."""
    yield INTERVALS
    entrants = list(
        {entrant.name: entrant for ranking in rankings for entrant in ranking.entrants}.values()
    )
    if len({entrant.tokenizer_sha256 for entrant in entrants}) > 1:
        yield (
            "these checkpoints have different tokenizers: compare bits per byte and choices; tokens"
            " are no common unit"
        )
    recorded = [(entrant.name, entrant.recorded) for entrant in entrants if entrant.recorded]
    older = [name for name, validation in recorded if validation.text_bytes is None]
    if 0 < len(older) < len(recorded):
        yield (
            f"val bits/byte of {', '.join(older)} are from an earlier version, which also counted"
            " the bytes of conversations that fit into no row"
        )
    for ranking in rankings:
        if ranking.cases is not None and (
            missing := [e.name for e in entrants if e not in ranking.entrants]
        ):
            yield (
                f"{visible(ranking.cases.name)} is a chat, not asked of {', '.join(missing)}: no"
                " template (--template NAME gives one)"
            )
    if rankings[0].cases is None and (
        missing := [e.name for e in entrants if e not in rankings[0].entrants]
    ):
        yield f"not in the mean, without results on all of its sets: {', '.join(missing)}"
    reasons: dict[str, list[str]] = {}
    for entrant in entrants:
        missing_texts = next(
            (result.memorised.missing for result in entrant.results if result and result.memorised),
            (),
        )
        for reason in missing_texts or filter(None, [entrant.not_searched]):
            reasons.setdefault(reason, []).append(entrant.name)
    for reason, names in reasons.items():
        yield (
            f"the search for copies did not cover all training text ({', '.join(names)}):"
            f" {printable(reason)}"
        )


def _cases(ranking: Ranking) -> str:
    count = ranking.n_cases[ranking.by.key]
    return f"{count:,} case{'s' * (count != 1)}"


def _ranks(ranking: Ranking, number: int) -> str:
    best, worst = ranking.order.ranks[number]
    return str(best) if best == worst else f"{best}–{worst}"


def _named(entrant: Entrant, width: int | None, links: bool) -> str:
    name = (
        f"{entrant.name} ({', '.join(entrant.links)})" if links and entrant.links else entrant.name
    )
    return name if width is None or len(name) <= LONGEST_NAME else f"…{name[1 - LONGEST_NAME :]}"
