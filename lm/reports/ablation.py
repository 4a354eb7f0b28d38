"""An ablation: two configurations, several seeds, and the difference with its uncertainty.

Each seed is a pair: the same seed gives both runs the same order of rows and, if the shapes allow,
the same first weights and dropout. Chance does the same to both runs of a pair, so the difference
within pairs varies less than the runs do. This module needs no torch.
"""

from __future__ import annotations

import difflib
import json
import math
import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lm.checkpoints.base import OWN
from lm.checkpoints.folder import open_checkpoint
from lm.config.schema.config import Config
from lm.display.tables import MISSING, Table, markdown_table
from lm.runs.results import read_validations
from lm.system.disk import replace
from lm.system.errors import CheckpointError

CONFIDENCE = 0.95
Number = float | None


@dataclass(frozen=True)
class Outcome:
    """The result of one run.

    Attributes:
        problem: why the run did not complete; then all else is None.
        final: the last validation's loss, in nats per token (per pair for preferences).
        lowest: the lowest validation loss.
        final_bits_per_byte: the last validation's bits per byte; None for preferences.
        lowest_bits_per_byte: the lowest bits per byte of all validations.
        tokens: how many tokens the run trained on.
        seconds: the time of training, without validation and saving.
    """

    problem: str | None = None
    final: Number = None
    lowest: Number = None
    final_bits_per_byte: Number = None
    lowest_bits_per_byte: Number = None
    tokens: int | None = None
    seconds: Number = None


def outcome(folder: Path) -> Outcome:
    """Read the result of a run that has ended.

    Raises:
        CheckpointError: the run was stopped, or a file is missing in its folder.
    """
    if not (folder / "final.ckpt").exists():
        raise CheckpointError(
            f"{folder}: the run was stopped before its end (trainer.max_minutes?); the same command"
            " goes on with it"
        )
    meta = open_checkpoint(folder / "final.ckpt").meta
    lines, _ = read_validations(folder)
    losses = [line.loss for line in lines if math.isfinite(line.loss)]
    if not lines:
        raise CheckpointError(
            f"{folder / 'evaluations.jsonl'}: the run has ended, and no validation is there; was it"
            " removed?"
        )
    if not math.isfinite(lines[-1].loss):
        return Outcome(problem="its last validation loss is not finite")
    bits = [line.bits_per_byte for line in lines if math.isfinite(line.bits_per_byte)]
    return Outcome(
        final=losses[-1],
        lowest=min(losses),
        final_bits_per_byte=bits[-1] if bits else None,
        lowest_bits_per_byte=min(bits, default=None),
        tokens=meta["tokens"],
        seconds=meta["seconds"],
    )


class Difference(NamedTuple):
    """Variant minus baseline; for losses, less is better.

    Attributes:
        values: the difference in each pair.
        mean: the mean of the values.
        low, high: the interval that holds the mean over all seeds with 95 % confidence; None for
            fewer than two pairs.
    """

    values: tuple[float, ...]
    mean: float
    low: float | None
    high: float | None


def difference(baseline: Sequence[Number], variant: Sequence[Number]) -> Difference | None:
    """Return the difference over all complete pairs, by Student's paired t; None without a pair."""
    numbers = zip(baseline, variant, strict=True)
    pairs = [(one, other) for one, other in numbers if one is not None and other is not None]
    if not pairs:
        return None
    values = tuple(other - one for one, other in pairs)
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Difference(values, mean, None, None)
    from scipy.stats import ttest_rel  # --help does not wait for it

    ones, others = zip(*pairs, strict=True)
    with warnings.catch_warnings():
        # Differences that are all alike have an interval of no width, which scipy warns about.
        warnings.simplefilter("ignore", RuntimeWarning)
        low, high = ttest_rel(others, ones).confidence_interval(CONFIDENCE)
    return Difference(values, mean, float(low), float(high))


def in_words(difference: Difference | None, unit: str) -> str:
    """Say what a difference of losses shows, and what it does not show."""
    if difference is None:
        return "cannot be compared: no seed completed both runs"
    n, better = len(difference.values), "better" if difference.mean < 0 else "worse"
    size = f"{abs(difference.mean):.4f} {unit}"
    if not any(difference.values):
        return (
            f"no difference at all: the same {unit} to the last digit over {n} seed{'s' * (n > 1)}"
        )
    if difference.low is None or difference.high is None:
        return (
            f"variant is {better} by {size} with this seed; one seed gives no interval, so another"
            " may show the opposite"
        )
    low, high = difference.low, difference.high
    ends = sorted([low, high] if difference.mean > 0 else [-low, -high])
    interval = f"[{ends[0]:.4f}, {ends[1]:.4f}] over {n} seeds"
    if ends[0] > 0:
        return f"variant is {better} by {size} {interval}"
    return (
        f"cannot be told apart: variant is {better} by {size} on average, and the interval holds 0:"
        f" {interval}"
    )


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
    # Rows of another length hold the same text if all are read. Conversations are the exception:
    # those that do not fit a row are skipped.
    cut_alike = one.row_length == other.row_length and tokens
    rows_alike = limits and (
        cut_alike or (one.trainer.validation_rows is None and not one.data.conversations)
    )
    return Kept(
        rows=rows,
        batches=rows and one.trainer.batch_size == other.trainer.batch_size,
        weights=tokens and shapes[0] == shapes[1] and starts[0] == starts[1],
        tokens=tokens,
        validation=validated and rows_alike,
    )


def _data(config: Config) -> dict[str, Any]:
    """Return the keys that determine the rows."""
    return {
        key: value
        for key, value in config.data.model_dump().items()
        if key not in ("cache_dir", "workers", "sequence_length", "document_mask")
    }


@dataclass(frozen=True)
class Ablation:
    """The runs of an ablation and their results.

    Attributes:
        config: the baseline's file.
        changes: the variant's changes, as `key=value`.
        seeds: one for each pair.
        baseline, variant: the results, in the order of the seeds.
        unit: the unit of the losses.
        kept: what baseline and variant have in common.
        texts: both configurations as YAML.
    """

    config: str
    changes: Sequence[str]
    seeds: Sequence[int]
    baseline: Sequence[Outcome]
    variant: Sequence[Outcome]
    unit: str
    kept: Kept
    texts: tuple[str, str]

    def difference_in(self, read: Callable[[Outcome], Number]) -> Difference | None:
        """Return the difference in one of the numbers."""
        return difference([read(run) for run in self.baseline], [read(run) for run in self.variant])

    @property
    def differences(self) -> dict[str, Difference]:
        """Return the differences by name.

        Losses per token come first. If the two have other tokens, such losses do not compare and
        are omitted.
        """
        nats = {
            "final loss": self.difference_in(lambda run: run.final),
            "lowest loss": self.difference_in(lambda run: run.lowest),
        }
        bits = {
            "final bits per byte": self.difference_in(lambda run: run.final_bits_per_byte),
            "lowest bits per byte": self.difference_in(lambda run: run.lowest_bits_per_byte),
        }
        return {
            name: difference
            for name, difference in (nats | bits if self.kept.tokens else bits).items()
            if difference is not None
        }

    @property
    def time_ratio(self) -> Number:
        """Return the variant's training time divided by the baseline's, over complete pairs."""
        pairs = [
            (a.seconds, b.seconds)
            for a, b in zip(self.baseline, self.variant, strict=True)
            if a.seconds and b.seconds
        ]
        return sum(b for _, b in pairs) / sum(a for a, _ in pairs) if pairs else None

    @property
    def verdict(self) -> str:
        """Return the first of the differences in words, with what speaks against trusting it."""
        differences = self.differences
        name = next(iter(differences), None)
        unit = self.unit if name == "final loss" else "bits per byte"
        words = [in_words(differences[name] if name else None, unit)]
        if lost := sum(
            a.final is None or b.final is None
            for a, b in zip(self.baseline, self.variant, strict=True)
        ):
            words.append(
                f"skipped {lost} of {len(self.seeds)} seeds, in which a run did not complete"
            )
        if not self.kept.validation:
            words.append("the two are validated on different texts, which adds to the difference")
        return "; ".join(words)

    def table(self) -> Table:
        """Return the headings and a line for each seed."""
        per_token = self.kept.tokens
        heads = [
            "seed",
            "baseline",
            "variant",
            "difference",
            "lowest: baseline",
            "variant",
            "difference",
            "tokens",
            "seconds",
            "variant",
        ]
        lines = [heads]
        for seed, one, other in zip(self.seeds, self.baseline, self.variant, strict=True):
            final = [run.final if per_token else run.final_bits_per_byte for run in (one, other)]
            lowest = [run.lowest if per_token else run.lowest_bits_per_byte for run in (one, other)]
            cells = [
                cell for pair in (final, lowest) for cell in (*map(_loss, pair), _signed(*pair))
            ]
            for place, run in ((0, one), (1, other)):
                cells[place] = run.problem or cells[place]
            tokens = (
                " / ".join(
                    dict.fromkeys(
                        f"{run.tokens:,}" for run in (one, other) if run.tokens is not None
                    )
                )
                or MISSING
            )
            lines.append(
                [
                    str(seed),
                    *cells,
                    tokens,
                    *(
                        MISSING if run.seconds is None else f"{run.seconds:.1f}"
                        for run in (one, other)
                    ),
                ]
            )
        return lines

    def lines(self) -> list[str]:
        """Return the lines that follow the table: the facts, then the verdict."""
        return [*self.facts(), self.verdict]

    def facts(self) -> list[str]:
        """Return what the runs have in common, and the differences."""
        lines = [
            f"variant = {' and '.join(self.changes)}; pairs of runs have"
            f" {', '.join(self.kept.lines())}"
        ]
        for name, difference in self.differences.items():
            interval = "(one seed: no interval)"
            if difference.low is not None:
                interval = (
                    f"[{difference.low:+.4f}, {difference.high:+.4f}] ({CONFIDENCE:.0%}, paired t"
                    f" over {len(difference.values)} seeds)"
                )
            lines.append(f"{name}: {difference.mean:+.4f} {interval}")
        if self.time_ratio is not None:
            lines.append(f"training time: {self.time_ratio:.2f} times the baseline's")
        return lines

    def as_json(self) -> dict[str, Any]:
        """Return everything but the configurations, as JSON values."""
        return {
            "config": self.config,
            "changes": list(self.changes),
            "seeds": list(self.seeds),
            "unit": self.unit,
            "same": self.kept._asdict(),
            "baseline": [asdict(run) for run in self.baseline],
            "variant": [asdict(run) for run in self.variant],
            "differences": {
                name: difference._asdict() for name, difference in self.differences.items()
            },
            "confidence": CONFIDENCE,
            "time_ratio": self.time_ratio,
            "verdict": self.verdict,
        }

    def write(self, folder: Path) -> None:
        """Write ablation.md and ablation.json into the folder. Raises CheckpointError."""
        one, other = (text.splitlines() for text in self.texts)
        diff = difflib.unified_diff(one, other, lineterm="", n=0)
        changed = [line for line in diff if line[0] in "+-"][2:]  # without the names of the files
        parts = [
            f"# {', '.join(self.changes)} against {self.config}",
            f"**{self.verdict}**",
            markdown_table(self.table()).rstrip(),
            "\n".join(f"- {line}" for line in self.facts()),
            "```diff\n" + "\n".join(changed) + "\n```",
        ]
        replace(folder / "ablation.md", "\n\n".join(parts) + "\n")
        replace(folder / "ablation.json", json.dumps(self.as_json(), indent=1) + "\n")


def _loss(value: Number) -> str:
    return MISSING if value is None else f"{value:.4f}"


def _signed(one: Number, other: Number) -> str:
    return MISSING if one is None or other is None else f"{other - one:+.4f}"
