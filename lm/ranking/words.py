"""A ranking in the terminal: a table, and what it says in words. lm/ranking/files.py writes the
same into files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lm.display.html import visible
from lm.display.tables import Table, terminal_table
from lm.evaluation.intervals import RESAMPLES, Interval
from lm.ranking.entrants import Entrant
from lm.ranking.measures import CENTRED, FIGURES, MEASURES, Kind
from lm.ranking.ranking import CONFIDENCE, Pair, Ranking
from lm.runs.results import finite
from lm.system.errors import printable

WIDTH = 100  # cells of the terminal's table
LONGEST_NAME = 40
MOST_PAIRS = 6  # sentences that the terminal has
HOW_SURE = (
    f"[low, high]: {100 * CONFIDENCE:.0f} % intervals, from {RESAMPLES:,} draws of the cases; all"
    f" that is said of the differences in one table holds together with {100 * CONFIDENCE:.0f} %"
    " confidence"
)
SHOWN = {"share": "{:z.1f}", "number": "{:z.3f}", "count": "{:,.0f}"}  # z: no minus before a zero
# What comes first is what tells most; the terminal has as many as fit.
FIRST = [
    *(
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
    ),
    *(
        "centred_accuracy",
        "val_bits_per_byte",
        "distinct_2",
        "distinct_1",
        "generated_per_second",
        "scored_per_second",
        "nats_per_token",
    ),
]


class Column(NamedTuple):
    """A number of each entrant; `limits` is of those that have intervals."""

    key: str
    label: str
    kind: Kind
    values: list[float | None]
    limits: list[Interval] | None = None

    def cell(self, i: int, limited: bool) -> str:
        """An entrant's number as a person reads it."""
        value, limits = shown(self.kind, self.values[i]), self.limits and self.limits[i]
        if not limited or not limits:
            return value
        return (
            f"{value} [{', '.join(shown(self.kind, limit) for limit in limits[1:])}]"
            if math.isfinite(limits.low)
            else f"{value} [?]"
        )


def shown(kind: Kind, value: float | None) -> str:
    """A share in percent; an unknown number as a dash."""
    return "–" if value is None else SHOWN[kind].format(100 * value if kind == "share" else value)


def columns(ranking: Ranking) -> list[Column]:
    """All that is known of the entrants: what they are ordered by, then what tells most."""
    found = [
        Column(
            each.key,
            each.label,
            each.kind,
            [score.value for score in ranking.scores[each.key]],
            ranking.scores[each.key],
        )
        for each in (CENTRED, *MEASURES)
        if each.key in ranking.scores
    ]
    for figure in FIGURES:
        values = [figure.read(result) for result in ranking.results]
        if any(value is not None for value in values):
            found.append(Column(figure.key, figure.label, figure.kind, values))
    validated = [entrant.recorded for entrant in ranking.entrants]
    losses = [finite(v.loss) if v else None for v in validated]
    found.append(Column("val_loss", "val loss", "number", losses))
    found.append(
        Column(
            "val_bits_per_byte",
            "val bits/byte",
            "number",
            [finite(v.bits_per_byte) if v else None for v in validated],
        )
    )
    return sorted(
        found, key=lambda column: -1 if column.key == ranking.by.key else FIRST.index(column.key)
    )


def table(ranking: Ranking, width: int | None = None, links: bool = True) -> Table:
    """The headings, then the entrants, the best first.

    Args:
        width: as many columns as fit so many cells, with limits for the first alone. None: all,
            with limits.
        links: whether names that mean a checkpoint stand behind its own.
    """
    places = ranking.order.places
    lines = [
        ["checkpoint", "rank"],
        *(
            [_named(ranking.entrants[place], width, links), _ranks(ranking, place)]
            for place in places
        ),
    ]
    first, *others = columns(ranking)
    of_parts = [
        Column(name, visible(name), ranking.by.kind, list(values))
        for name, (_, values) in ranking.tags.items()
    ]
    for column in (first, *([] if ranking.cases else of_parts), *others):
        limited = column.limits is not None and (width is None or column is first)
        heading = f"{column.label}{', %' * (column.kind == 'share')}{' [low, high]' * limited}"
        cells = [heading, *(column.cell(place, limited) for place in places)]
        wider = [[*line, cell] for line, cell in zip(lines, cells, strict=True)]
        if (
            width is None
            or column is first
            or max(map(len, terminal_table(wider).splitlines())) <= width
        ):
            lines = wider
    return lines


def heading(ranking: Ranking) -> str:
    """What was asked, how much of it, and what guessing would make."""
    if ranking.cases is None:
        return (
            f"all together: the mean of {', '.join(map(visible, ranking.parts))}"
            f" ({_cases(ranking)})"
            + ("; 0 is chance, 100 is all right" if ranking.by is CENTRED else "")
        )
    chance = "" if ranking.chance is None else f", chance {100 * ranking.chance:.1f} % accuracy"
    return f"{visible(ranking.cases.name)}: {len(ranking.cases.cases):,} cases{chance}"


def summary(ranking: Ranking) -> list[str]:
    """What a person wants to know first: what is certain of the first place. `sentence` says it of
    any pair.
    """
    pairs, count = ranking.order.pairs, len(ranking.entrants)
    if count > 2 and not any(pair.told_apart for pair in pairs):
        most = max(abs(limit) for pair in pairs for limit in pair.difference[1:])
        known = (
            f": differences up to {shown(ranking.by.kind, most)} {ranking.by.words} would not show"
            if math.isfinite(most)
            else ""
        )
        return [f"none of these {count} can be told apart on {_cases(ranking)}{known}"]
    lines = [sentence(ranking, pair) for pair in pairs if pair.first == ranking.order.places[0]][
        :MOST_PAIRS
    ]
    rest = len(pairs) - len(lines)
    return (
        [*lines, f"and {rest:,} more pair{'s' * (rest != 1)}: --json or --out has them"]
        if rest
        else lines
    )


def sentence(ranking: Ranking, pair: Pair) -> str:
    """ "A is better than B by ...", or that the cases do not tell."""
    first, second = (ranking.entrants[i].name for i in pair[:2])
    value, low, high = (shown(ranking.by.kind, number) for number in pair.difference)
    difference = f"{value} {ranking.by.words} [{low}, {high}]"
    if pair.told_apart:
        return f"{first} is better than {second} by {difference}"
    known = f"difference {difference}" if math.isfinite(pair.difference.low) else "too few"
    return f"{first} and {second} cannot be told apart on {_cases(ranking)} ({known})"


def notes(ranking: Ranking) -> Iterator[str]:
    """What has to be known to read the numbers of one set."""
    if ranking.cases is not None:
        for measure in MEASURES:
            asking = sum(measure.asks(case) for case in ranking.cases.cases)
            if left := asking - ranking.asked.get(measure.key, 0):
                yield (
                    f"{measure.label}: {left:,} of {asking:,} cases left out, for a context that is"
                    " too short for them"
                )
    cut = [
        (result.cut, entrant.name)
        for entrant, result in zip(ranking.entrants, ranking.results, strict=False)
        if result.cut
    ]
    for count in sorted({count for count, _ in cut}):
        who = ", ".join(name for each, name in cut if each == count)
        yield (
            f"{count:,} prompt{'s' * (count != 1)} lost the oldest tokens, longer than the context"
            f" of {who}"
        )


def general_notes(rankings: Sequence[Ranking]) -> Iterator[str]:
    """What has to be known to read the numbers of all sets."""
    yield HOW_SURE
    entrants = list(
        {entrant.name: entrant for ranking in rankings for entrant in ranking.entrants}.values()
    )
    if len({entrant.tokenizer_sha256 for entrant in entrants}) > 1:
        yield (
            "these checkpoints have different tokenizers: compare bits per byte and choices; tokens"
            " are no common unit"
        )
    for ranking in rankings:
        if ranking.cases is not None and (
            missing := [each.name for each in entrants if each not in ranking.entrants]
        ):
            yield (
                f"{visible(ranking.cases.name)} is a chat, not asked of {', '.join(missing)}: no"
                " template (--template NAME gives one)"
            )
    if rankings[0].cases is None and (
        missing := [each.name for each in entrants if each not in rankings[0].entrants]
    ):
        yield f"not in the mean, for want of an answer to all of its sets: {', '.join(missing)}"
    reasons: dict[str, list[str]] = {}
    for entrant in entrants:
        found = next(
            (result.memorised.missing for result in entrant.results if result and result.memorised),
            (),
        )
        for reason in found or filter(None, [entrant.not_searched]):
            reasons.setdefault(reason, []).append(entrant.name)
    for reason, names in reasons.items():
        yield (
            f"copies from the training text were not looked for everywhere ({', '.join(names)}):"
            f" {printable(reason)}"
        )


def _cases(ranking: Ranking) -> str:
    count = ranking.asked[ranking.by.key]
    return f"{count:,} case{'s' * (count != 1)}"


def _ranks(ranking: Ranking, place: int) -> str:
    best, worst = ranking.order.ranks[place]
    return str(best) if best == worst else f"{best}–{worst}"


def _named(entrant: Entrant, width: int | None, links: bool) -> str:
    name = (
        f"{entrant.name} ({', '.join(entrant.links)})" if links and entrant.links else entrant.name
    )
    return name if width is None or len(name) <= LONGEST_NAME else f"…{name[1 - LONGEST_NAME :]}"
