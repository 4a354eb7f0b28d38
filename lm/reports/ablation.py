"""Change one thing and see what helps: two configurations, several seeds, and the difference with
its uncertainty.

Each seed is a pair: the same seed gives both runs the same order of rows and, where shapes allow,
the same first weights and dropout. What chance does to one it does to the other, and the difference
within pairs varies less than the runs do. No torch.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lm.checkpoints.base import OWN
from lm.checkpoints.folder import open_checkpoint, read_meta
from lm.config.schema.config import Config
from lm.runs.results import read_validations
from lm.system.errors import CheckpointError

CONFIDENCE = 0.95
Number = float | None


@dataclass(frozen=True)
class Outcome:
    """What one run came to.

    Attributes:
        problem: why it came to no end; then the rest is None.
        final: the last validation's loss. In nats per token; of preferences, per pair.
        lowest: the lowest one's.
        final_bits_per_byte: beside `final`; None of preferences.
        lowest_bits_per_byte: of all validations.
        tokens: trained on.
        seconds: of training, without validation and saving.
    """

    problem: str | None = None
    final: Number = None
    lowest: Number = None
    final_bits_per_byte: Number = None
    lowest_bits_per_byte: Number = None
    tokens: int | None = None
    seconds: Number = None


def outcome(folder: Path) -> Outcome:
    """Of a run that has ended. Raises CheckpointError where its folder does not hold what it
    should.
    """
    if not (folder / "final.ckpt").exists():
        raise CheckpointError(
            f"{folder}: the run was stopped before its end (trainer.max_minutes?); the same command"
            " goes on with it"
        )
    meta, (lines, _) = (
        read_meta(open_checkpoint(folder / "final.ckpt")),
        read_validations(folder),
    )
    losses = [line.loss for line in lines if math.isfinite(line.loss)]
    if not lines:
        raise CheckpointError(
            f"{folder / 'evaluations.jsonl'}: the run has ended, and no validation is there; was it"
            " removed?"
        )
    if not math.isfinite(lines[-1].loss):
        return Outcome(problem="its last validation loss is not finite")
    bits = [line.bits_per_byte for line in lines if math.isfinite(line.bits_per_byte)]
    last, best = (bits[-1], min(bits)) if bits else (None, None)
    return Outcome(None, losses[-1], min(losses), last, best, meta["tokens"], meta["seconds"])


class Difference(NamedTuple):
    """Variant minus baseline, so that of losses less is better.

    Attributes:
        values: of each pair.
        mean: of them.
        low, high: the interval that holds the mean over all seeds with 95 % confidence; None of
            fewer than two pairs.
    """

    values: tuple[float, ...]
    mean: float
    low: float | None
    high: float | None


def difference(baseline: Sequence[Number], variant: Sequence[Number]) -> Difference | None:
    """Of the pairs of which both are there, by Student's paired t; None where none is."""
    pairs = zip(baseline, variant, strict=True)
    values = tuple(other - one for one, other in pairs if one is not None and other is not None)
    if not values:
        return None
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Difference(values, mean, None, None)
    from scipy.special import stdtrit  # --help needs none of it

    t = float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2))
    margin = t * statistics.stdev(values) / math.sqrt(len(values))
    return Difference(values, mean, mean - margin, mean + margin)


def in_words(found: Difference | None, unit: str) -> str:
    """What a difference of losses says, and what it does not."""
    if found is None:
        return "cannot be compared: there is no seed with which both came to an end"
    n, better = len(found.values), "better" if found.mean < 0 else "worse"
    size = f"{abs(found.mean):.4f} {unit}"
    if not any(found.values):
        return (
            f"no difference at all: the same {unit} to the last digit over {n} seed{'s' * (n > 1)}"
        )
    if found.low is None or found.high is None:
        return (
            f"variant is {better} by {size} with this seed; of one seed there is no interval, so"
            " another may say otherwise"
        )
    ends = sorted([found.low, found.high] if found.mean > 0 else [-found.low, -found.high])
    interval = f"[{ends[0]:.4f}, {ends[1]:.4f}] over {n} seeds"
    if ends[0] > 0:
        return f"variant is {better} by {size} {interval}"
    return (
        f"cannot be told apart: variant is {better} by {size} on average, and the interval holds 0:"
        f" {interval}"
    )


class Kept(NamedTuple):
    """What two configurations have in common, for runs of the same seed.

    Attributes:
        rows: they read the same rows in the same order.
        batches: and each step has the same ones.
        weights: they begin with the same weights.
        tokens: a token is the same piece of text, so that losses per token compare.
        validation: they are validated on the same text.
    """

    rows: bool
    batches: bool
    weights: bool
    tokens: bool
    validation: bool

    def lines(self) -> list[str]:
        """In words; what is not the same begins with "not"."""
        words = {
            "rows": "the same rows in the same order",
            "batches": "the same batch at each step",
            "weights": "the same first weights",
            "tokens": "the same tokens",
            "validation": "the same validation text",
        }
        return [("" if kept else "not ") + words[name] for name, kept in self._asdict().items()]


def kept(one: Config, other: Config) -> Kept:
    """What follows from two configurations. The plan is a function of seed, rows and batch size
    (lm/tokens/plan.py); weights are drawn one after the other, so that another shape anywhere gives
    others everywhere.
    """
    tokens = one.tokenizer == other.tokenizer
    split = all(
        getattr(one.data, key) == getattr(other.data, key)
        for key in ("split", "val_fraction", "test_fraction")
    )
    same_data = _data(one) == _data(other) and one.row_length == other.row_length
    replay = [
        config.finetune and (config.finetune.replay, config.finetune.base)
        for config in (one, other)
    ]
    rows = (
        tokens
        and same_data
        and (replay[0] == replay[1] or not any(finetune and finetune[0] for finetune in replay))
    )
    shapes = [
        {key: value for key, value in config.model.model_dump().items() if key not in OWN}
        for config in (one, other)
    ]
    starts = [
        config.finetune and (config.finetune.base, config.finetune.method, config.finetune.lora)
        for config in (one, other)
    ]
    validated = one.data.validation == other.data.validation and (
        one.data.validation is not None or (one.data.source == other.data.source and split)
    )
    limits = one.trainer.validation_rows == other.trainer.validation_rows
    # Of all rows the length does not matter, but that conversations which do not fit one are left
    # out.
    cut_alike = one.row_length == other.row_length and tokens
    whole = limits and (
        cut_alike or (one.trainer.validation_rows is None and not one.data.conversations)
    )
    return Kept(
        rows=rows,
        batches=rows and one.trainer.batch_size == other.trainer.batch_size,
        weights=tokens and shapes[0] == shapes[1] and starts[0] == starts[1],
        tokens=tokens,
        validation=validated and whole,
    )


def _data(config: Config) -> dict[str, Any]:
    """What the rows follow from."""
    return {
        key: value
        for key, value in config.data.model_dump().items()
        if key not in ("cache_dir", "workers", "sequence_length", "document_mask")
    }
