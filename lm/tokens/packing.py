"""Whole sequences into rows: few rows, with little padding."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]


def pack(lengths: Integers, capacity: int) -> list[Integers]:
    """Which sequences each row holds: best fit, longest first (as Ding et al. 2024, "Fewer
    truncations improve language modeling").

    A sequence goes into the fullest row that has room for it. The same lengths give the same rows.

    Args:
        lengths: of n sequences, each 1 to `capacity`.
        capacity: of a row.

    Returns:
        The numbers of each row's sequences, ascending; each of 0..n-1 is in one row.
    """
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]  # rows by how much room is left
    # bit r is set where with_room[r] has some: the fullest with room for n is one shift and one
    # mask away
    rooms = 0
    for number in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[number])
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            room, row = capacity, len(rows)
            rows.append([])
        rows[row].append(number)
        if room > length:
            with_room[room - length].append(row)
            rooms |= 1 << (room - length)
    return [np.sort(np.array(row, np.int64)) for row in rows]
