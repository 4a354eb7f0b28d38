"""What a run recorded of its validations, as evaluations.jsonl has it: by the bytes that were
measured, or all of it. Only the standard library.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from lm.runs.folder import MOST_RESULTS
from lm.system.disk import read_text
from lm.system.errors import printable
from lm.system.json_values import number, text, whole


class Recorded(NamedTuple):
    """A validation's result; None: it was not finite, or the run has no such number.

    Attributes:
        loss: nats per token.
        bits_per_byte: of the text.
    """

    loss: float | None
    bits_per_byte: float | None


NOTHING = Recorded(None, None)


@dataclass(frozen=True)
class Validation:
    """A line of evaluations.jsonl. `loss` and `bits_per_byte` are NaN where they were not finite,
    `perplexity` is infinite then.

    Attributes:
        sources: name -> (nats per token, tokens), where it was measured for each source.
    """

    step: int
    loss: float
    perplexity: float
    bits_per_byte: float
    tokens: int | None
    seconds: float | None
    sample: str | None
    manifest_sha256: str | None
    sources: Mapping[str, tuple[float, int]] = field(default_factory=dict)


def read_results(file: Path) -> dict[tuple[int, str], Recorded]:
    """(step, manifest hash) -> the latest result of an evaluations.jsonl. Only the very bytes that
    were measured have it.

    Said on stderr: a line that is damaged, and so not used.
    """
    results = {}
    lines = (
        file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    )
    for place, line in enumerate(lines, start=1):
        try:
            result = json.loads(line)
            recorded = Recorded(_finite(result["loss"]), _finite(result.get("bits_per_byte")))
            results[int(result["step"]), str(result["manifest_sha256"])] = recorded
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            print(
                f"{printable(str(file))}:{place}: this line is damaged and not used",
                file=sys.stderr,
            )
    return results


def read_validations(file: Path) -> tuple[list[Validation], list[int]]:
    """The validations, by step, and the numbers of damaged lines, which are left out. Raises
    OSError, ValueError.
    """
    by_step, damaged = {}, []
    for line, content in enumerate(
        read_text(file, MOST_RESULTS, errors="replace").split("\n"), start=1
    ):
        if not content:
            continue
        try:
            values = json.loads(content)
        except (ValueError, RecursionError):
            values = None
        if (step := whole(values, "step")) is None or "loss" not in values:
            damaged.append(line)
        else:
            by_step[step] = _validation(step, values)  # of one that was done again the later
    return [by_step[step] for step in sorted(by_step)], damaged


def _validation(step: int, values: Mapping[str, Any]) -> Validation:
    loss, perplexity, bits = (
        number(values, key) for key in ("loss", "perplexity", "bits_per_byte")
    )
    sources = values.get("sources")
    each = (
        {str(name): (number(of, "loss"), whole(of, "tokens")) for name, of in sources.items()}
        if isinstance(sources, Mapping)
        else {}
    )
    return Validation(
        step=step,
        loss=math.nan if loss is None else loss,
        perplexity=math.inf if perplexity is None else perplexity,
        bits_per_byte=math.nan if bits is None else bits,
        tokens=whole(values, "tokens"),
        seconds=number(values, "seconds"),
        sample=text(values, "sample"),
        manifest_sha256=text(values, "manifest_sha256"),
        sources={name: (a, b) for name, (a, b) in each.items() if a is not None and b is not None},
    )


def _finite(value: Any) -> float | None:
    """A number; null is what was not finite, as JSON has it."""
    return None if value is None or not math.isfinite(as_float := float(value)) else as_float
