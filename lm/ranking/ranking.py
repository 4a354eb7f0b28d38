"""Which of several checkpoints is better on the same cases, by how much, and how certain that is.

A claim that one is better is made where the interval of their difference, over cases drawn again,
leaves out 0. All claims of one ranking hold together with 95 % confidence: of m checkpoints there
are m (m - 1) / 2 pairs, and if each had 5 % to err, of ten equally good checkpoints two or three
pairs would seem to differ (Bonferroni's correction). Ranks are counted from these claims, as in
Mogstad, Romano, Shaikh and Wilhelm (2024, "Inference for Ranks with Applications to Mobility across
Neighbourhoods and Academic Achievement across Countries"): at best one more than there are better
checkpoints, at worst one less for each that is worse.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lm.evaluation.intervals import (
    Interval,
    Resampled,
    difference_interval,
    interval,
    mean_of,
    resample,
    share_interval,
)
from lm.ranking.cases import CaseSet
from lm.ranking.entrants import Entrant
from lm.ranking.measures import ACCURACY, BITS_PER_BYTE, CENTRED, MEASURES, Measure
from lm.ranking.results import SetResult

CONFIDENCE = 0.95


class Pair(NamedTuple):
    """The numbers of two entrants, the one with the better value first, and by how much it is
    better.
    """

    first: int
    second: int
    difference: Interval

    @property
    def told_apart(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.difference.low > 0


class Order(NamedTuple):
    """Entrants, by their numbers, in the order of one measure.

    Attributes:
        places: the best value first.
        ranks: (best, worst) of each.
        pairs: all of them, those of the first place first.
    """

    places: tuple[int, ...]
    ranks: tuple[tuple[int, int], ...]
    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class Ranking:
    """Entrants on one set of cases, or on several together.

    Attributes:
        cases: the set; None: several sets.
        parts: the names of the set or sets.
        by: what it is ordered by.
        results: of each entrant on the set; of several sets, none.
        asked: by a measure's key, how many cases it is made of: those in which it could be measured
            for all entrants.
        chance: what guessing makes of the accuracy; None: there are no choices.
        scores: by a measure's key, one of each entrant.
        drawn: by a measure's key, what the scores' limits are made of.
        tags: by tag, how many cases have it, and the value of `by` of each entrant on those; of
            several sets, by their names.
    """

    cases: CaseSet | None
    parts: tuple[str, ...]
    by: Measure
    entrants: tuple[Entrant, ...]
    results: tuple[SetResult, ...]
    asked: dict[str, int]
    chance: float | None
    scores: dict[str, list[Interval]]
    drawn: dict[str, Resampled]
    order: Order
    tags: dict[str, tuple[int, list[float]]]


def rank_set(
    cases: CaseSet, number: int, entrants: Sequence[Entrant], by: str | None = None
) -> Ranking | None:
    """Rank the entrants that could be asked a set of cases; None where that is nobody, or nothing
    could be measured for all of them.

    Args:
        number: of the set, among each entrant's results.
        by: a measure's key. Where the set does not ask for it, or for None, it is the accuracy if
            every case has choices, else bits per byte.
    """
    asked = tuple(entrant for entrant in entrants if entrant.results[number] is not None)
    results = tuple(result for entrant in asked if (result := entrant.results[number]) is not None)
    counted = {measure.key: _counted(measure, results) for measure in MEASURES if results}
    weights = np.array([case.weight for case in cases.cases])
    rows = {key: ~np.isnan(table).any(axis=(1, 2)) for key, table in counted.items()}
    drawn = {}
    for key, table in counted.items():
        if rows[key].any():
            above, below = table[rows[key]].transpose(2, 0, 1)
            drawn[key] = resample(above, below, weights[rows[key]], int(cases.sha256[:8], 16))
    measure = _ordered_by(cases, drawn, by)
    if measure is None:
        return None
    scores = {each.key: _scores(each, drawn[each.key]) for each in MEASURES if each.key in drawn}
    chance = None
    if ACCURACY.key in drawn:
        guessed = np.array([1 / max(1, len(case.choices)) for case in cases.cases])
        chance = float(np.average(guessed[rows[ACCURACY.key]], weights=weights[rows[ACCURACY.key]]))
        whole = drawn[ACCURACY.key]
        drawn[CENTRED.key] = Resampled(
            (whole.values - chance) / (1 - chance),
            (whole.drawn - chance) / (1 - chance),
            whole.cases,
        )
        scores[CENTRED.key] = [
            Interval(*((limit - chance) / (1 - chance) for limit in score))
            for score in scores[ACCURACY.key]
        ]
    tags = {}
    for tag in sorted({tag for case in cases.cases for tag in case.tags}):
        tagged = rows[measure.key] & np.array([tag in case.tags for case in cases.cases])
        if tagged.any():
            above, below = np.tensordot(weights[tagged], counted[measure.key][tagged], axes=1).T
            tags[tag] = int(tagged.sum()), (above / below).tolist()
    numbers = {key: int(rows[key].sum()) for key in counted if key in drawn}
    order = order_of(measure, drawn[measure.key])
    return Ranking(
        cases, (cases.name,), measure, asked, results, numbers, chance, scores, drawn, order, tags
    )


def rank_together(rankings: Sequence[Ranking], by: str | None = None) -> Ranking | None:
    """The mean over sets, each counting alike: of the centred accuracies of those in which every
    case has choices; if there is none, of the bits per byte.

    Args:
        by: the mean is of this measure, and over the sets that ask for it; the accuracy is centred,
            since sets differ in what guessing makes.

    Returns:
        Those entrants who were asked all of these sets; None where there is nobody, or a single set
        of cases.
    """
    ordered_by = {ranking.by.key for ranking in rankings}
    key = by or (ACCURACY.key if ACCURACY.key in ordered_by else BITS_PER_BYTE.key)
    parts = [ranking for ranking in rankings if ranking.by.key == key]
    if not parts or len(rankings) < 2:
        return None
    measure = CENTRED if key == ACCURACY.key else parts[0].by
    asked = tuple(
        entrant for entrant in parts[0].entrants if all(entrant in part.entrants for part in parts)
    )
    if not asked:
        return None
    shares, tags = [], {}
    for part in parts:
        columns = [part.entrants.index(entrant) for entrant in asked]
        whole = part.drawn[measure.key]
        shares.append(Resampled(whole.values[columns], whole.drawn[:, columns], whole.cases))
        tags[part.parts[0]] = (
            part.asked[ACCURACY.key if measure is CENTRED else measure.key],
            shares[-1].values.tolist(),
        )
    drawn = mean_of(shares)
    counts = sum(count for count, _ in tags.values())
    chance = 0.0 if measure is CENTRED else None
    scores = {measure.key: _scores(measure, drawn)}
    asked_of = {measure.key: counts}
    return Ranking(
        None,
        tuple(tags),
        measure,
        asked,
        (),
        asked_of,
        chance,
        scores,
        {measure.key: drawn},
        order_of(measure, drawn),
        tags,
    )


def order_of(measure: Measure, drawn: Resampled) -> Order:
    """Order m entrants, and say of each pair whether it can be told apart, so that all that is said
    holds with CONFIDENCE.
    """
    sign = 1 if measure.higher else -1
    places = sorted(range(len(drawn.values)), key=lambda i: -sign * drawn.values[i])
    numbers = list(itertools.combinations(places, 2))
    pairs = []
    for first, second in numbers:
        value = sign * float(drawn.values[first] - drawn.values[second])
        differences = sign * (drawn.drawn[:, first] - drawn.drawn[:, second])
        known = value, differences, drawn.cases, 1 - (1 - CONFIDENCE) / len(numbers)
        # Of two choices or more guessing is right in half of the cases at most, so centred a share
        # counts twice at most.
        limits = (
            difference_interval(*known, 2 if measure is CENTRED else 1)
            if measure.kind == "share"
            else interval(*known)
        )
        pairs.append(Pair(first, second, limits))
    apart = [pair for pair in pairs if pair.told_apart]
    ranks = [
        (
            1 + sum(pair.second == i for pair in apart),
            len(places) - sum(pair.first == i for pair in apart),
        )
        for i in range(len(places))
    ]
    return Order(tuple(places), tuple(ranks), tuple(pairs))


def _counted(measure: Measure, results: Sequence[SetResult]) -> np.ndarray:
    """(cases, entrants, 2): what each case adds above and below the line; NaN where it could not be
    measured.
    """
    return np.array(
        [
            [measure.count(each) or (np.nan, np.nan) for each in case]
            for case in zip(*(r.results for r in results), strict=True)
        ]
    )


def _ordered_by(cases: CaseSet, drawn: dict[str, Resampled], by: str | None) -> Measure | None:
    default = ACCURACY if all(case.choices for case in cases.cases) else BITS_PER_BYTE
    return next(
        (
            each
            for key in (by, default.key)
            for each in MEASURES
            if each.key == key and key in drawn
        ),
        None,
    ) or next((each for each in MEASURES if each.key in drawn), None)


def _scores(measure: Measure, drawn: Resampled) -> list[Interval]:
    limits = share_interval if measure.kind == "share" and measure is not CENTRED else interval
    return [
        limits(value, drawn.drawn[:, i], drawn.cases, CONFIDENCE)
        for i, value in enumerate(drawn.values.tolist())
    ]
