"""Seeds are computed, not carried along: python -m pytest tests/optim/test_randomness.py."""

from __future__ import annotations

import itertools
import random
import types
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lm.optim.randomness import fold, seed_all, seed_step

# If a number changed, runs of earlier versions could no longer be resumed to the bit.
GOLDEN = {
    (0,): 4246866556266386882,
    (1337,): 8992403640872731004,
    (1337, 0): 3730117682233146089,
    (1337, 0, 0): 4809521320383262669,
    (1337, 500, 3): 8337085740401663289,
    (9223372036854775807, 1000000000000, 64): 7192582291829814016,
    (1, -1): 3048870398424591250,
}


@pytest.mark.parametrize(("coordinates", "number"), GOLDEN.items(), ids=str)
def test_golden_numbers(coordinates: tuple[int, ...], number: int) -> None:
    assert fold(*coordinates) == number


def test_every_coordinate_counts() -> None:
    grid = list(itertools.product(range(12), repeat=3))
    values = (
        [fold(*place) for place in grid]
        + [fold(*place) for place in itertools.product(range(12), repeat=2)]
        + [fold(0)]
    )
    assert len(set(values)) == len(values)
    assert fold(1, 23) != fold(12, 3) != fold(123)


@given(st.lists(st.integers(-(2**70), 2**70), min_size=1, max_size=4))
def test_63_bits(coordinates: list[int]) -> None:
    assert 0 <= fold(*coordinates) < 2**63


def test_all_bits_are_used() -> None:
    values = [fold(0, step) for step in range(2000)]
    for bit in range(63):
        assert 850 < sum(value >> bit & 1 for value in values) < 1150


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8, torch.tensor])
def test_the_type_of_an_integer_does_not_count(kind: Any) -> None:
    assert fold(1337, kind(5), kind(2)) == fold(1337, 5, 2)


def test_what_is_no_integer_is_refused() -> None:
    with pytest.raises(ValueError):
        fold(1337, 0.5)  # type: ignore[arg-type]


def draws() -> tuple[Any, ...]:
    return (
        random.random(),
        np.random.rand(),
        torch.rand(()).item(),
        nn.functional.dropout(torch.ones(64), 0.5).tolist(),
    )


def test_seeding_repeats_all_generators_whatever_came_between() -> None:
    seed_all(fold(1337, 5, 0))
    first = draws()
    for _ in range(7):
        draws()
    seed_all(fold(1337, 5, 0))
    assert draws() == first
    seed_all(fold(1337, 5, 1))
    other = draws()
    assert all(one != two for one, two in zip(first, other, strict=True))


@pytest.mark.parametrize("value", [0, 2**32, 2**63 - 1])
def test_every_folded_number_is_a_seed(value: int) -> None:
    seed_all(value)
    first = draws()
    seed_all(value)
    assert draws() == first


@pytest.mark.parametrize("value", [0, 1337, 2**32, 2**63 - 1])
def test_a_step_draws_the_masks_of_torchs_own_seed(value: int) -> None:
    """Runs that began under torch.manual_seed go on to the bit."""

    def masks() -> list[torch.Tensor]:
        big = torch.ones(3, 1000)  # many numbers are drawn by another kernel than few
        return [nn.functional.dropout(ones, 0.3) for ones in (torch.ones(5), big)]

    torch.manual_seed(value)
    expected, state = masks(), torch.get_rng_state()
    torch.rand(7)
    seed_step(value, torch.device("cpu"))
    assert all(torch.equal(one, two) for one, two in zip(masks(), expected, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_step_leaves_the_other_generators_alone() -> None:
    states = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    seed_step(5, torch.device("cpu"))
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states  # type: ignore[index]


@pytest.mark.parametrize(("device", "seeded"), [("cpu", []), ("cuda:1", [7]), ("mps", [7])])
def test_a_step_seeds_its_device_too(
    device: str, seeded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []
    module = types.SimpleNamespace(manual_seed=seeds.append)
    monkeypatch.setattr(torch, "get_device_module", lambda _: module)
    seed_step(7, torch.device(device))
    assert seeds == seeded
