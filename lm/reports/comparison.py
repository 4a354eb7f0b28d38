"""A comparison of two runs, made from their folders without torch.

It holds the keys that differ, both losses at the same number of tokens, when each run reached the
other's last loss, and samples of both.

Losses are compared at common numbers of tokens only, if there are at least three. Otherwise each
validation of either run is paired with a value of the other run on the straight line between its
neighbours, and the value is marked as such. No curve is extended beyond its run's last validation.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lm.config.schema.section import flattened
from lm.evaluation.same_text import Verdict
from lm.runs.changes import is_harmless
from lm.runs.record import RunRecord
from lm.system.json_values import count, lookup, text

LINEAGE = (
    "tokenizer",
    "data_sha256",
    "revisions",
    "parent",
    "code",
    "precision",
    "device",
    "threads",
    "hardware",
    "versions",
)
# The keys that decide how a validation text is cut into rows, and which rows are read.
CUT = ("data.sequence_length", "data.rows", "data.document_mask", "trainer.validation_rows")
# A resumed run may change these keys (lm/runs/changes.py), but two runs that differ in them
# compute different things.
DECISIVE = ("finetune.base", "trainer.max_minutes", "trainer.early_stopping")
FEW = 3  # common numbers of tokens
SHARES = (0.1, 0.5, 1.0)  # of the shorter run, at which samples are compared


class Difference(NamedTuple):
    """A key that differs between the runs; values as JSON, None if a run lacks the key.

    Attributes:
        matters: the key changes what a run computes, not only where or how often it writes.
    """

    key: str
    a: str | None
    b: str | None
    matters: bool = True


class Yardstick(NamedTuple):
    """The measure by which the recorded validations of two runs compare.

    Attributes:
        column: a column of metrics.csv; None if nothing shows that both texts are the same.
        note: why they do not compare, or what limits the comparison.
    """

    column: str | None
    note: str


class Sample(NamedTuple):
    """A text that a run generated at a validation."""

    step: int
    tokens: int
    text: str


class Value(NamedTuple):
    """The result of a validation, after so many tokens and seconds of training."""

    tokens: int
    seconds: float | None
    value: float


class Place(NamedTuple):
    """Both runs' values after the same number of tokens.

    `between` names the run ("a" or "b") whose value is interpolated; it is empty if none is.
    """

    tokens: int
    a: float
    b: float
    between: str


class Reached(NamedTuple):
    """The moment at which a run reached a value; `exact` if that was at a validation."""

    tokens: float
    seconds: float | None
    exact: bool


@dataclass(frozen=True)
class Comparison:
    """Two runs and their differences.

    Attributes:
        names: the folders' names, or their paths if the names are the same.
        config, lineage: the differences in the configuration, and in meta.json (text, tokenizer,
            parent, code, packages, machine).
        values: each run's validations by the yardstick; empty without a yardstick.
        places: both values at the same numbers of tokens.
        goals: each run's last value.
        reached: for each goal, when each of the two runs reached it.
        samples: pairs at the same share of the shorter run's tokens.
        notes: facts that limit the comparison.
        verdicts: the best checkpoints on the same text (lm/evaluation/same_text.py).
    """

    a: RunRecord
    b: RunRecord
    names: tuple[str, str]
    config: list[Difference]
    lineage: list[Difference]
    yardstick: Yardstick
    values: tuple[list[Value], list[Value]]
    places: list[Place]
    goals: tuple[float, float] | None
    reached: list[tuple[Reached | None, Reached | None]]
    samples: list[tuple[Sample, Sample]]
    notes: list[str]
    verdicts: list[Verdict] = field(default_factory=list)

    @property
    def runs(self) -> tuple[RunRecord, RunRecord]:
        """The two runs as a pair."""
        return self.a, self.b

    @property
    def unit(self) -> str:
        """The unit of the values."""
        return "bits per byte" if self.yardstick.column == "bits_per_byte" else self.a.unit

    @property
    def sources(self) -> list[tuple[str, float | None, float | None]]:
        """The last loss of each source that at least one run was validated on."""
        last = [
            run.validations[-1].losses_by_source if run.validations else {} for run in self.runs
        ]
        losses = [{name: loss for name, (loss, _) in sources.items()} for sources in last]
        return [
            (name, losses[0].get(name), losses[1].get(name)) for name in {**losses[0], **losses[1]}
        ]


def compare(a: RunRecord, b: RunRecord) -> Comparison:
    """Compare two runs; the notes name what is missing in their folders."""
    names = (a.name, b.name) if a.name != b.name else (str(a.folder), str(b.folder))
    yardstick = choose_yardstick(a, b)
    values = (_values(a, yardstick.column), _values(b, yardstick.column))
    goals = (values[0][-1].value, values[1][-1].value) if all(values) else None
    lineage = [{key: run.meta[key] for key in LINEAGE if key in run.meta} for run in (a, b)]
    return Comparison(
        a=a,
        b=b,
        names=names,
        config=differences(a.config, b.config),
        lineage=differences(*lineage),
        yardstick=yardstick,
        values=values,
        places=aligned(*values),
        goals=goals,
        reached=[
            (first_reached(values[0], goal), first_reached(values[1], goal)) for goal in goals or ()
        ],
        samples=_samples(a, b),
        notes=_notes(a, b, names) + _notes_on_bytes(a, b, names, yardstick),
    )


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Difference]:
    """Return the keys of nested sections that differ, those that matter first."""
    old, new = flattened(a), flattened(b)
    # A key that is null equals a missing one.
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    shown = [
        {key: json.dumps(value, ensure_ascii=False) for key, value in values.items()}
        for values in (old, new)
    ]
    result = [Difference(key, shown[0].get(key), shown[1].get(key), _matters(key)) for key in keys]
    return sorted(result, key=lambda difference: not difference.matters)


def _matters(key: str) -> bool:
    return not is_harmless(key) or key in DECISIVE or key.endswith(".files")


def choose_yardstick(a: RunRecord, b: RunRecord) -> Yardstick:
    """Choose the measure by which the recorded validations of two runs compare."""
    if a.of_pairs != b.of_pairs:
        return Yardstick(None, "one run learns from preferences, whose loss is another quantity")
    tokenizers = [text(run.meta, "tokenizer", "sha256") for run in (a, b)]
    if None in tokenizers:
        tokenizers = [text(run.config, "tokenizer", "name") for run in (a, b)]
    texts = [text(run.meta, "data_sha256") for run in (a, b)]
    column = "loss" if tokenizers[0] == tokenizers[1] else "bits_per_byte"
    if column != "loss" and any(run.validations and not _values(run, column) for run in (a, b)):
        return Yardstick(
            None,
            "their tokenizers differ, and one run has no bits per byte: its tokenizer loses a part"
            " of the text",
        )
    if texts[0] is None or texts[0] != texts[1]:
        recorded = [
            {key: value for key, value in flattened(run.config).items() if _is_of_text(key)}
            for run in (a, b)
        ]
        if (
            recorded[0] != recorded[1]
            or not recorded[0]
            or (column == "loss" and None not in texts)
        ):
            return Yardstick(
                None,
                "their data are different texts by their records, so their recorded validations"
                " are not compared",
            )
        note = (
            "their tokenizers differ, so bits per byte are compared"
            if column != "loss"
            else "no checkpoint proves it"
        )
        return Yardstick(column, f"by their configurations the text is the same; {note}")
    cut = [{key: lookup(run.config, *key.split(".")) for key in CUT} for run in (a, b)]
    for keys, run in zip(cut, (a, b), strict=True):
        # As in Config.row_length.
        keys["data.sequence_length"] = keys["data.sequence_length"] or lookup(
            run.config, "model", "context_length"
        )
    if differing := [key for key in CUT if cut[0][key] != cut[1][key]]:
        return Yardstick(
            column,
            f"the same text is cut into other rows ({', '.join(differing)}): longer rows see more"
            " context",
        )
    return Yardstick(column, "")


def _is_of_text(key: str) -> bool:
    return key.startswith("data.") and key not in (
        *CUT,
        "data.stride",
        "data.cache_dir",
        "data.workers",
        "data.on_bad_row",
    )


def _values(run: RunRecord, column: str | None) -> list[Value]:
    if column is None:
        return []
    rows = [row for row in run.rows if row["split"] == "val" and row["tokens"] is not None]
    return [
        Value(row["tokens"], row["seconds"], row[column])
        for row in rows
        if row[column] is not None and math.isfinite(row[column])
    ]


def _samples(a: RunRecord, b: RunRecord) -> list[tuple[Sample, Sample]]:
    written = [_samples_of(run) for run in (a, b)]
    if not all(written):
        return []
    end = min(samples[-1].tokens for samples in written)
    pairs = [
        [min(samples, key=lambda sample: abs(sample.tokens - share * end)) for samples in written]
        for share in SHARES
    ]
    return list(dict.fromkeys((first, second) for first, second in pairs))


def _samples_of(run: RunRecord) -> list[Sample]:
    tokens = {row["step"]: row["tokens"] for row in run.rows if row["tokens"] is not None}
    return [
        Sample(validation.step, tokens[validation.step], validation.sample)
        for validation in run.validations
        if validation.sample is not None and validation.step in tokens
    ]


def _notes(a: RunRecord, b: RunRecord, names: tuple[str, str]) -> list[str]:
    notes = [
        f"{name}: {problem}"
        for run, name in zip((a, b), names, strict=True)
        for problem in run.problems
    ]
    notes += [
        f"{name} is still going: its figures are those of this moment"
        for run, name in zip((a, b), names, strict=True)
        if run.going
    ]
    if a.folder.resolve() == b.folder.resolve():
        return [*notes, "this compares a run with itself"]
    for run, name, other, its in (a, names[0], b, names[1]), (b, names[1], a, names[0]):
        saved = {
            checkpoint.manifest_sha256: checkpoint.step
            for checkpoint in other.checkpoints
            if checkpoint.manifest_sha256
        }
        parent = text(run.meta, "parent", "manifest_sha256")
        if parent in saved:
            adapters = count(run.meta, "adapters", "n_parameters")
            what = f"trained {adapters:,} parameters of adapters on" if adapters else "started from"
            notes.append(f"{name} {what} the weights of {its} at step {saved[parent]:,}")
    return notes


def _notes_on_bytes(
    a: RunRecord, b: RunRecord, names: tuple[str, str], yardstick: Yardstick
) -> list[str]:
    """Return a note for each run whose bits per byte were recorded by the older rule."""
    notes = []
    for run, name in zip((a, b), names, strict=True):
        formats = [value for key, value in flattened(run.config).items() if key.endswith("format")]
        older = any(validation.text_bytes is None for validation in run.validations)
        if yardstick.column == "bits_per_byte" and "chat" in formats and older:
            notes.append(
                f"{name}: an earlier version recorded these bits per byte; it also counted the"
                " bytes of conversations that fit into no row; eval_val.py scores a checkpoint anew"
            )
    return notes


def aligned(a: Sequence[Value], b: Sequence[Value]) -> list[Place]:
    """Pair the values of two runs, each in the order of tokens; the module's docstring says how."""
    first, second = ({point.tokens: point.value for point in values} for values in (a, b))
    common = [tokens for tokens in first if tokens in second]
    if len(common) >= FEW:
        return [Place(tokens, first[tokens], second[tokens], "") for tokens in common]
    places = []
    for tokens in sorted({**first, **second}):
        left, right = at(a, tokens), at(b, tokens)
        if left is not None and right is not None:
            places.append(
                Place(
                    tokens,
                    left,
                    right,
                    "a" if tokens not in first else "b" if tokens not in second else "",
                )
            )
    return places


def at(values: Sequence[Value], tokens: float) -> float | None:
    """Return the value on the straight line between the neighbours, or None outside of them."""
    i = bisect_left(values, tokens, key=lambda point: point.tokens)
    if i == len(values) or (i == 0 and values[0].tokens != tokens):
        return None
    (x1, _, y1), (x0, _, y0) = values[i], values[max(i - 1, 0)]
    return y1 if x1 == tokens else y0 + (y1 - y0) * (tokens - x0) / (x1 - x0)


def first_reached(values: Sequence[Value], goal: float) -> Reached | None:
    """Return when a run's value first was `goal` or lower, interpolated between validations."""
    i = next((i for i, (_, _, value) in enumerate(values) if value <= goal), None)
    if i is None:
        return None
    tokens, seconds, value = values[i]
    if i == 0 or value == goal:
        return Reached(tokens, seconds, True)
    before_tokens, before_seconds, before = values[i - 1]
    share = (before - goal) / (before - value)
    between = (
        None
        if seconds is None or before_seconds is None
        else before_seconds + share * (seconds - before_seconds)
    )
    return Reached(before_tokens + share * (tokens - before_tokens), between, False)
