"""The shuffle is one-to-one for every size and key, different in every epoch, and the same on every
machine. Mixtures of sources have exact shares.
"""

import math
import sys
import tracemalloc
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lm.tokens.plan import Plan, permute


def shuffled(n, key):
    return permute(np.arange(n, dtype=np.uint64), n, np.full(n, key, np.uint64)).tolist()


@pytest.mark.usefixtures("takes_seconds")
@given(n=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
@settings(max_examples=150, deadline=None)
def test_every_row_once(n, key):
    assert sorted(shuffled(n, key)) == list(range(n))


@pytest.mark.parametrize(
    "n",
    [
        1,
        2,
        3,
        4,
        5,
        6,
        7,
        8,
        9,
        10,
        12,
        15,
        16,
        17,
        63,
        64,
        65,
        255,
        256,
        257,
        4095,
        4096,
        4097,
        65537,
    ],
)
def test_every_row_once_at_squares_and_powers_of_two_and_beside_them(n):
    assert sorted(shuffled(n, 7)) == list(range(n))


@given(
    index=st.lists(st.integers(0, 2**40 - 1), min_size=1, max_size=50, unique=True),
    n=st.integers(2**39, 2**40),
    key=st.integers(0, 2**63),
)
@settings(max_examples=50, deadline=None)
def test_large_ranges(index, n, key):
    index = [i for i in index if i < n]
    rows = permute(np.array(index, np.uint64), n, np.full(len(index), key, np.uint64)).tolist()
    assert len(set(rows)) == len(index)
    assert all(0 <= row < n for row in rows)


def test_one_position_at_a_time_is_the_same_as_all_at_once():
    one_by_one = [
        int(permute(np.array([i], np.uint64), 100, np.array([3], np.uint64))[0]) for i in range(100)
    ]
    assert one_by_one == shuffled(100, 3)


def test_each_position_has_its_own_key_and_any_shape():
    index, keys = np.uint64([[0, 1], [0, 1]]), np.uint64([[5, 5], [6, 6]])
    assert permute(index, 9, keys).tolist() == [shuffled(9, 5)[:2], shuffled(9, 6)[:2]]


@pytest.mark.parametrize("n", [2, 3, 5, 7, 20])
def test_the_shuffle_is_fair(n):
    """Each pair of rows is equally often at the first two places over many keys. 6 standard
    deviations give a false alarm once in 10^6 tests.
    """
    trials = 40_000
    places, keys = np.meshgrid(np.arange(n, dtype=np.uint64), np.arange(trials, dtype=np.uint64))
    first, second = permute(places[:, :2], n, keys[:, :2]).astype(np.int64).T
    expected = trials / (n * (n - 1))
    counts = np.bincount(first * n + second, minlength=n * n).reshape(n, n)
    assert not counts.diagonal().any()
    assert np.abs(counts[~np.eye(n, dtype=bool)] - expected).max() < 6 * np.sqrt(expected)


def test_all_orders_of_four_rows_occur():
    assert len({tuple(shuffled(4, key)) for key in range(1000)}) == 24


# --- one source


def rows_of_step(step, batch_size, n_rows, seed):
    """Return the rows of a step of a single source, whose epochs begin where the plan's do."""
    part, epoch, row = Plan((n_rows,), seed=seed).of_step(step, batch_size).T
    assert not part.any()
    assert epoch.tolist() == [
        position // n_rows for position in range(step * batch_size, (step + 1) * batch_size)
    ]
    return row


def slow_rows(first, last, n_rows, seed):
    """Return the rows by their definition: the epochs' shuffles, one after the other."""
    endless = []
    while len(endless) < last:
        epoch = len(endless) // n_rows
        start = epoch * n_rows
        endless += rows_of_step(0, start + n_rows, n_rows, seed)[start:].tolist()
    return endless[first:last]


@pytest.mark.usefixtures("takes_seconds")
@given(
    step=st.integers(0, 40),
    batch_size=st.integers(1, 20),
    n_rows=st.integers(1, 30),
    seed=st.integers(0, 2**63 - 1),
)
@settings(max_examples=80, deadline=None)
def test_steps_are_windows_of_the_endless_sequence(step, batch_size, n_rows, seed):
    rows = rows_of_step(step, batch_size, n_rows, seed)
    assert rows.dtype == np.int64
    assert rows.tolist() == slow_rows(step * batch_size, (step + 1) * batch_size, n_rows, seed)


def test_an_epoch_holds_each_row_once_even_where_batches_straddle_its_border():
    # two epochs of 10 rows
    rows = np.concatenate([rows_of_step(step, 4, 10, seed=1) for step in range(5)])
    assert sorted(rows[:10]) == sorted(rows[10:]) == list(range(10))


def test_epochs_and_seeds_differ():
    epochs = [tuple(rows_of_step(epoch, 50, 50, seed=1)) for epoch in range(20)]
    seeds = [tuple(rows_of_step(0, 50, 50, seed)) for seed in range(20)]
    assert len(set(epochs)) == len(set(seeds)) == 20
    assert len(set(epochs) & set(seeds)) == 1, "epoch 1 of seed 0 is not epoch 0 of seed 1"


def test_the_order_never_changes():
    """Runs are resumed with later versions of this code, so the order itself is a promise."""
    assert rows_of_step(0, 8, 1000, seed=1337).tolist() == [155, 836, 27, 975, 626, 26, 56, 993]
    assert rows_of_step(2**33, 3, 2**40, seed=2**63 - 1).tolist() == [
        1407983705,
        655909106909,
        1053549220399,
    ]


def test_memory_does_not_grow_with_the_range():
    rows_of_step(0, 32, 2**40, seed=1)
    tracemalloc.start()
    rows_of_step(123_456_789, 32, 2**40, seed=1)
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


# --- several sources

SEEDS = st.integers(0, 2**63 - 1)
# sizes and weights
PARTS = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 12)), min_size=1, max_size=5)


def plan_of(parts, when_one_ends, seed=1):
    sizes, weights = zip(*parts, strict=True)
    return Plan(sizes, weights, when_one_ends, seed)


def first_rows(plan, n):
    return [tuple(address) for address in plan.rows(np.arange(n)).tolist()]


def slow_blocks(plan):
    """Yield the number of rows of each part in a block, block after block without end."""
    weights = [weight // math.gcd(*plan.weights) for weight in plan.weights]
    left = list(plan.sizes)
    while True:
        block = weights
        if plan.when_one_ends == "go_on":
            if not any(left):
                left = list(plan.sizes)
            # A part with less than its share of a block is kept for the end. The rests of all parts
            # make one last block.
            block = [
                weight if size >= weight else 0 for size, weight in zip(left, weights, strict=True)
            ]
            block = block if any(block) else left
            left = [size - taken for size, taken in zip(left, block, strict=True)]
        yield block


def slow_mixture(plan, n):
    """Return at least n rows in blocks. Each block takes the due number of rows of each part, in
    the order of that part's own shuffled epochs.
    """
    alone = [
        iter(first_rows(Plan((size,), seed=plan.seed + i * 2**32), n + 100))
        for i, size in enumerate(plan.sizes)
    ]
    blocks = []
    shares = slow_blocks(plan)
    while sum(map(Counter.total, blocks)) < n:
        blocks.append(
            Counter(
                (i, *next(alone[i])[1:])
                for i, taken in enumerate(next(shares))
                for _ in range(taken)
            )
        )
    return blocks


def check(plan, rows):
    place = 0
    for block in slow_mixture(plan, len(rows)):
        found = Counter(rows[place : place + block.total()])
        place += block.total()
        assert found == block if place <= len(rows) else found <= block


@pytest.mark.usefixtures("takes_seconds")
@given(
    parts=PARTS,
    seed=SEEDS,
    when_one_ends=st.sampled_from(["repeat", "stop"]),
    n=st.integers(1, 300),
)
@settings(max_examples=150, deadline=None)
@example(parts=[(7, 4), (3, 4), (11, 2)], seed=0, when_one_ends="repeat", n=100)
def test_blocks_have_exact_shares_and_parts_their_own_epochs(parts, seed, when_one_ends, n):
    plan = plan_of(parts, when_one_ends, seed)
    rows = first_rows(plan, n)
    check(plan, rows)
    for i, size in enumerate(plan.sizes):  # the same, checked without `Plan`
        mine = [(epoch, row) for part, epoch, row in rows if part == i]
        assert len(set(mine)) == len(mine)
        # rows of the last block may be of this epoch or of the one before
        done = (len(mine) - max(plan.weights)) // size
        assert sorted(address for address in mine if address[0] < done) == [
            (e, row) for e in range(done) for row in range(size)
        ]


@pytest.mark.usefixtures("takes_seconds")
@given(parts=PARTS, seed=SEEDS, epochs=st.integers(1, 3))
@settings(max_examples=150, deadline=None)
@example(parts=[(2, 5), (100, 1)], seed=0, epochs=2)  # not one whole block
@example(parts=[(1, 12), (1, 11)], seed=0, epochs=2)  # nothing but what is left over
def test_going_on_gives_every_row_once_an_epoch(parts, seed, epochs):
    plan = plan_of(parts, "go_on", seed)
    rows = first_rows(plan, epochs * plan.n_rows)
    assert plan.n_rows == sum(plan.sizes)
    everything = sorted((part, row) for part, size in enumerate(plan.sizes) for row in range(size))
    for epoch in range(epochs):
        part_of_epoch = rows[epoch * plan.n_rows : (epoch + 1) * plan.n_rows]
        assert sorted((part, row) for part, _, row in part_of_epoch) == everything
        assert {e for _, e, _ in part_of_epoch} == {epoch}
    check(plan, rows)


@pytest.mark.usefixtures("takes_seconds")
@given(parts=PARTS)
@settings(max_examples=150, deadline=None)
def test_stop_ends_with_the_last_block_in_which_nothing_comes_twice(parts):
    plan = plan_of(parts, "stop")
    block = sum(weight // math.gcd(*plan.weights) for weight in plan.weights)
    rows = first_rows(plan, plan.n_rows + block)
    assert plan.n_rows % block == 0
    assert not any(epoch for _, epoch, _ in rows[: plan.n_rows])
    assert any(epoch for _, epoch, _ in rows[plan.n_rows :]), "one more block would not do"


@pytest.mark.usefixtures("takes_seconds")
@given(
    parts=PARTS,
    seed=SEEDS,
    when_one_ends=st.sampled_from(["repeat", "stop", "go_on"]),
    positions=st.lists(st.integers(0, 500)),
)
@settings(max_examples=100, deadline=None)
def test_any_position_can_be_asked_for_alone(parts, seed, when_one_ends, positions):
    plan = plan_of(parts, when_one_ends, seed)
    all_at_once = first_rows(plan, 501)
    assert [tuple(address) for address in plan.rows(np.array(positions, np.int64)).tolist()] == [
        all_at_once[p] for p in positions
    ]
    assert [tuple(plan.rows(np.array([p]))[0].tolist()) for p in positions[:10]] == [
        all_at_once[p] for p in positions[:10]
    ]
    assert [
        tuple(address) for step in range(5) for address in plan.of_step(step, 7).tolist()
    ] == all_at_once[:35]


def test_weights_are_shares_not_sizes():
    assert first_rows(plan_of([(9, 4), (9, 4), (9, 2)], "repeat"), 100) == first_rows(
        plan_of([(9, 2), (9, 2), (9, 1)], "repeat"), 100
    )


def test_a_mixture_of_one_is_that_one():
    alone = first_rows(Plan((50,), seed=3), 180)
    assert [
        first_rows(Plan((50,), (7,), when_one_ends, 3), 180)
        for when_one_ends in ("repeat", "stop", "go_on")
    ] == [alone] * 3


def test_blocks_are_shuffled_each_in_its_own_way():
    """Many blocks of 1 : 1 : 2 have each of the 12 orders equally often, within 6 sigma."""
    n = 12_000
    parts = Plan((10, 10, 10), (1, 1, 2), seed=5).rows(np.arange(4 * n))[:, 0].reshape(n, 4)
    counts = Counter(map(tuple, parts.tolist()))
    assert len(counts) == 12
    assert max(abs(count - n / 12) for count in counts.values()) < 6 * math.sqrt(n / 12)
    assert all(
        n / 12**2 / 2 < count for count in Counter(pairwise(map(tuple, parts.tolist()))).values()
    ), "whatever came before"


def test_sources_and_seeds_of_a_mixture_differ():
    rows = first_rows(Plan((40, 40), (1, 1), seed=1), 80)
    first, second = ([row for part, _, row in rows if part == i] for i in (0, 1))
    assert first != second
    assert (
        len({tuple(first_rows(Plan((40, 40), (1, 1), seed=seed), 80)) for seed in range(20)}) == 20
    )
    assert (
        len(
            {
                tuple(part for part, _, _ in first_rows(Plan((40, 40), (1, 1), seed=seed), 80))
                for seed in range(20)
            }
        )
        == 20
    )


def test_the_order_of_mixtures_never_changes():
    """Resumed runs need the order that they began with, as for one source."""
    mixed = Plan((1000, 50, 7), (4, 4, 2), seed=1337)
    assert (
        " ".join(f"{part}:{row}" for part, _, row in first_rows(mixed, 10))
        == "1:10 0:836 0:155 1:28 2:3 0:27 0:975 1:43 1:25 2:0"
    )
    assert mixed.of_step(2**33, 3).tolist() == [
        [1, 206158430, 3],
        [1, 206158430, 28],
        [0, 10307921, 831],
    ]
    last = first_rows(Plan((5, 3, 7), (3, 1, 2), "go_on", 2**63 - 1), 15)
    assert (
        " ".join(f"{part}:{row}" for part, _, row in last)
        == "0:2 0:3 0:1 1:1 2:1 2:4 1:2 2:2 2:5 2:6 1:0 2:0 2:3 0:4 0:0"
    )


@pytest.mark.parametrize("when_one_ends", ["repeat", "stop", "go_on"])
def test_no_amount_of_text_makes_a_step_slower_or_larger(when_one_ends):
    """A step of 10^12 tokens in rows of 1,024 from four sources needs about the memory and calls of
    a small plan's step.
    """

    def cost(sizes, step):
        plan = Plan(sizes, (40, 30, 20, 10), when_one_ends, seed=1)
        calls = 0

        def count(frame, event, argument):
            nonlocal calls
            calls += 1

        tracemalloc.start()
        sys.setprofile(count)
        try:
            found = plan.of_step(step, 32)
        finally:
            sys.setprofile(None)
        memory = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert (found[:, 2] < np.array(sizes)[found[:, 0]]).all()
        return memory, calls

    cost((400, 300, 200, 100), 3)
    small, large = (
        cost((400, 300, 200, 100), 3),
        cost((400_000_000, 300_000_007, 200_000_000, 100_000_000), 31_000_001),
    )
    assert large[0] < 2 * small[0] < 200_000
    assert large[1] < 2 * small[1]


@pytest.mark.usefixtures("takes_seconds")
@given(
    sizes=st.lists(st.integers(2**38, 2**40), min_size=2, max_size=4),
    weights=st.lists(st.integers(1, 1000), min_size=4, max_size=4),
)
@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("when_one_ends", ["repeat", "go_on"])
def test_large_mixtures(when_one_ends, sizes, weights):
    plan = Plan(tuple(sizes), tuple(weights[: len(sizes)]), when_one_ends, seed=9)
    block = sum(weight // math.gcd(*plan.weights) for weight in plan.weights)
    start = 10**9 // block * block
    part, epoch, row = plan.rows(np.arange(start, start + block)).T
    assert Counter(part.tolist()) == Counter(
        {i: weight // math.gcd(*plan.weights) for i, weight in enumerate(plan.weights)}
    )
    assert not epoch.any()
    assert len(set(zip(part.tolist(), row.tolist(), strict=True))) == block
    assert (row < np.array(sizes)[part]).all()


@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    weights=st.lists(st.integers(1, 5), min_size=3, max_size=3),
    step=st.integers(0, 12),
    batch=st.integers(1, 8),
)
@settings(max_examples=60, deadline=None)
def test_the_first_epoch_that_a_step_needs(sizes, weights, step, batch):
    """A step and all later ones need no earlier epoch, so a stream may forget those."""
    plan = Plan(tuple(sizes), tuple(weights[: len(sizes)]), "repeat", 3)
    later = plan.rows(np.arange(step * batch, step * batch + 40 * sum(weights)))
    for part in range(len(sizes)):
        assert plan.first_epoch_of_step(part, step, batch) == later[later[:, 0] == part, 1].min()


@pytest.mark.usefixtures("takes_seconds")
@given(
    parts=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 5)), min_size=1, max_size=3),
    when_one_ends=st.sampled_from(["repeat", "stop", "go_on"]),
    n_rows=st.integers(1, 300),
)
@settings(max_examples=150, deadline=None)
def test_passes_are_those_of_the_rows(parts, when_one_ends, n_rows):
    """Exact up to a block, in which the rows are shuffled."""
    sizes, weights = zip(*parts, strict=True)
    plan = Plan(sizes, weights, when_one_ends, seed=3)
    counted = Counter(plan.rows(np.arange(n_rows))[:, 0].tolist())
    passes = plan.passes(n_rows)
    for i, (size, weight) in enumerate(parts):
        assert abs(passes[i] * size - counted[i]) <= max(weight, size - size // weight * weight)
    assert sum(n * size for n, size in zip(passes, sizes, strict=True)) == pytest.approx(n_rows)
