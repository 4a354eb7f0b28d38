"""The order of checkpoints on the same cases, with intervals of their differences and ranks.

One checkpoint is better than another if the interval of their difference, over resampled cases,
excludes 0. All such claims of one ranking hold together with 95 % confidence (Bonferroni's
correction). m checkpoints have m (m - 1) / 2 pairs: with a 5 % error for each pair, two or three
pairs of ten equally good checkpoints would seem to differ.

The claims also bound the ranks (Mogstad, Romano, Shaikh and Wilhelm 2024, "Inference for Ranks with
Applications to Mobility across Neighbourhoods and Academic Achievement across Countries"). The best
possible rank is one more than the number of better checkpoints. The worst is the number of
checkpoints minus the number of worse ones.
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
    """The difference between two entrants, given by their numbers. The first has the better value,
    and the difference is positive.
    """

    first: int
    second: int
    difference: Interval

    @property
    def told_apart(self) -> bool:
        """Return whether the interval excludes 0."""
        return self.difference.low > 0


class Order(NamedTuple):
    """The order of entrants, given by their numbers, by one measure.

    Attributes:
        best_first: the entrants, the best value first.
        ranks: the best and the worst possible rank of each entrant.
        pairs: all pairs, those of the first place first.
    """

    best_first: tuple[int, ...]
    ranks: tuple[tuple[int, int], ...]
    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class Ranking:
    """A ranking of entrants on one set of cases, or on several sets together.

    Attributes:
        cases: the set, or None for several sets.
        parts: the names of the sets.
        by: the measure that orders the entrants.
        results: each entrant's result on the set; empty for several sets.
        n_cases: for each measure's key the number of cases behind it. A case counts if the measure
            exists for all entrants.
        chance: the accuracy of guessing, or None without choices.
        scores: for each measure's key the interval of each entrant.
        drawn: for each measure's key the resampled values behind the intervals.
        tags: for each tag the number of its cases, and the value of `by` of each entrant on them.
            For several sets the keys are their names.
    """

    cases: CaseSet | None
    parts: tuple[str, ...]
    by: Measure
    entrants: tuple[Entrant, ...]
    results: tuple[SetResult, ...]
    n_cases: dict[str, int]
    chance: float | None
    scores: dict[str, list[Interval]]
    drawn: dict[str, Resampled]
    order: Order
    tags: dict[str, tuple[int, list[float]]]


def rank_set(
    cases: CaseSet, number: int, entrants: Sequence[Entrant], by: str | None = None
) -> Ranking | None:
    """Rank the entrants that have a result on a set of cases. Return None if there is none, or if
    no measure exists for all of them.

    Args:
        number: the index of the set in each entrant's results.
        by: a measure's key. If it is None, or the set does not ask for the measure, the set is
            ranked by accuracy if every case has choices, else by bits per byte.
    """
    measured = tuple(entrant for entrant in entrants if entrant.results[number] is not None)
    results = tuple(
        result for entrant in measured if (result := entrant.results[number]) is not None
    )
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
    scores = {m.key: _scores(m, drawn[m.key]) for m in MEASURES if m.key in drawn}
    chance = None
    if ACCURACY.key in drawn:
        guessed = np.array([1 / max(1, len(case.choices)) for case in cases.cases])
        chance = float(np.average(guessed[rows[ACCURACY.key]], weights=weights[rows[ACCURACY.key]]))
        drawn[CENTRED.key] = drawn[ACCURACY.key].rescaled(zero=chance, one=1)
        scores[CENTRED.key] = [
            Interval(*((limit - chance) / (1 - chance) for limit in score))
            for score in scores[ACCURACY.key]
        ]
    numbers = {key: int(rows[key].sum()) for key in counted if key in drawn}
    return Ranking(
        cases=cases,
        parts=(cases.name,),
        by=measure,
        entrants=measured,
        results=results,
        n_cases=numbers,
        chance=chance,
        scores=scores,
        drawn=drawn,
        order=order_of(measure, drawn[measure.key]),
        tags=_by_tag(cases, counted[measure.key], rows[measure.key]),
    )


def rank_together(rankings: Sequence[Ranking], by: str | None = None) -> Ranking | None:
    """Rank entrants by the mean over sets, with equal weights.

    The mean is of the centred accuracies of the sets in which every case has choices. If there is
    no such set, it is of the bits per byte.

    Args:
        by: the measure to use instead, over the sets that ask for it. The accuracy is centred,
            because the accuracy of guessing differs between sets.

    Returns:
        The ranking of the entrants that have results on all of these sets. None if there is no such
        entrant, or only one set of cases.
    """
    ordered_by = {ranking.by.key for ranking in rankings}
    key = by or (ACCURACY.key if ACCURACY.key in ordered_by else BITS_PER_BYTE.key)
    parts = [ranking for ranking in rankings if ranking.by.key == key]
    if not parts or len(rankings) < 2:
        return None
    measure = CENTRED if key == ACCURACY.key else parts[0].by
    entrants = tuple(
        entrant for entrant in parts[0].entrants if all(entrant in part.entrants for part in parts)
    )
    if not entrants:
        return None
    shares, tags = [], {}
    for part in parts:
        columns = [part.entrants.index(entrant) for entrant in entrants]
        shares.append(part.drawn[measure.key].select(columns))
        tags[part.parts[0]] = (
            part.n_cases[ACCURACY.key if measure is CENTRED else measure.key],
            shares[-1].values.tolist(),
        )
    mean = mean_of(shares)
    return Ranking(
        cases=None,
        parts=tuple(tags),
        by=measure,
        entrants=entrants,
        results=(),
        n_cases={measure.key: sum(count for count, _ in tags.values())},
        chance=0.0 if measure is CENTRED else None,
        scores={measure.key: _scores(measure, mean)},
        drawn={measure.key: mean},
        order=order_of(measure, mean),
        tags=tags,
    )


def order_of(measure: Measure, drawn: Resampled) -> Order:
    """Order the entrants by a measure. The intervals of all pairs hold together with CONFIDENCE."""
    sign = 1 if measure.higher else -1
    best_first = sorted(range(len(drawn.values)), key=lambda i: -sign * drawn.values[i])
    numbers = list(itertools.combinations(best_first, 2))
    confidence = 1 - (1 - CONFIDENCE) / max(1, len(numbers))
    pairs = []
    for first, second in numbers:
        pair = (first, second) if measure.higher else (second, first)
        better = drawn.difference(*pair)
        # With two or more choices chance is at most 1/2, so that centring at most doubles a share.
        limits = (
            difference_interval(better, confidence, unit=2 if measure is CENTRED else 1)
            if measure.kind == "share"
            else interval(better, confidence)
        )
        pairs.append(Pair(first, second, limits))
    apart = [pair for pair in pairs if pair.told_apart]
    ranks = [
        (
            1 + sum(pair.second == i for pair in apart),
            len(best_first) - sum(pair.first == i for pair in apart),
        )
        for i in range(len(best_first))
    ]
    return Order(tuple(best_first), tuple(ranks), tuple(pairs))


def _counted(measure: Measure, results: Sequence[SetResult]) -> np.ndarray:
    """Return what each case adds to the numerator and the denominator of a measure, in the shape
    (cases, entrants, 2). Cases that could not be measured are NaN.
    """
    return np.array(
        [
            [measure.count(result) or (np.nan, np.nan) for result in case]
            for case in zip(*(entrant.results for entrant in results), strict=True)
        ]
    )


def _by_tag(
    cases: CaseSet, counted: np.ndarray, rows: np.ndarray
) -> dict[str, tuple[int, list[float]]]:
    """Return for each tag how many of `rows` have it, and each entrant's value on them."""
    weights = np.array([case.weight for case in cases.cases])
    values = {}
    for tag in sorted({tag for case in cases.cases for tag in case.tags}):
        tagged = rows & np.array([tag in case.tags for case in cases.cases])
        if tagged.any():
            above, below = np.tensordot(weights[tagged], counted[tagged], axes=1).T
            values[tag] = int(tagged.sum()), (above / below).tolist()
    return values


def _ordered_by(cases: CaseSet, drawn: dict[str, Resampled], by: str | None) -> Measure | None:
    """Return the measure to order a set by: `by`, else the default, else any that was measured."""
    default = ACCURACY if all(case.choices for case in cases.cases) else BITS_PER_BYTE
    measured = {measure.key: measure for measure in MEASURES if measure.key in drawn}
    keys = (by, default.key, *measured)
    return next((measured[key] for key in keys if key in measured), None)


def _scores(measure: Measure, drawn: Resampled) -> list[Interval]:
    limits = share_interval if measure.kind == "share" and measure is not CENTRED else interval
    return [limits(drawn.of(i), CONFIDENCE) for i in range(len(drawn.values))]
