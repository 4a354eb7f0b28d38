"""Two runs held against each other, from what their folders tell: what was set differently, how far
each was at the same number of tokens, which of them was where first, what each of them wrote.
Without torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lm.config.schema.section import flattened
from lm.evaluation.same_text import Verdict
from lm.reports.alignment import Place, Reached, Value, aligned, first_reached
from lm.runs.changes import is_harmless
from lm.runs.record import RunRecord
from lm.runs.results import RecordedValidation
from lm.system.json_values import found, text, whole

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
# What decides how a validation text is cut into rows, and which of them are read.
CUT = ("data.sequence_length", "data.rows", "data.document_mask", "trainer.validation_rows")
# A run may go on with another of these and is still that run (lm/runs/changes.py); two runs with
# different ones are two different ones.
DECISIVE = ("finetune.base", "trainer.max_epochs", "trainer.max_minutes", "trainer.early_stopping")
SHARES = (0.1, 0.5, 1.0)  # of the shorter run, where samples are held against each other


class Difference(NamedTuple):
    """A key that is not the same in both runs; values as JSON, None where a run does not have the
    key.

    Attributes:
        matters: it is among what a run computes from, not only where it writes or how often it is
            looked at.
    """

    key: str
    a: str | None
    b: str | None
    matters: bool = True


class Yardstick(NamedTuple):
    """What the two runs' own validations can be compared by.

    Attributes:
        column: of metrics.csv; None: by nothing, as nothing tells that they are of one text.
        says: why not, or what has to be borne in mind.
    """

    column: str | None
    says: str


class Sample(NamedTuple):
    """What a run wrote."""

    step: int
    tokens: int
    text: str


@dataclass(frozen=True)
class Comparison:
    """Two runs and what differs.

    Attributes:
        names: what they are called: their folders' names, or whole paths where these are the same.
        config, lineage: what differs in the configuration, and in meta.json (text, tokenizer,
            parent, code, packages, machine).
        values: of each run, every validation by the yardstick; empty where there is none.
        places: both after the same number of tokens.
        goals: each run's last value.
        reached: for each goal, when each of the two runs reached it.
        samples: at the same share of the shorter run's tokens.
        notes: what a reader has to know.
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
        """Both."""
        return self.a, self.b

    @property
    def unit(self) -> str:
        """Of the values."""
        return "bits per byte" if self.yardstick.column == "bits_per_byte" else self.a.unit

    @property
    def sources(self) -> list[tuple[str, float | None, float | None]]:
        """The last loss of each source that both or one of them were validated on, where there are
        several.
        """
        last = [
            run.validations[-1].losses_by_source if run.validations else {} for run in self.runs
        ]
        losses = [{name: loss for name, (loss, _) in each.items()} for each in last]
        return [
            (name, losses[0].get(name), losses[1].get(name)) for name in {**losses[0], **losses[1]}
        ]


def compare(a: RunRecord, b: RunRecord) -> Comparison:
    """Hold two runs against each other. What is missing in their folders is named in the notes and
    left out.
    """
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
        notes=list(_notes(a, b, names)),
    )


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Difference]:
    """The keys of nested sections that differ, those that matter first."""
    old, new = flattened(a), flattened(b)
    # null, and no such key, come to the same
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    shown = [
        {key: json.dumps(value, ensure_ascii=False) for key, value in each.items()}
        for each in (old, new)
    ]
    result = [Difference(key, shown[0].get(key), shown[1].get(key), _matters(key)) for key in keys]
    return sorted(result, key=lambda difference: not difference.matters)


def _matters(key: str) -> bool:
    return not is_harmless(key) or key in DECISIVE or key.endswith(".files")


def choose_yardstick(a: RunRecord, b: RunRecord) -> Yardstick:
    """By what the validations that the runs recorded can be compared, as far as their records tell."""
    if a.of_pairs != b.of_pairs:
        return Yardstick(None, "one of them learns from preferences, whose loss is another thing")
    tokenizers = [text(run.meta, "tokenizer", "sha256") for run in (a, b)]
    if None in tokenizers:
        tokenizers = [text(run.config, "tokenizer", "name") for run in (a, b)]
    texts = [text(run.meta, "data_sha256") for run in (a, b)]
    column = "loss" if tokenizers[0] == tokenizers[1] else "bits_per_byte"
    if texts[0] is None or texts[0] != texts[1]:
        told = [
            {key: value for key, value in flattened(run.config).items() if _is_of_text(key)}
            for run in (a, b)
        ]
        if told[0] != told[1] or not told[0] or (column == "loss" and None not in texts):
            return Yardstick(
                None,
                "their data are different texts, as far as is recorded, so their recorded"
                " validations are not compared",
            )
        says = (
            "their tokenizers differ, so bits per byte are compared"
            if column != "loss"
            else "no checkpoint says so for certain"
        )
        return Yardstick(column, f"by their configurations the text is the same; {says}")
    cut = [{key: found(run.config, *key.split(".")) for key in CUT} for run in (a, b)]
    for keys, run in zip(cut, (a, b), strict=True):
        # as Config.row_length
        keys["data.sequence_length"] = keys["data.sequence_length"] or found(
            run.config, "model", "context_length"
        )
    if differing := [key for key in CUT if cut[0][key] != cut[1][key]]:
        return Yardstick(
            column,
            f"the same text is cut into other rows ({', '.join(differing)}): longer rows know more"
            " of what came before",
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
    written = [
        [sample for validation in run.validations if (sample := _sample(run, validation))]
        for run in (a, b)
    ]
    if not all(written):
        return []
    end = min(samples[-1].tokens for samples in written)
    pairs = [
        [min(samples, key=lambda sample: abs(sample.tokens - share * end)) for samples in written]
        for share in SHARES
    ]
    return list(dict.fromkeys((first, second) for first, second in pairs))


def _sample(run: RunRecord, validation: RecordedValidation) -> Sample | None:
    known = {row["step"]: row["tokens"] for row in run.rows}
    tokens = known.get(validation.step)
    return (
        Sample(validation.step, tokens, validation.sample)
        if validation.sample is not None and tokens is not None
        else None
    )


def _notes(a: RunRecord, b: RunRecord, names: tuple[str, str]) -> list[str]:
    notes = [
        f"{name}: {problem}"
        for run, name in zip((a, b), names, strict=True)
        for problem in run.problems
    ]
    notes += [
        f"{name} is still going: its figures are those of now"
        for run, name in zip((a, b), names, strict=True)
        if run.going
    ]
    if a.folder.resolve() == b.folder.resolve():
        return [*notes, "this is one run, held against itself"]
    for run, name, other, its in (a, names[0], b, names[1]), (b, names[1], a, names[0]):
        saved = {
            each.manifest_sha256: each.step for each in other.checkpoints if each.manifest_sha256
        }
        parent = text(run.meta, "parent", "manifest_sha256")
        if parent in saved:
            adapters = whole(run.meta, "adapters", "n_parameters")
            what = (
                f"trained {adapters:,} parameters of adapters beside"
                if adapters
                else "started from"
            )
            notes.append(f"{name} {what} the weights of {its} at step {saved[parent]:,}")
    return notes
