"""What two configurations have in common in runs of the same seed."""

from __future__ import annotations

from typing import Any, NamedTuple

from lm.checkpoints.base import OWN
from lm.config.schema.config import Config

# Keys of the section data that do not change which rows there are.
WITHOUT_EFFECT = {"cache_dir", "workers", "sequence_length", "document_mask"}


class Kept(NamedTuple):
    """The things that two configurations have in common in runs of the same seed.

    Attributes:
        rows: both read the same rows in the same order.
        batches: each step has the same rows.
        weights: both begin with the same weights.
        tokens: a token is the same piece of text, so that losses per token compare.
        validation: both are validated on the same text.
    """

    rows: bool
    batches: bool
    weights: bool
    tokens: bool
    validation: bool

    def lines(self) -> list[str]:
        """Return each thing in words; "not" precedes those that differ."""
        words = {
            "rows": "the same rows in the same order",
            "batches": "the same batch at each step",
            "weights": "the same first weights",
            "tokens": "the same tokens",
            "validation": "the same validation text",
        }
        return [("" if kept else "not ") + words[name] for name, kept in self._asdict().items()]


def kept(one: Config, other: Config) -> Kept:
    """Derive from two configurations what their runs have in common.

    The plan is a function of seed, rows and batch size (lm/tokens/plan.py). Weights are drawn one
    after the other, so that another shape anywhere gives other weights everywhere.
    """
    tokens = one.tokenizer == other.tokenizer
    cut_alike = tokens and one.row_length == other.row_length
    rows = cut_alike and _text(one) == _text(other)
    # Rows of another length hold the same text if all are read. Conversations are the exception:
    # those that do not fit a row are skipped.
    read_alike = one.trainer.validation_rows == other.trainer.validation_rows and (
        cut_alike or (one.trainer.validation_rows is None and not one.data.conversations)
    )
    return Kept(
        rows=rows,
        batches=rows and one.trainer.batch_size == other.trainer.batch_size,
        weights=tokens and _start(one) == _start(other),
        tokens=tokens,
        validation=read_alike and _held_out(one) == _held_out(other),
    )


def _text(config: Config) -> tuple[object, ...]:
    """Return what determines the text of the rows, and the base's text that is replayed in it."""
    tuning = config.finetune
    replay = (tuning.replay, tuning.base) if tuning is not None and tuning.replay else None
    return config.data.model_dump(exclude=WITHOUT_EFFECT), replay


def _start(config: Config) -> tuple[object, ...]:
    """Return what determines the first weights."""
    tuning = config.finetune
    base = None if tuning is None else (tuning.base, tuning.method, tuning.lora)
    return config.model.model_dump(exclude=OWN), base


def _held_out(config: Config) -> Any:
    """Return what determines the validation text."""
    data = config.data
    if data.validation is not None:
        return data.validation
    return data.source, data.split, data.val_fraction, data.test_fraction
