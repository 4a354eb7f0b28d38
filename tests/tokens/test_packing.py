"""Sequences into rows, held against the slow and obvious best fit."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lm.tokens.packing import pack


def best_fit(lengths, capacity):
    """How much each row holds, longest sequences first, each into the fullest row that has room."""
    rows = []
    for length in sorted(lengths, reverse=True):
        fitting = [i for i, used in enumerate(rows) if used + length <= capacity]
        if fitting:
            rows[max(fitting, key=lambda i: rows[i])] += length
        else:
            rows.append(length)
    return rows


@given(
    st.integers(1, 40).flatmap(
        lambda capacity: st.tuples(
            st.just(capacity), st.lists(st.integers(1, capacity), max_size=60)
        )
    )
)
def test_each_sequence_is_in_one_row_and_rows_are_as_full_as_best_fit_makes_them(case):
    capacity, lengths = case
    rows = pack(np.array(lengths, np.int64), capacity)
    assert sorted(number for row in rows for number in row.tolist()) == list(range(len(lengths)))
    used = [sum(lengths[number] for number in row.tolist()) for row in rows]
    assert all(0 < size <= capacity for size in used)
    assert sorted(used) == sorted(best_fit(lengths, capacity))


def test_the_same_lengths_give_the_same_rows():
    lengths = np.random.default_rng(0).integers(1, 100, 1000)
    assert [row.tolist() for row in pack(lengths, 128)] == [
        row.tolist() for row in pack(lengths.copy(), 128)
    ]


def test_little_is_padding():
    lengths = np.random.default_rng(0).integers(1, 64, 2000)
    assert lengths.sum() / (len(pack(lengths, 128)) * 128) > 0.99
