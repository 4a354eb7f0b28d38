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

from lm.checkpoints.folder import open_checkpoint
from lm.display.tables import MISSING, Table, markdown_table
from lm.reports.pairing import Kept
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
        both = "baseline, variant, difference"
        lines = [f"seed, {both}, lowest: {both}, tokens, seconds, variant".split(", ")]
        for seed, *pair in zip(self.seeds, self.baseline, self.variant, strict=True):
            if self.kept.tokens:
                final, lowest = [run.final for run in pair], [run.lowest for run in pair]
            else:
                final = [run.final_bits_per_byte for run in pair]
                lowest = [run.lowest_bits_per_byte for run in pair]
            ends = [run.problem or _shown(loss) for run, loss in zip(pair, final, strict=True)]
            tokens = dict.fromkeys(f"{run.tokens:,}" for run in pair if run.tokens is not None)
            lines.append(
                [
                    *(str(seed), *ends, _signed(*final)),
                    *(*map(_shown, lowest), _signed(*lowest)),
                    " / ".join(tokens) or MISSING,
                    *(_shown(run.seconds, 1) for run in pair),
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


def _shown(value: Number, digits: int = 4) -> str:
    return MISSING if value is None else f"{value:.{digits}f}"


def _signed(one: Number, other: Number) -> str:
    return MISSING if one is None or other is None else f"{other - one:+.4f}"
