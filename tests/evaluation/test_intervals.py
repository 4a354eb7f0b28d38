"""The bootstrap: python -m pytest tests/evaluation/test_intervals.py."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from lm.evaluation import intervals
from lm.evaluation.intervals import (
    Estimate,
    difference_interval,
    interval,
    mean_of,
    percentile_interval,
    resample,
    share_interval,
)

SIMULATIONS = 1000


def resampled(
    scores: np.ndarray, weights: np.ndarray | None = None, seed: int = 0
) -> intervals.Resampled:
    return resample(
        scores, np.ones_like(scores), np.ones(len(scores)) if weights is None else weights, seed
    )


def estimate(value: float, drawn: np.ndarray, cases: float) -> Estimate:
    return Estimate(value, drawn, np.zeros(1), cases)


@pytest.fixture
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw fewer resamples, because the last digit of a percentile does not matter here."""
    monkeypatch.setattr(intervals, "RESAMPLES", 1000)


SCORES = {
    "binary 0.5": (lambda generator, n: generator.random(n) < 0.5, 0.5),
    "binary 0.8": (lambda generator, n: generator.random(n) < 0.8, 0.8),
    "normal": (lambda generator, n: generator.normal(3, 2, n), 3.0),
    "skewed": (lambda generator, n: generator.gamma(2, 1, n), 2.0),
    "very skewed": (lambda generator, n: generator.exponential(1, n), 1.0),
}


@pytest.mark.usefixtures("takes_seconds")
@pytest.mark.parametrize("n", [25, 40, 200])
@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.usefixtures("few_resamples")
def test_95_of_100_intervals_hold_the_true_mean(
    kind: str, n: int, figure: Callable[[str], None]
) -> None:
    draw, true = SCORES[kind]
    generator, held = np.random.default_rng(1), 0
    for simulation in range(SIMULATIONS):
        scores = np.asarray(draw(generator, n), float)[:, None]
        limits = share_interval if kind.startswith("binary") else interval
        _, low, high = limits(resampled(scores, seed=simulation).of(0))
        held += low <= true <= high
    figure(f"{100 * held / SIMULATIONS:.1f} % of the intervals hold the true mean")
    assert 0.935 <= held / SIMULATIONS <= 0.985


@pytest.mark.usefixtures("takes_seconds")
@pytest.mark.usefixtures("few_resamples")
def test_means_of_skewed_scores_are_not_below_the_truth_too_often(
    figure: Callable[[str], None],
) -> None:
    """Of 25 scores the largest are often missing, so that the truth lies above: 2.5 % is wanted."""
    generator, missed, plain = np.random.default_rng(12), 0, 0
    for simulation in range(SIMULATIONS):
        found = resampled(generator.exponential(1, (25, 1)), seed=simulation).of(0)
        missed += interval(found).high < 1
        plain += percentile_interval(found).high < 1
    share, plain_share = 100 * missed / SIMULATIONS, 100 * plain / SIMULATIONS
    figure(
        f"{share:.1f} % of the limits are below the true mean, {plain_share:.1f} % of percentiles"
    )
    assert share < 5 < plain_share


@pytest.mark.parametrize("skewness", [-0.9, -0.2, 1e-12, 0.1, 0.5])
@pytest.mark.parametrize("t", [-4.0, -2.1, 0.0, 2.1, 4.0])
def test_the_inverse_of_halls_function(t: float, skewness: float) -> None:
    """Hall's function of x is x + s x^2 / 3 + s^2 x^3 / 27 + s / 6, for the skewness s."""
    x = intervals._skewed(t, skewness)
    assert x + skewness * x**2 / 3 + skewness**2 * x**3 / 27 + skewness / 6 == pytest.approx(t)


def test_the_influence_of_a_case_is_what_a_little_more_weight_of_it_changes() -> None:
    generator = np.random.default_rng(13)
    above, below = generator.normal(size=(9, 2)), generator.random((9, 2)) + 1
    weights = generator.random(9) + 0.5
    found = resample(above, below, weights, 0)
    for i in range(9):
        more = weights.copy()
        more[i] *= 1 + 1e-6
        moved = (resample(above, below, more, 0).values - found.values) / 1e-6
        np.testing.assert_allclose(moved, found.influence[i], rtol=1e-3)


@pytest.mark.usefixtures("takes_seconds")
@pytest.mark.usefixtures("few_resamples")
def test_the_interval_of_a_quotient_of_sums_holds_the_true_quotient(
    figure: Callable[[str], None],
) -> None:
    """The quotient is nats by bytes, where a long target has more of both. The weights differ."""
    generator, held = np.random.default_rng(2), 0
    weights = np.repeat([1.0, 2.0], 30)
    for simulation in range(SIMULATIONS):
        sizes = generator.integers(3, 12, 60).astype(float)
        nats = sizes * generator.gamma(4, 0.25, 60)
        found = resample(nats[:, None], sizes[:, None], weights, simulation)
        _, low, high = interval(found.of(0))
        held += low <= 1.0 <= high
    figure(f"{100 * held / SIMULATIONS:.1f} % of the intervals hold the true quotient")
    assert 0.92 <= held / SIMULATIONS <= 0.98


def test_limits_can_be_written_as_json() -> None:
    found = resampled(np.random.default_rng(3).gamma(2, 1, (25, 2)))
    for limits in (interval(found.of(0)), interval(found.difference(0, 1))):
        assert {type(limit) for limit in limits} == {float}


def test_of_few_cases_plain_percentiles_would_be_too_narrow() -> None:
    scores = np.random.default_rng(3).normal(size=(7, 1))
    found = resampled(scores)
    _, low, high = interval(found.of(0))
    plain = np.quantile(found.drawn, [0.025, 0.975])
    assert high - low > 1.15 * (plain[1] - plain[0])


@pytest.mark.usefixtures("takes_seconds")
@pytest.mark.parametrize("n", [40, 200])
@pytest.mark.parametrize("kind", ["binary", "continuous"])
@pytest.mark.usefixtures("few_resamples")
def test_equal_models_are_seldom_told_apart(
    kind: str, n: int, figure: Callable[[str], None]
) -> None:
    """The two models are equally good. Their scores on a case are correlated, like those of
    checkpoints of one run.
    """
    generator, told_apart = np.random.default_rng(4), 0
    for simulation in range(SIMULATIONS):
        difficulty, own = generator.normal(size=(n, 1)), generator.normal(size=(n, 2))
        scores = difficulty + own if kind == "continuous" else (difficulty + own > 0).astype(float)
        found = resampled(scores, seed=simulation)
        limits = interval if kind == "continuous" else percentile_interval
        _, low, high = limits(found.difference(0, 1))
        told_apart += not low <= 0 <= high
    figure(f"{100 * told_apart / SIMULATIONS:.1f} % of equal pairs are told apart")
    assert 0.02 <= told_apart / SIMULATIONS <= 0.07


def test_pairing_tells_apart_what_single_intervals_do_not() -> None:
    """One model is a little better on each case; the cases differ far more than the models."""
    generator = np.random.default_rng(5)
    hard = generator.normal(0, 3, (40, 1))
    found = resampled(hard + np.array([0.0, 0.5]) + generator.normal(0, 0.1, (40, 2)))
    first, second = (interval(found.of(i)) for i in (0, 1))
    assert second.low < first.value < second.high
    paired = interval(found.difference(1, 0))
    assert 0.4 < paired.low < 0.5 < paired.high < 0.6


def test_drawn_cases_are_the_same_for_all_models_and_each_time() -> None:
    scores = np.random.default_rng(6).normal(size=(30, 1))
    found = resampled(np.concatenate([scores, scores + 1], axis=1))
    np.testing.assert_allclose(found.drawn[:, 1] - found.drawn[:, 0], 1)
    np.testing.assert_array_equal(
        found.drawn, resampled(np.concatenate([scores, scores + 1], axis=1)).drawn
    )
    assert (resampled(scores, seed=1).drawn != resampled(scores, seed=2).drawn).any()


def test_what_is_drawn_is_what_a_loop_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """This also holds where the draws are made in several parts."""
    monkeypatch.setattr(intervals, "RESAMPLES", 50)
    monkeypatch.setattr(intervals, "AT_ONCE", 7 * 12)
    generator = np.random.default_rng(7)
    above, below, weights = (
        generator.normal(size=(12, 3)),
        generator.random((12, 3)) + 1,
        generator.random(12) + 0.5,
    )
    slow, same = [], np.random.default_rng(9)
    for first in range(0, 50, 7):
        for picked in same.integers(12, size=(min(7, 50 - first), 12)):
            slow.append(
                [
                    sum(weights[i] * above[i, j] for i in picked)
                    / sum(weights[i] * below[i, j] for i in picked)
                    for j in range(3)
                ]
            )
    np.testing.assert_allclose(resample(above, below, weights, 9).drawn, slow)


def test_a_weight_counts_as_so_many_cases() -> None:
    scores = np.array([[1.0], [0.0], [0.0]])
    assert resampled(scores, np.array([2.0, 1.0, 1.0])).values == [0.5]
    assert resampled(scores, np.array([2.0, 2.0, 2.0])).cases == pytest.approx(3)
    assert resampled(scores, np.array([1.0, 1e-9, 1e-9])).cases == pytest.approx(1)


@pytest.mark.parametrize(
    ("n", "confidence", "known"),
    [(1, 0.95, False), (5, 0.95, False), (6, 0.95, True), (6, 0.99, False)],
)
def test_a_handful_of_cases_says_nothing_of_others(n: int, confidence: float, known: bool) -> None:
    """Five differences that all go one way are no rarer than one time in 16."""
    found = resampled(np.arange(1.0, n + 1)[:, None])
    _, low, high = interval(found.of(0), confidence)
    assert (low > 0 and high < np.inf) if known else (low, high) == (-np.inf, np.inf)


@pytest.mark.parametrize(("value", "limits"), [(0.0, (0, 0.0881)), (1.0, (0.9119, 1))])
def test_none_of_40_does_not_mean_never(value: float, limits: tuple[float, float]) -> None:
    """The binomial tables give 0.0881 and 0.9119."""
    found = resampled(np.full((40, 1), value))
    assert share_interval(found.of(0))[1:] == pytest.approx(limits, abs=1e-4)


def test_sets_count_alike_however_large_they_are() -> None:
    generator = np.random.default_rng(8)
    small, large = (
        resampled(generator.normal(0, 1, (40, 2)), seed=1),
        resampled(generator.normal(2, 1, (400, 2)), seed=2),
    )
    together = mean_of([small, large])
    np.testing.assert_allclose(together.values, (small.values + large.values) / 2)
    # Drawn independently of each other, so the variances add up.
    np.testing.assert_allclose(
        together.drawn.var(axis=0),
        (small.drawn.var(axis=0) + large.drawn.var(axis=0)) / 4,
        rtol=0.05,
    )
    assert together.cases == 40


def test_limits_do_not_end_where_the_draws_end() -> None:
    """40 checkpoints make 780 pairs. A percentile for each would be the smallest of all draws,
    which errs far more often.
    """
    found = resampled(np.random.default_rng(10).normal(size=(200, 1)))
    value, drawn, *_ = found.of(0)
    _, low, high = percentile_interval(found.of(0), 1 - 0.05 / 780)
    assert low == pytest.approx(value - 4.08 * drawn.std(), rel=0.05)
    assert high == pytest.approx(value + 4.08 * drawn.std(), rel=0.05)
    assert interval(found.of(0), 1 - 0.05 / 100_000).low < drawn.min()


@pytest.mark.parametrize(
    ("value", "n", "limits"),
    [
        (0.0, 40, (-0.0881, 0.0881)),
        (1.0, 40, (0.8238, 1)),
        (-1.0, 40, (-1, -0.8238)),
        (1.0, 6, (0.0815, 1)),
    ],
)
def test_two_that_agree_in_all_cases_may_differ_in_others(
    value: float, n: int, limits: tuple[float, float]
) -> None:
    """0.0881 is the binomial limit for none of 40. If one model is always right and the other
    never, both may err that often.
    """
    same = estimate(value, np.full(1000, value), n)
    assert difference_interval(same, 0.95)[1:] == pytest.approx(limits, abs=1e-4)


def test_differences_that_vary_have_the_interval_of_their_draws() -> None:
    drawn = np.random.default_rng(11).normal(0.1, 0.05, 1000)
    varying = estimate(0.1, drawn, 40)
    assert difference_interval(varying, 0.95) == percentile_interval(varying, 0.95)
    assert difference_interval(estimate(0.0, np.zeros(1000), 5), 0.95)[1:] == (-np.inf, np.inf)
