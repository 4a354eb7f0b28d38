"""evaluations.jsonl, the record of a run's validations: its one class, its reader and its writer.

One line of strict JSON for each validation. JSON has no NaN and no infinity: a figure that was not
finite is null in the file. This file needs only the standard library, because list.py and refusing
a run must be instant.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any

from lm.runs.lines import left_out, read_records
from lm.system.disk import append, replace
from lm.system.errors import CheckpointError, printable
from lm.system.json_values import count, finite, number, text

FILE = "evaluations.jsonl"


@dataclass(frozen=True)
class RecordedValidation:
    """One line of evaluations.jsonl: the score of the weights after `step` updates.

    Attributes:
        manifest_sha256: names the checkpoint that was scored; None at step 0, which has none.
        loss: nats per token (per pair of answers for DPO); NaN if it was not finite.
        perplexity: infinite if it was not finite; None if the loss is not that of a token.
        bits_per_byte: NaN if it was not finite or not recorded.
        tokens: the number of tokens that were scored; None if it was not recorded.
        seconds: the time that the validation took; None if it was not recorded.
        sample: a text that the model wrote at this step.
        sources: the figures of each data source, as they stand in the file.
        text_bytes: the bytes of text that was scored. None in older records, whose bits per byte
            count the bytes of all conversations, also of those that did not fit into a row.
    """

    step: int
    manifest_sha256: str | None
    loss: float
    perplexity: float | None
    bits_per_byte: float
    tokens: int | None
    seconds: float | None
    sample: str | None = None
    sources: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    text_bytes: int | None = None

    @property
    def losses_by_source(self) -> dict[str, tuple[float, int]]:
        """The loss and the number of tokens of each source for which both are known."""
        figures = {
            name: (number(values, "loss"), count(values, "tokens"))
            for name, values in self.sources.items()
        }
        return {
            name: (loss, tokens)
            for name, (loss, tokens) in figures.items()
            if loss is not None and tokens is not None
        }


def read_validations(run: Path) -> tuple[list[RecordedValidation], list[int]]:
    """Return a run's recorded validations, oldest first, and the numbers of damaged lines.

    A line that a kill cut short is damaged. Its validation does not count; a resumed run repeats
    it. A step that was validated twice has two entries. A run without the file has none.

    Raises:
        CheckpointError: the file cannot be read.
    """
    return read_records(run / FILE, _parse)


def read_by_checkpoint(run: Path) -> dict[tuple[int, str], RecordedValidation]:
    """Return the latest validation of each (step, manifest hash).

    The hash makes sure that a result belongs to the very bytes that were scored. Damaged lines, and
    a file that cannot be read, are reported on stderr: checkpoints are whole without their results.
    """
    try:
        validations, damaged = read_validations(run)
        messages = [f"{run}: {message}" for message in left_out(run / FILE, damaged)]
    except CheckpointError as error:
        validations, messages = [], [f"{error}; the losses in it are left out"]
    for message in messages:
        print(printable(message), file=sys.stderr)
    return {(v.step, v.manifest_sha256): v for v in validations if v.manifest_sha256 is not None}


def append_validation(run: Path, validation: RecordedValidation) -> None:
    """Add a line durably. Raises CheckpointError."""
    append(run / FILE, _to_json(validation))


def write_validations(run: Path, validations: Iterable[RecordedValidation]) -> None:
    """Replace the file. Raises CheckpointError."""
    replace(run / FILE, "".join(_to_json(validation) + "\n" for validation in validations))


def validations_without_progress(validations: Sequence[RecordedValidation]) -> int:
    """Count the validations since the lowest loss; early stopping compares it with its patience."""
    losses = [math.inf if math.isnan(v.loss) else v.loss for v in validations]
    return len(losses) - 1 - losses.index(min(losses)) if losses else 0


def _parse(values: dict[str, Any] | None) -> RecordedValidation | None:
    """Return the validation of a line's values; None if the line is damaged.

    Step and loss must be usable. Keys that this version does not know are ignored, as are other
    values of a wrong type.
    """
    step = count(values, "step")
    if (
        values is None
        or step is None
        or "loss" not in values
        or type(values["loss"]) not in (int, float, NoneType)
    ):
        return None
    loss, sources = number(values, "loss"), values.get("sources", {})
    if (loss is None and isinstance(values["loss"], int)) or not isinstance(sources, dict):
        return None  # an integer beyond all numbers, or figures in a place that nobody knows
    perplexity, bits_per_byte = number(values, "perplexity"), number(values, "bits_per_byte")
    return RecordedValidation(
        step=step,
        manifest_sha256=text(values, "manifest_sha256"),
        loss=math.nan if loss is None else loss,
        perplexity=math.inf if perplexity is None and "perplexity" in values else perplexity,
        bits_per_byte=math.nan if bits_per_byte is None else bits_per_byte,
        tokens=count(values, "tokens"),
        seconds=number(values, "seconds"),
        sample=text(values, "sample"),
        sources=sources,
        text_bytes=count(values, "text_bytes"),
    )


def _to_json(validation: RecordedValidation) -> str:
    values = asdict(validation)
    for key in ("sources", "perplexity"):
        if values[key] in ({}, None):
            del values[key]
    return json.dumps(finite(values))  # strict JSON has neither NaN nor infinity
