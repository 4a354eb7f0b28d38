"""Test the order of entrants with given results."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lm.config.schema.cases import Case
from lm.evaluation import intervals
from lm.ranking.cases import CaseSet
from lm.ranking.entrants import Entrant
from lm.ranking.files import picture
from lm.ranking.measures import ACCURACY, BITS_PER_BYTE
from lm.ranking.ranking import Ranking, order_of, rank_set, rank_together
from lm.ranking.results import CaseResult, SetResult
from lm.ranking.words import notes, summary


def result(right: bool | None = None, nats: float | None = 2.0, size: int = 4) -> CaseResult:
    return CaseResult(
        nats=nats,
        target_tokens=size // 2,
        target_bytes=size,
        chosen=None,
        right=right,
        continuation="",
        ids=(),
        ended=False,
        repetition=None,
        exact=False,
        contains=None,
        regex=None,
    )


def entrant(name: str, results: Sequence[CaseResult]) -> Entrant:
    set_result = SetResult(
        results=tuple(results),
        distinct_1=None,
        distinct_2=None,
        repetition=None,
        ended_share=None,
        scored_per_second=None,
        generated_per_second=None,
    )
    return Entrant(
        name=name,
        path=Path("/runs") / name,
        links=(),
        step=1,
        parameters=1000,
        tokenizer="byte",
        tokenizer_sha256="ab",
        recorded=None,
        results=(set_result,),
        not_searched=None,
        manifest_sha256="",
    )


def cases(
    n: int, weights: Sequence[float] | None = None, choices: Any = ("a", "b"), name: str = "some"
) -> CaseSet:
    items = [
        Case(
            prompt=f"{i}",
            target=["a"],
            choices=list(choices),
            weight=weights[i] if weights else 1.0,
        )
        for i in range(n)
    ]
    return CaseSet(
        name,
        Path(f"{name}.yaml"),
        "Of a test.",
        False,
        8,
        tuple(items),
        hashlib.sha256(name.encode()).hexdigest(),
    )


def ranked(ranking: Ranking | None) -> Ranking:
    assert ranking is not None
    return ranking


def test_weights_count_and_so_do_bytes() -> None:
    one = entrant(
        "one",
        [result(True, nats=math.log(2) * 8, size=4), result(False, nats=math.log(2) * 2, size=16)],
    )
    ranking = ranked(rank_set(cases(2, weights=[3, 1]), 0, [one]))
    assert ranking.scores["accuracy"][0].value == 0.75
    # a quotient of sums, not a mean of quotients
    assert ranking.scores["bits_per_byte"][0].value == pytest.approx((3 * 8 + 2) / (3 * 4 + 16))
    assert ranking.scores["centred_accuracy"][0].value == 0.5


def test_cases_that_one_cannot_be_asked_are_left_out_for_all() -> None:
    whole = entrant("whole", [result(True, nats=1.0)] * 5 + [result(True, nats=9.0)] * 5)
    short = entrant("short", [result(True, nats=2.0)] * 5 + [result(None, nats=None)] * 5)
    ranking = ranked(rank_set(cases(10), 0, [whole, short]))
    assert ranking.n_cases["bits_per_byte"] == ranking.n_cases["accuracy"] == 5
    assert ranking.scores["bits_per_byte"][0].value == pytest.approx(1 / math.log(2) / 4)
    assert "bits/byte: skips 5 of 10 cases, which are too long for a context" in list(
        notes(ranking)
    )


def test_the_order_of_cases_and_of_entrants_changes_no_value() -> None:
    generator = np.random.default_rng(0)
    scores = generator.random((30, 3)) < [0.2, 0.5, 0.9]
    rows = [
        [result(bool(right), nats=float(generator.gamma(2))) for right in column]
        for column in scores.T
    ]
    ranking = ranked(rank_set(cases(30), 0, [entrant(str(i), row) for i, row in enumerate(rows)]))
    turned = ranked(
        rank_set(
            cases(30), 0, [entrant(str(i), row[::-1]) for i, row in reversed(list(enumerate(rows)))]
        )
    )
    names = [[r.entrants[number].name for number in r.order.best_first] for r in (ranking, turned)]
    assert names == [["2", "1", "0"]] * 2
    for key, values in ranking.scores.items():
        np.testing.assert_allclose(
            [score.value for score in values], [score.value for score in turned.scores[key]][::-1]
        )
    # All entrants share the resampled cases, whoever else takes part.
    again = ranked(rank_set(cases(30), 0, list(reversed(ranking.entrants))))
    for key, values in ranking.scores.items():
        np.testing.assert_allclose(np.array(values), np.array(again.scores[key])[::-1])


def test_ranks_are_counted_from_what_can_be_told_apart() -> None:
    """Two entrants that are alike share ranks 1 and 2; a third, far below, has rank 3."""
    values = np.array([0.1, 0.9, 0.92])
    drawn = values + np.random.default_rng(1).normal(0, 0.05, (intervals.RESAMPLES, 3))
    resampled = intervals.Resampled(values, drawn, np.zeros((100, 3)), 100.0)
    order = order_of(ACCURACY, resampled)
    assert order.best_first == (2, 1, 0) and order.ranks == ((3, 3), (1, 2), (1, 2))
    assert [(pair.first, pair.second, pair.told_apart) for pair in order.pairs] == [
        (2, 1, False),
        (2, 0, True),
        (1, 0, True),
    ]
    lower = order_of(BITS_PER_BYTE, resampled)
    assert lower.best_first == (0, 1, 2) and lower.ranks == ((1, 1), (2, 3), (2, 3))
    assert all(pair.difference.value > 0 for pair in lower.pairs)


@pytest.mark.usefixtures("takes_seconds")
def test_of_five_equal_entrants_some_are_told_apart_in_one_of_20_rankings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without the correction for ten pairs the rate would be one in three."""
    monkeypatch.setattr(intervals, "RESAMPLES", 1000)
    generator, claims = np.random.default_rng(2), 0
    for simulation in range(400):
        scores = generator.normal(size=(60, 1)) + generator.normal(size=(60, 5))
        drawn = intervals.resample(scores, np.ones_like(scores), np.ones(60), simulation)
        claims += any(pair.told_apart for pair in order_of(ACCURACY, drawn).pairs)
    assert claims / 400 <= 0.08


def test_sets_count_alike_and_are_drawn_apart() -> None:
    small, large = cases(10, name="small"), cases(40, choices=("a", "b", "c", "d"), name="large")
    both = [entrant("one", [result(i < 5) for i in range(10)]), entrant("one", [result(True)] * 40)]
    one = Entrant(**(vars(both[0]) | {"results": (both[0].results[0], both[1].results[0])}))
    parts = [ranked(rank_set(small, 0, [one])), ranked(rank_set(large, 1, [one]))]
    ranking = ranked(rank_together(parts))
    assert (
        ranking.parts == ("small", "large") and ranking.scores["centred_accuracy"][0].value == 0.5
    )
    assert rank_together(parts[:1]) is None
    assert summary(ranking) == []


def test_a_picture_of_very_many_can_still_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """matplotlib refuses 2^16 pixels. That must not lose the results of a long measurement."""
    few = ranked(
        rank_set(cases(6), 0, [entrant("a", [result(True)] * 6), entrant("b", [result(False)] * 6)])
    )
    monkeypatch.setattr("lm.ranking.files._draw", lambda *_: None)
    many = dataclasses.replace(few, entrants=few.entrants * 1000)
    _, height = picture([many] * 6).get_size_inches()
    assert height * 150 < 2**16


def test_a_picture_shows_values_and_shares_on_one_scale() -> None:
    few = ranked(
        rank_set(cases(6), 0, [entrant("a", [result(True)] * 6), entrant("b", [result(False)] * 6)])
    )
    [panel] = picture([few]).axes
    assert panel.get_xlim()[1] == 100
    assert {text.get_text() for text in panel.texts} >= {"100.0", "0.0"}
