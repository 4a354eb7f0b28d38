"""An ablation for people and for programs: the table, what it says in words, and the file in its
folder.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lm.reports.ablation import CONFIDENCE, Difference, Kept, Number, Outcome, difference, in_words
from lm.system.disk import replace

Table = list[list[str]]


@dataclass(frozen=True)
class Ablation:
    """What was run, and what came of it.

    Attributes:
        config: the file of the baseline.
        changes: what the variant changes, as `key=value`.
        seeds: one for each pair.
        baseline, variant: the runs, in the order of the seeds.
        unit: of the losses.
        kept: what the two have in common.
        texts: both configurations.
    """

    config: str
    changes: Sequence[str]
    seeds: Sequence[int]
    baseline: Sequence[Outcome]
    variant: Sequence[Outcome]
    unit: str
    kept: Kept
    texts: tuple[str, str]

    def of(self, read: Callable[[Outcome], Number]) -> Difference | None:
        """The difference in one of the numbers."""
        return difference(
            [read(each) for each in self.baseline], [read(each) for each in self.variant]
        )

    @property
    def differences(self) -> dict[str, Difference]:
        """By name. Losses per token come first where both have the same tokens; where not, they do
        not compare, and are left out.
        """
        nats = {
            "final loss": self.of(lambda run: run.final),
            "lowest loss": self.of(lambda run: run.lowest),
        }
        bits = {
            "final bits per byte": self.of(lambda run: run.final_bits_per_byte),
            "lowest bits per byte": self.of(lambda run: run.lowest_bits_per_byte),
        }
        return {
            name: found
            for name, found in (nats | bits if self.kept.tokens else bits).items()
            if found is not None
        }

    @property
    def time_ratio(self) -> Number:
        """The variant's training time, of the baseline's, where both came to an end."""
        pairs = [
            (a.seconds, b.seconds)
            for a, b in zip(self.baseline, self.variant, strict=True)
            if a.seconds and b.seconds
        ]
        return sum(b for _, b in pairs) / sum(a for a, _ in pairs) if pairs else None

    @property
    def verdict(self) -> str:
        """The first of the differences in words, and what stands against trusting it."""
        differences = self.differences
        name = next(iter(differences), None)
        unit = self.unit if name == "final loss" else "bits per byte"
        words = [in_words(differences[name] if name else None, unit)]
        if lost := sum(
            a.final is None or b.final is None
            for a, b in zip(self.baseline, self.variant, strict=True)
        ):
            words.append(f"{lost} of {len(self.seeds)} seeds left out, since a run came to no end")
        if not self.kept.validation:
            words.append(
                "they are not validated on the same text, so the difference is not the change's"
                " alone"
            )
        return "; ".join(words)

    def table(self) -> Table:
        """A line for each seed, under headings."""
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
                or "-"
            )
            lines.append(
                [
                    str(seed),
                    *cells,
                    tokens,
                    *("-" if run.seconds is None else f"{run.seconds:.1f}" for run in (one, other)),
                ]
            )
        return lines

    def lines(self) -> list[str]:
        """What is said below the table."""
        found = [
            f"variant = {' and '.join(self.changes)}; pairs of runs have"
            f" {', '.join(self.kept.lines())}"
        ]
        for name, each in self.differences.items():
            interval = "(one seed: no interval)"
            if each.low is not None:
                interval = (
                    f"[{each.low:+.4f}, {each.high:+.4f}] ({CONFIDENCE:.0%}, paired t over"
                    f" {len(each.values)} seeds)"
                )
            found.append(f"{name}: {each.mean:+.4f} {interval}")
        if self.time_ratio is not None:
            found.append(f"training time: {self.time_ratio:.2f} times the baseline's")
        return [*found, self.verdict]

    def as_json(self) -> dict[str, Any]:
        """All of it, for programs."""
        return {
            "config": self.config,
            "changes": list(self.changes),
            "seeds": list(self.seeds),
            "unit": self.unit,
            "same": self.kept._asdict(),
            "baseline": [asdict(run) for run in self.baseline],
            "variant": [asdict(run) for run in self.variant],
            "differences": {name: found._asdict() for name, found in self.differences.items()},
            "confidence": CONFIDENCE,
            "time_ratio": self.time_ratio,
            "verdict": self.verdict,
        }

    def write(self, folder: Path) -> None:
        """ablation.md and ablation.json in the folder. Raises CheckpointError."""
        head, *rows = self.table()
        table = [
            f"| {' | '.join(row)} |" for row in (head, ["---"] + ["---:"] * (len(head) - 1), *rows)
        ]
        one, other = (text.splitlines() for text in self.texts)
        changed = [
            line for line in difflib.unified_diff(one, other, lineterm="", n=0) if line[0] in "+-"
        ]
        parts = [
            f"# {', '.join(self.changes)} against {self.config}",
            f"**{self.verdict}**",
            "\n".join(table),
        ]
        parts += [
            "\n".join(f"- {line}" for line in self.lines()[:-1]),
            "```diff\n" + "\n".join(changed[2:]) + "\n```",
        ]
        replace(folder / "ablation.md", "\n\n".join(parts) + "\n")
        replace(folder / "ablation.json", json.dumps(self.as_json(), indent=1) + "\n")


def _loss(value: Number) -> str:
    return "-" if value is None else f"{value:.4f}"


def _signed(one: Number, other: Number) -> str:
    return "-" if one is None or other is None else f"{other - one:+.4f}"
