"""The shuffle: one-to-one for every size and key, different in every epoch, the same on every machine."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.plan import permute, rows_of_step


def shuffled(n, key):
    return permute(np.arange(n, dtype=np.uint64), n, np.full(n, key, np.uint64)).tolist()


@given(n=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
@settings(max_examples=150, deadline=None)
def test_every_row_once(n, key):
    assert sorted(shuffled(n, key)) == list(range(n))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 16, 17, 63, 64, 65, 255, 256, 257, 4095, 4096, 4097, 65537])
def test_every_row_once_at_squares_and_powers_of_two_and_beside_them(n):
    assert sorted(shuffled(n, 7)) == list(range(n))


@given(
    index=st.lists(st.integers(0, 2**40 - 1), min_size=1, max_size=50, unique=True), n=st.integers(2**39, 2**40), key=st.integers(0, 2**63)
)
@settings(max_examples=50, deadline=None)
def test_large_ranges(index, n, key):
    index = [i for i in index if i < n]
    rows = permute(np.array(index, np.uint64), n, np.full(len(index), key, np.uint64)).tolist()
    assert len(set(rows)) == len(index)
    assert all(0 <= row < n for row in rows)


def test_one_position_at_a_time_is_the_same_as_all_at_once():
    one_by_one = [int(permute(np.array([i], np.uint64), 100, np.array([3], np.uint64))[0]) for i in range(100)]
    assert one_by_one == shuffled(100, 3)


def test_each_position_has_its_own_key_and_any_shape():
    index, keys = np.uint64([[0, 1], [0, 1]]), np.uint64([[5, 5], [6, 6]])
    assert permute(index, 9, keys).tolist() == [shuffled(9, 5)[:2], shuffled(9, 6)[:2]]


@pytest.mark.parametrize("n", [2, 3, 5, 7, 20])
def test_the_shuffle_is_fair(n):
    """Over many keys each pair of rows is as often at the first two places. 6 standard deviations: a false alarm once in 10^6 tests."""
    trials = 40_000
    places, keys = np.meshgrid(np.arange(n, dtype=np.uint64), np.arange(trials, dtype=np.uint64))
    first, second = permute(places[:, :2], n, keys[:, :2]).astype(np.int64).T
    expected = trials / (n * (n - 1))
    counts = np.bincount(first * n + second, minlength=n * n).reshape(n, n)
    assert not counts.diagonal().any()
    assert np.abs(counts[~np.eye(n, dtype=bool)] - expected).max() < 6 * np.sqrt(expected)


def test_all_orders_of_four_rows_occur():
    assert len({tuple(shuffled(4, key)) for key in range(1000)}) == 24


def slow_rows(first, last, n_rows, seed):
    """What steps are defined as: the epochs' shuffles, one after the other."""
    endless = []
    while len(endless) < last:
        epoch = len(endless) // n_rows
        start = epoch * n_rows
        endless += rows_of_step(0, start + n_rows, n_rows, seed)[start:].tolist()
    return endless[first:last]


@given(step=st.integers(0, 40), batch_size=st.integers(1, 20), n_rows=st.integers(1, 30), seed=st.integers(0, 2**63 - 1))
@settings(max_examples=80, deadline=None)
def test_steps_are_windows_of_the_endless_sequence(step, batch_size, n_rows, seed):
    rows = rows_of_step(step, batch_size, n_rows, seed)
    assert rows.dtype == np.int64
    assert rows.tolist() == slow_rows(step * batch_size, (step + 1) * batch_size, n_rows, seed)


def test_an_epoch_holds_each_row_once_even_where_batches_straddle_its_border():
    rows = np.concatenate([rows_of_step(step, 4, 10, seed=1) for step in range(5)])  # two epochs of 10 rows
    assert sorted(rows[:10]) == sorted(rows[10:]) == list(range(10))


def test_epochs_and_seeds_differ():
    epochs = [tuple(rows_of_step(epoch, 50, 50, seed=1)) for epoch in range(20)]
    seeds = [tuple(rows_of_step(0, 50, 50, seed)) for seed in range(20)]
    assert len(set(epochs)) == len(set(seeds)) == 20
    assert len(set(epochs) & set(seeds)) == 1, "epoch 1 of seed 0 is not epoch 0 of seed 1"


def test_the_order_never_changes():
    """Runs are resumed with later versions of this code, so the order itself is a promise."""
    assert rows_of_step(0, 8, 1000, seed=1337).tolist() == [155, 836, 27, 975, 626, 26, 56, 993]
    assert rows_of_step(2**33, 3, 2**40, seed=2**63 - 1).tolist() == [1407983705, 655909106909, 1053549220399]


def test_memory_does_not_grow_with_the_range():
    rows_of_step(0, 32, 2**40, seed=1)
    tracemalloc.start()
    rows_of_step(123_456_789, 32, 2**40, seed=1)
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()
