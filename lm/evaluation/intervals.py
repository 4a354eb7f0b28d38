"""Confidence intervals of means over cases, from the bootstrap (Efron 1979): the cases are
resampled ten thousand times, with replacement.

All models are scored on the same resampled cases, so the difficulty of a case cancels in their
differences. A quotient of sums (nats by bytes, right answers by weights) is resampled as a whole,
never as a mean of quotients. docs/EVALUATION.md says how often the intervals hold the true value.
"""

from __future__ import annotations

import math
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


class Estimate(NamedTuple):
    """A quotient of sums over cases, or the difference of two, with what its interval needs.

    Attributes:
        value: over the cases themselves.
        drawn: (RESAMPLES,) float64, over resampled cases.
        influence: (n,) float64: how far each case moves the value, to first order. They sum to 0.
        cases: the effective number of cases, (sum w)^2 / sum w^2 (Kish 1965).
    """

    value: float
    drawn: Array
    influence: Array
    cases: float


class Resampled(NamedTuple):
    """An `Estimate` for each of m models, on the same cases.

    Attributes:
        values: (m,) float64.
        drawn: (RESAMPLES, m) float64.
        influence: (n, m) float64.
        cases: the effective number of cases.
    """

    values: Array
    drawn: Array
    influence: Array
    cases: float

    def of(self, model: int) -> Estimate:
        """Return the estimate of one model."""
        value = float(self.values[model])
        return Estimate(value, self.drawn[:, model], self.influence[:, model], self.cases)

    def difference(self, first: int, second: int) -> Estimate:
        """Return the first model's value minus the second's."""
        a, b = self.of(first), self.of(second)
        return Estimate(a.value - b.value, a.drawn - b.drawn, a.influence - b.influence, self.cases)

    def select(self, models: list[int]) -> Resampled:
        """Return the estimates of some models."""
        return self._replace(
            values=self.values[models],
            drawn=self.drawn[:, models],
            influence=self.influence[:, models],
        )

    def rescaled(self, zero: float, one: float) -> Resampled:
        """Return the estimates in a unit whose 0 is at `zero` and whose 1 is at `one`."""
        return self._replace(
            values=(self.values - zero) / (one - zero),
            drawn=(self.drawn - zero) / (one - zero),
            influence=self.influence / (one - zero),
        )


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
    values = all_cases[:m] / all_cases[m:]
    return Resampled(
        values,
        drawn[:, :m] / drawn[:, m:],
        (sums[:, :m] - values * sums[:, m:]) / all_cases[m:],
        cases=float(weights.sum() ** 2 / (weights**2).sum()),
    )


def mean_of(parts: list[Resampled]) -> Resampled:
    """Return the mean of several sets of cases, each resampled separately. Its number of cases is
    that of the smallest set.
    """
    return Resampled(
        np.mean([part.values for part in parts], axis=0),
        np.mean([part.drawn for part in parts], axis=0),
        np.concatenate([part.influence for part in parts]) / len(parts),
        min(part.cases for part in parts),
    )


def interval(estimate: Estimate, confidence: float = 0.95) -> Interval:
    """Return an interval for scores of any shape: the wider of two, at each end.

    One is the `percentile_interval`. It covers too little above the value if few cases have by far
    the largest scores. The other allows for that skewness (Hall 1992, "On the removal of skewness
    by transformation"): Student's t of the mean is made symmetric by a cubic function of it.
    """
    from scipy.special import stdtrit

    plain = percentile_interval(estimate, confidence)
    squares = float((estimate.influence**2).sum())
    if np.isinf(plain.low) or squares == 0:
        return plain
    error = math.sqrt(squares * estimate.cases / (estimate.cases - 1))
    skewness = float((estimate.influence**3).sum()) / squares**1.5  # times n^(-1/2)
    t = -float(stdtrit(estimate.cases - 1, (1 - confidence) / 2))
    low = estimate.value - error * _skewed(t, skewness)
    high = estimate.value - error * _skewed(-t, skewness)
    return Interval(estimate.value, min(plain.low, low), max(plain.high, high))


def _skewed(t: float, skewness: float) -> float:
    """Return the value of Student's t that Hall's function makes into `t`."""
    if abs(skewness) < 1e-9:
        return t
    return 3 * float(np.cbrt(1 + skewness * (t - skewness / 6)) - 1) / skewness


def percentile_interval(estimate: Estimate, confidence: float = 0.95) -> Interval:
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

    value, drawn, _, cases = estimate
    if 2 ** (1 - cases) > 1 - confidence:
        return Interval(value, -np.inf, np.inf)
    deviations = -np.sqrt(cases / (cases - 1)) * stdtrit(cases - 1, (1 - confidence) / 2)
    tail = ndtr(-deviations)
    low, high = np.quantile(drawn, [tail, 1 - tail])
    if tail * len(drawn) < FEWEST_BEYOND:
        reach = deviations * drawn.std()
        low, high = min(low, value - reach), max(high, value + reach)
    return Interval(value, float(low), float(high))


def share_interval(estimate: Estimate, confidence: float = 0.95) -> Interval:
    """Return the `percentile_interval` of a share of cases. If all cases agree, so do all resampled
    ones, and the exact limit of Clopper and Pearson (1934) applies: 0 of 40 may well be 8 of 100.
    """
    if estimate.value not in (0, 1):
        return percentile_interval(estimate, confidence)
    far = ((1 - confidence) / 2) ** (1 / estimate.cases)
    return Interval(1, far, 1) if estimate.value == 1 else Interval(0, 0, 1 - far)


def difference_interval(estimate: Estimate, confidence: float, unit: float = 1.0) -> Interval:
    """Return the `percentile_interval` of the difference of two shares of the same cases.

    If the difference is the same in every case, it is the same in all resampled ones. The share of
    cases that might differ then has Clopper and Pearson's limit: two models that agree on 40 of 40
    cases may well disagree on 8 of 100.

    Args:
        unit: the largest part of the difference that one share can make up.
    """
    expanded = percentile_interval(estimate, confidence)
    if np.isinf(expanded.low) or np.ptp(estimate.drawn) > 1e-9:
        return expanded
    value = estimate.value
    reach = (unit + abs(value)) * (1 - ((1 - confidence) / 2) ** (1 / estimate.cases))
    return Interval(value, max(-unit, value - reach), min(unit, value + reach))
