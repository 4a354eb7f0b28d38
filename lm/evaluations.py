"""What checkpoints scored when their run validated them, by the bytes that were measured. Only the standard library."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any, NamedTuple

from lm.errors import printable


class Recorded(NamedTuple):
    """A validation's result; None: it was not finite, or the run has no such number.

    Attributes:
        loss: nats per token.
        bits_per_byte: of the text.
    """

    loss: float | None
    bits_per_byte: float | None


NOTHING = Recorded(None, None)


def read_results(file: Path) -> dict[tuple[int, str], Recorded]:
    """(step, manifest hash) -> the latest result of an evaluations.jsonl. Only the very bytes that were measured have it.

    Said on stderr: a line that is damaged, and so not used.
    """
    results = {}
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            result = json.loads(line)
            recorded = Recorded(_finite(result["loss"]), _finite(result.get("bits_per_byte")))
            results[int(result["step"]), str(result["manifest_sha256"])] = recorded
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            print(f"{printable(str(file))}:{number}: this line is damaged and not used", file=sys.stderr)
    return results


def _finite(value: Any) -> float | None:
    """A number; null is what was not finite, as JSON has it."""
    return None if value is None or not math.isfinite(number := float(value)) else number
