"""How far a mean over cases can be trusted: the cases are drawn again, with replacement, ten
thousand times (the bootstrap, Efron 1979).

All models are scored on the same drawn cases, so what makes a case hard for all of them cancels in
their differences. A quotient of sums (nats by bytes, right answers by weights) is drawn as a whole,
never as a mean of quotients.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
AT_ONCE = 2**22  # cases drawn at once
FEWEST_BEYOND = 10  # draws behind a limit that a percentile needs

Array = NDArray[np.float64]


class Interval(NamedTuple):
    """A value, and between which limits it lies with the stated confidence."""

    value: float
    low: float
    high: float


class Resampled(NamedTuple):
    """A quotient of sums over cases, for each of m models.

    Attributes:
        values: (m,) float64, of the cases themselves.
        drawn: (RESAMPLES, m) float64, of cases drawn again, the same for all models.
        cases: how many equally weighted cases tell as much: (sum w)^2 / sum w^2 (Kish 1965).
    """

    values: Array
    drawn: Array
    cases: float


def resample(numerators: Array, denominators: Array, weights: Array, seed: int) -> Resampled:
    """Draw the cases again.

    Args:
        numerators, denominators: (n, m) float64, of n cases and m models; the quotient is sum(w *
            numerator) / sum(w * denominator). Denominators are greater than 0.
        weights: (n,) float64, greater than 0.
        seed: equal seeds draw equal cases.
    """
    n, m = numerators.shape
    sums = weights[:, None] * np.concatenate([numerators, denominators], axis=1)  # (n, 2m)
    generator = np.random.default_rng(seed)
    rows = max(1, AT_ONCE // n)
    parts = []
    for first in range(0, RESAMPLES, rows):
        count = min(rows, RESAMPLES - first)
        picked = generator.integers(n, size=(count, n)) + n * np.arange(count)[:, None]
        # how often each case was drawn
        often = np.bincount(picked.ravel(), minlength=count * n).reshape(count, n)
        parts.append(often @ sums)
    drawn, all_cases = np.concatenate(parts), sums.sum(axis=0)
    cases = float(weights.sum() ** 2 / (weights**2).sum())
    return Resampled(all_cases[:m] / all_cases[m:], drawn[:, :m] / drawn[:, m:], cases)


def mean_of(parts: list[Resampled]) -> Resampled:
    """The mean of several sets of cases, each drawn by itself. It is trusted as if all of them were
    as small as the smallest.
    """
    values, drawn = (
        np.mean([part.values for part in parts], axis=0),
        np.mean([part.drawn for part in parts], axis=0),
    )
    return Resampled(values, drawn, min(part.cases for part in parts))


def interval(value: float, drawn: Array, cases: float, confidence: float = 0.95) -> Interval:
    """The expanded percentile interval (Hesterberg 2015, "What Teachers Should Know About the
    Bootstrap").

    Plain percentiles are those of a normal distribution with the variance of n - 1 by n: too narrow
    for few cases. These lie as far out as Student's t would put them. Where so few cases could all
    point in one direction by chance alone (1 of 2^(n - 1) times), nothing is known: the limits are
    infinite. A percentile behind which hardly anything was drawn is where the draws happen to end,
    however small the tail; limits are then at least as far away as those of a normal distribution
    that spreads as the draws do.
    """
    from scipy.special import ndtr, stdtrit

    if 2 ** (1 - cases) > 1 - confidence:
        return Interval(value, -np.inf, np.inf)
    deviations = -np.sqrt(cases / (cases - 1)) * stdtrit(cases - 1, (1 - confidence) / 2)
    tail = ndtr(-deviations)
    low, high = np.quantile(drawn, [tail, 1 - tail])
    if tail * len(drawn) < FEWEST_BEYOND:
        reach = deviations * drawn.std()
        low, high = min(low, value - reach), max(high, value + reach)
    return Interval(value, float(low), float(high))


def share_interval(value: float, drawn: Array, cases: float, confidence: float = 0.95) -> Interval:
    """As `interval`, for a share of cases. Where all cases agree, so does whatever is drawn from
    them, and the exact limit of Clopper and Pearson (1934) is taken: 0 of 40 can well be 8 of 100.
    """
    found = interval(value, drawn, cases, confidence)
    if value not in (0, 1):
        return found
    far = ((1 - confidence) / 2) ** (1 / cases)
    return Interval(value, far, 1.0) if value == 1 else Interval(value, 0.0, 1 - far)


def difference_interval(
    value: float, drawn: Array, cases: float, confidence: float, unit: float = 1.0
) -> Interval:
    """As `interval`, for the difference of two shares of the same cases. Where it is the same in
    every case, so it is in whatever is drawn from them, and the share of cases that might differ
    otherwise has Clopper and Pearson's limit: two that agree on 40 of 40 may well disagree on 8 of
    100.

    Args:
        unit: how much of the difference one share makes, at most.
    """
    found = interval(value, drawn, cases, confidence)
    if np.isinf(found.low) or np.ptp(drawn) > 1e-9:
        return found
    reach = (unit + abs(value)) * (1 - ((1 - confidence) / 2) ** (1 / cases))
    return Interval(value, max(-unit, value - reach), min(unit, value + reach))
