"""Test the learning rate at every step: python -m pytest tests/optim/test_schedule.py."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.config.schema.optimizer import OptimizerConfig
from lm.optim.schedule import learning_rate

SCHEDULES = ("cosine", "linear", "wsd", "constant")


def rates(max_steps: int, **keys: Any) -> list[float]:
    config = OptimizerConfig(**({"lr": 1.0, "warmup_steps": 0, "final_lr_fraction": 0.0} | keys))
    return [learning_rate(step, max_steps, config) for step in range(max_steps)]


# By hand. Cosine at 1/4 and 3/4 of the way is (1 +- sqrt(1/2)) / 2.
QUARTER = (1 + math.sqrt(0.5)) / 2
BY_HAND: list[tuple[str, int, dict[str, Any], list[float]]] = [
    ("linear to zero", 5, {"schedule": "linear"}, [1, 0.75, 0.5, 0.25, 0]),
    (
        "linear to a share",
        5,
        {"schedule": "linear", "final_lr_fraction": 0.2},
        [1, 0.8, 0.6, 0.4, 0.2],
    ),
    (
        "lr scales everything",
        3,
        {"schedule": "linear", "lr": 0.01, "final_lr_fraction": 0.5},
        [0.01, 0.0075, 0.005],
    ),
    ("cosine", 5, {"schedule": "cosine"}, [1, QUARTER, 0.5, 1 - QUARTER, 0]),
    (
        "cosine to a share",
        5,
        {"schedule": "cosine", "final_lr_fraction": 0.1},
        [1, 0.1 + 0.9 * QUARTER, 0.55, 1 - 0.9 * QUARTER, 0.1],
    ),
    ("constant", 4, {"schedule": "constant", "final_lr_fraction": 0.1}, [1, 1, 1, 1]),
    (
        "warm-up, then constant",
        5,
        {"schedule": "constant", "warmup_steps": 3},
        [0.25, 0.5, 0.75, 1, 1],
    ),
    (
        "warm-up, then linear",
        7,
        {"schedule": "linear", "warmup_steps": 2},
        [1 / 3, 2 / 3, 1, 0.75, 0.5, 0.25, 0],
    ),
    (
        "wsd falls over 4 of 10",
        10,
        {"schedule": "wsd", "decay_fraction": 0.4},
        [1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0],
    ),
    (
        "wsd, a share too small for a step",
        4,
        {"schedule": "wsd", "decay_fraction": 0.01, "final_lr_fraction": 0.1},
        [1, 1, 1, 0.1],
    ),
    (
        "wsd that falls from the start",
        5,
        {"schedule": "wsd", "decay_fraction": 1.0},
        [1, 0.75, 0.5, 0.25, 0],
    ),
    (
        "wsd, warm-up reaches into the decay",
        6,
        {"schedule": "wsd", "decay_fraction": 0.9, "warmup_steps": 3},
        [0.25, 0.5, 0.75, 1, 0.5, 0],
    ),
    ("a run of one step", 1, {"schedule": "cosine"}, [1]),
    ("a run of one step, wsd", 1, {"schedule": "wsd"}, [1]),
    ("a run of two steps", 2, {"schedule": "cosine", "final_lr_fraction": 0.1}, [1, 0.1]),
    ("two steps, one of warm-up", 2, {"schedule": "linear", "warmup_steps": 1}, [0.5, 1]),
    (
        "all but the last is warm-up",
        4,
        {"schedule": "wsd", "warmup_steps": 3},
        [0.25, 0.5, 0.75, 1],
    ),
]


@pytest.mark.parametrize(
    ("max_steps", "keys", "expected"), [row[1:] for row in BY_HAND], ids=[row[0] for row in BY_HAND]
)
def test_by_hand(max_steps: int, keys: dict[str, Any], expected: list[float]) -> None:
    assert rates(max_steps, **keys) == pytest.approx(expected, rel=1e-12, abs=1e-15)


def slow(max_steps: int, config: OptimizerConfig) -> list[float]:
    """Return the learning rates of a whole run, computed piece by piece."""
    rise = [(number + 1) / (config.warmup_steps + 1) for number in range(config.warmup_steps)]
    after = max_steps - len(rise)  # the first has the peak rate, the last the final rate
    if config.schedule == "constant" or after == 1:
        return [config.lr * share for share in rise + [1.0] * after]
    falls = after - 1
    if config.schedule == "wsd":
        falls = min(falls, max(1, round(config.decay_fraction * max_steps)))
    line = [1 - number / falls for number in range(1, falls + 1)]
    if config.schedule == "cosine":
        line = [(1 + math.cos(math.pi * (1 - share))) / 2 for share in line]
    end = config.final_lr_fraction
    return [
        config.lr * share
        for share in rise + [1.0] * (after - falls) + [end + (1 - end) * share for share in line]
    ]


@st.composite
def runs(draw: st.DrawFn) -> tuple[int, OptimizerConfig]:
    max_steps = draw(st.integers(1, 400))
    return max_steps, OptimizerConfig(
        schedule=draw(st.sampled_from(SCHEDULES)),
        lr=draw(st.floats(1e-6, 10)),
        warmup_steps=draw(st.integers(0, max_steps - 1)),
        final_lr_fraction=draw(st.floats(0, 1)),
        decay_fraction=draw(st.floats(0.001, 1)),
    )


@pytest.mark.usefixtures("takes_seconds")
@given(runs())
def test_equals_the_slow_version(run: tuple[int, OptimizerConfig]) -> None:
    max_steps, config = run
    assert [learning_rate(step, max_steps, config) for step in range(max_steps)] == pytest.approx(
        slow(*run), rel=1e-9, abs=1e-12
    )


@given(runs())
def test_every_run_rises_to_lr_and_never_rises_again(run: tuple[int, OptimizerConfig]) -> None:
    max_steps, config = run
    found = [learning_rate(step, max_steps, config) for step in range(max_steps)]
    rise, fall = found[: config.warmup_steps + 1], found[config.warmup_steps :]
    assert all(0 < rate <= config.lr for rate in rise)
    assert all(earlier < later for earlier, later in itertools.pairwise(rise))
    assert fall[0] == config.lr  # to the bit
    assert all(
        config.lr * config.final_lr_fraction * (1 - 1e-12) <= rate <= config.lr for rate in fall
    )
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in itertools.pairwise(fall))
    if config.schedule != "constant" and len(fall) > 1:
        assert fall[-1] == config.lr * config.final_lr_fraction


@given(runs())
def test_no_step_is_a_jump(run: tuple[int, OptimizerConfig]) -> None:
    """The rate changes between two updates by no more than the steepest slope of its pieces."""
    max_steps, config = run
    found = [learning_rate(step, max_steps, config) for step in range(max_steps)]
    steps_down = max(1, max_steps - 1 - config.warmup_steps)
    if config.schedule == "wsd":
        steps_down = min(steps_down, max(1, round(config.decay_fraction * max_steps)))
    steepest = config.lr * max(1 / (config.warmup_steps + 1), math.pi / 2 / steps_down)
    assert all(
        abs(later - earlier) <= steepest * (1 + 1e-9)
        for earlier, later in itertools.pairwise(found)
    )


def test_a_longer_run_has_the_same_start_and_another_end() -> None:
    """The rate depends only on the step and the length. A resumed run with another max_steps
    follows the new schedule at once.
    """
    short, long = (
        rates(100, schedule="linear", warmup_steps=10),
        rates(200, schedule="linear", warmup_steps=10),
    )
    assert short[:11] == long[:11]
    assert long[99] == pytest.approx(1 - 89 / 189)


def test_past_the_end_it_stays_at_the_end() -> None:
    config = OptimizerConfig(lr=1.0, warmup_steps=0, final_lr_fraction=0.1, schedule="cosine")
    assert learning_rate(10, 5, config) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"schedule": "linear"}, [1, 0.75, 0.5, 0.25, 0]),
        ({"schedule": "linear", "final_lr_fraction": 0.2}, [1, 0.8, 0.6, 0.4, 0.2]),
        ({"schedule": "cosine"}, [1, QUARTER, 0.5, 1 - QUARTER, 0]),
        ({"schedule": "wsd", "decay_fraction": 0.5}, [1, 1, 1, 0.5, 0]),
        ({"schedule": "constant"}, [1, 1, 1, 1, 1]),
        # the warm-up counts steps, and the decay limits it
        ({"schedule": "linear", "warmup_steps": 9}, [0.1, 0.2, 0.3, 0.25, 0]),
    ],
)
def test_by_time_the_progress_decides(keys: dict[str, Any], expected: list[float]) -> None:
    config = OptimizerConfig(**({"lr": 1.0, "warmup_steps": 0, "final_lr_fraction": 0.0} | keys))
    progress = (0.0, 0.25, 0.5, 0.75, 1.0)
    found = [learning_rate(step, 2**40, config, share) for step, share in enumerate(progress)]
    assert found == pytest.approx(expected)
