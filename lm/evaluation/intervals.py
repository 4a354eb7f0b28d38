"""Confidence intervals of means over cases, from the bootstrap (Efron 1979): the cases are
resampled ten thousand times, with replacement.

All models are scored on the same resampled cases, so the difficulty of a case cancels in their
differences. A quotient of sums (nats by bytes, right answers by weights) is resampled as a whole,
never as a mean of quotients.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
AT_ONCE = 2**22  # cases drawn at once
FEWEST_BEYOND = 10  # a percentile needs this many draws beyond it

Array = NDArray[np.float64]


class Interval(NamedTuple):
    """A value with the limits of its confidence interval."""

    value: float
    low: float
    high: float


class Resampled(NamedTuple):
    """A quotient of sums over cases, for each of m models.

    Attributes:
        values: (m,) float64, over the cases themselves.
        drawn: (RESAMPLES, m) float64, over resampled cases, the same for all models.
        cases: the effective number of cases, (sum w)^2 / sum w^2 (Kish 1965).
    """

    values: Array
    drawn: Array
    cases: float


def resample(numerators: Array, denominators: Array, weights: Array, seed: int) -> Resampled:
    """Resample the cases. The quotient is sum(w * numerator) / sum(w * denominator).

    Args:
        numerators: (n, m) float64, for n cases and m models.
        denominators: (n, m) float64, greater than 0.
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
        times_drawn = np.bincount(picked.ravel(), minlength=count * n).reshape(count, n)
        parts.append(times_drawn @ sums)
    drawn, all_cases = np.concatenate(parts), sums.sum(axis=0)
    cases = float(weights.sum() ** 2 / (weights**2).sum())
    return Resampled(all_cases[:m] / all_cases[m:], drawn[:, :m] / drawn[:, m:], cases)


def mean_of(parts: list[Resampled]) -> Resampled:
    """Return the mean of several sets of cases, each resampled separately. Its number of cases is
    that of the smallest set.
    """
    values = np.mean([part.values for part in parts], axis=0)
    drawn = np.mean([part.drawn for part in parts], axis=0)
    return Resampled(values, drawn, min(part.cases for part in parts))


def interval(value: float, drawn: Array, cases: float, confidence: float = 0.95) -> Interval:
    """Return the expanded percentile interval (Hesterberg 2015, "What Teachers Should Know About
    the Bootstrap").

    Plain percentiles use a variance that is too small by (n - 1) / n, so they are too narrow for
    few cases. These limits are as far out as those of Student's t. Two cases need care:

    - Very few cases may all point in one direction by chance, 1 of 2^(n - 1) times. Then nothing is
      known, and the limits are infinite.
    - A percentile with hardly any draws beyond it only shows where the draws end. Limits are then
      at least those of a normal distribution with the draws' standard deviation.
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
    """Return the `interval` of a share of cases. If all cases agree, so do all resampled ones, and
    the exact limit of Clopper and Pearson (1934) applies: 0 of 40 may well be 8 of 100.
    """
    if value not in (0, 1):
        return interval(value, drawn, cases, confidence)
    far = ((1 - confidence) / 2) ** (1 / cases)
    return Interval(value, far, 1.0) if value == 1 else Interval(value, 0.0, 1 - far)


def difference_interval(
    value: float, drawn: Array, cases: float, confidence: float, unit: float = 1.0
) -> Interval:
    """Return the `interval` of the difference of two shares of the same cases.

    If the difference is the same in every case, it is the same in all resampled ones. The share of
    cases that might differ then has Clopper and Pearson's limit: two models that agree on 40 of 40
    cases may well disagree on 8 of 100.

    Args:
        unit: the largest part of the difference that one share can make up.
    """
    expanded = interval(value, drawn, cases, confidence)
    if np.isinf(expanded.low) or np.ptp(drawn) > 1e-9:
        return expanded
    reach = (unit + abs(value)) * (1 - ((1 - confidence) / 2) ** (1 / cases))
    return Interval(value, max(-unit, value - reach), min(unit, value + reach))
