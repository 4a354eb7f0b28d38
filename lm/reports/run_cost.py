"""The part of a report about what a run took: time, speed, memory, and an estimate of the energy."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator
from datetime import datetime

from lm.display.html import Html, element, joined
from lm.display.tables import html_table
from lm.runs.record import RunRecord
from lm.system.json_values import number, text
from lm.system.units import duration

# What a device is taken to draw while it trains. Nobody measured it: --watts does better.
WATTS = {"cpu": 65.0, "mps": 40.0, "cuda": 350.0}
# their highest, by NVIDIA
BOARDS = {
    "H200": 700.0,
    "H100": 700.0,
    "A100": 400.0,
    "L4": 72.0,
    "T4": 70.0,
    "4090": 450.0,
    "3090": 350.0,
}


def cost(run: RunRecord, watts: float | None) -> Html:
    """Time by phase, speed, and the energy that it comes to with a power that is assumed, or
    `watts` if they are given.
    """
    training, validating = (
        run.seconds,
        sum(v.seconds for v in run.validations if v.seconds is not None),
    )
    unit = "not recorded"
    lines = [["time", "", "of it"]]
    elapsed = _elapsed(run)
    phases = [
        ("training steps", training),
        ("validations and samples", validating if run.validations else None),
    ]
    for name, seconds in phases:
        share = f"{seconds / elapsed:.0%}" if seconds is not None and elapsed else ""
        lines.append([name, unit if seconds is None else duration(seconds), share])
    if (
        elapsed is not None
        and training is not None
        and (rest := elapsed - training - validating) >= 0
    ):
        lines.append(
            [
                "the rest: saving, pauses, steps that were lost and done again",
                duration(rest),
                f"{rest / elapsed:.0%}" if elapsed else "",
            ]
        )
    lines.append(
        [
            "from the first to the last line of metrics.csv",
            unit if elapsed is None else duration(elapsed),
            "",
        ]
    )
    return joined(
        [
            html_table(lines, "Time, as recorded"),
            html_table([["speed and memory", ""], *_speed(run)]),
            *_energy(run, watts, validating),
        ]
    )


def _speed(run: RunRecord) -> Iterator[list[str]]:
    speeds = [value for _, value in run.points("train", "tokens_per_second")]
    if run.tokens and run.seconds:
        yield ["tokens per second of training, on the whole", f"{run.tokens / run.seconds:,.0f}"]
    yield [
        "tokens per second, median of the logged steps",
        f"{statistics.median(speeds):,.0f}" if speeds else "not recorded",
    ]
    utilised = [value for _, value in run.points("train", "mfu")]
    if utilised:
        yield [
            "share of the machine's measured matmul peak, median",
            f"{statistics.median(utilised):.1%}",
        ]
    memory = [value for _, value in run.points("train", "peak_memory_mb")]
    yield ["memory at its peak", f"{max(memory):,.0f} MB" if memory else "not recorded"]


def _energy(run: RunRecord, watts: float | None, validating: float) -> Iterator[Html]:
    if run.seconds is None:
        yield element(
            "p",
            "Energy: no training time is recorded, so there is nothing to estimate it from.",
            class_="quiet",
        )
        return
    power, assumed = (watts, "as --watts says") if watts is not None else _assumed(run)
    seconds = run.seconds + validating
    amount = power * seconds / 3600
    shown = f"{amount / 1000:.3g} kWh" if amount >= 1000 else f"{amount:.3g} Wh"
    basis = (
        f"Nothing was measured: it is {power:g} W ({assumed}) times the {duration(seconds)} of"
        " training and validation."
    )
    yield element("p", element("strong", f"Energy, an estimate: about {shown}. "), basis)
    if watts is None:
        more = (
            "A plug meter, or the provider, knows the true power: --watts takes it. What the"
            " parents took is not in it."
        )
        yield element("p", more, class_="quiet small")


def _assumed(run: RunRecord) -> tuple[float, str]:
    device, gpu = text(run.meta, "device") or "cpu", text(run.meta, "hardware", "gpu") or ""
    count = int(number(run.config, "trainer", "devices") or 1) * int(
        number(run.config, "trainer", "num_nodes") or 1
    )
    count = max(1, count) if device == "cuda" else 1
    each, why = WATTS.get(device, WATTS["cpu"]), f"assumed for {device}, whichever it is"
    for name, highest in BOARDS.items() if device == "cuda" else ():
        if re.search(rf"\b{name}\b", gpu):
            each, why = (
                highest,
                f"the highest of a board named {name}, without the rest of the machine",
            )
    return each * count, why + (f", times {count}" if count > 1 else "")


def _elapsed(run: RunRecord) -> float | None:
    stamps = []
    for row in run.rows:
        try:
            stamps.append(datetime.fromisoformat(row["timestamp"]).timestamp())
        except (ValueError, OverflowError, TypeError):
            continue
    return max(stamps) - min(stamps) if len(stamps) > 1 else None
