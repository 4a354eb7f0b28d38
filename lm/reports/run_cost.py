"""The part of a report about what a run took: time, speed, memory, and energy at a given power."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from datetime import datetime

from lm.display.html import Html, element, joined
from lm.display.tables import NOT_RECORDED, html_table
from lm.runs.record import RunRecord
from lm.system.units import duration


def cost(run: RunRecord, watts: float | None) -> Html:
    """Return the time of each phase, speed, memory and, if `watts` are given, the energy."""
    training = run.seconds
    validating = sum(v.seconds for v in run.validations if v.seconds is not None)
    elapsed = _elapsed(run)
    lines = [["time", "", "share"]]
    phases = [
        ("training steps", training),
        ("validations and samples", validating if run.validations else None),
    ]
    for name, seconds in phases:
        share = f"{seconds / elapsed:.0%}" if seconds is not None and elapsed else ""
        lines.append([name, NOT_RECORDED if seconds is None else duration(seconds), share])
    if elapsed is not None and training is not None:
        rest = elapsed - training - validating
        if rest >= 0:
            name = "the rest: saving, pauses, steps repeated after an interruption"
            lines.append([name, duration(rest), f"{rest / elapsed:.0%}" if elapsed else ""])
    total = NOT_RECORDED if elapsed is None else duration(elapsed)
    lines.append(["all of it, by the lines of metrics.csv", total, ""])
    return joined(
        [
            html_table(lines, "Time, as recorded"),
            html_table([["speed and memory", ""], *_speed(run)]),
            *([_energy(training, validating, watts)] if watts is not None else []),
        ]
    )


def _speed(run: RunRecord) -> Iterator[list[str]]:
    speeds = [value for _, value in run.points("train", "tokens_per_second")]
    if run.tokens and run.seconds:
        yield ["tokens per second of training, overall", f"{run.tokens / run.seconds:,.0f}"]
    median = f"{statistics.median(speeds):,.0f}" if speeds else NOT_RECORDED
    yield ["tokens per second, median of the logged steps", median]
    utilised = [value for _, value in run.points("train", "mfu")]
    if utilised:
        name = "share of the machine's measured matmul peak, median"
        yield [name, f"{statistics.median(utilised):.1%}"]
    memory = [value for _, value in run.points("train", "peak_memory_mb")]
    yield ["peak memory", f"{max(memory):,.0f} MB" if memory else NOT_RECORDED]


def _energy(training: float | None, validating: float, watts: float) -> Html:
    if training is None:
        return element("p", "Energy: no training time is recorded.", class_="quiet")
    seconds = training + validating
    amount = watts * seconds / 3600
    shown = f"{amount / 1000:.3g} kWh" if amount >= 1000 else f"{amount:.3g} Wh"
    basis = (
        f", which is {watts:g} W (--watts) times the {duration(seconds)} of training and"
        " validation."
    )
    return element("p", element("strong", f"Energy: about {shown}"), basis)


def _elapsed(run: RunRecord) -> float | None:
    """Return the seconds that the log covers, with the validation that its first line ends."""
    stamps = []
    for row in run.rows:
        try:
            stamps.append(datetime.fromisoformat(row["timestamp"]).timestamp())
        except (ValueError, OverflowError, TypeError):
            continue
    if len(stamps) < 2:
        return None
    first = run.validations[0] if run.validations else None
    opening = first.seconds if first and first.seconds and run.rows[0]["split"] == "val" else 0.0
    return max(stamps) - min(stamps) + opening
