"""A run's folder, read for reports: everything in it that is not damaged, without torch.

A part that is missing, cut or damaged is skipped and named in `problems`. Nothing here changes the
folder, which may belong to a run that is still going. The type of each value is checked here, so a
report only has to escape texts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm.runs import metrics
from lm.runs.folder import PARENT
from lm.runs.incidents import read_incidents
from lm.runs.lines import left_out
from lm.runs.results import RecordedValidation, read_validations
from lm.runs.saved import Saved, saved_checkpoints
from lm.system.disk import read_json, read_text
from lm.system.errors import CheckpointError
from lm.system.json_values import count, number, text
from lm.system.locks import is_claimed

TRACES = ("nonfinite-step-*", "error-*.txt", "after-step-*")


@dataclass(frozen=True)
class RunRecord:
    """A run, as its folder records it.

    Attributes:
        problems: a line for each part that is missing or damaged.
        rows: of metrics.csv, oldest first (lm/runs/metrics.py).
        validations: oldest first.
        checkpoints: oldest first.
        config: the resolved configuration, section by section; empty if it is not known.
        meta: the newest readable checkpoint's meta.json; empty if there is none.
        incidents: (updates done, kind, message).
        traces: files and folders with reports, tracebacks and what was moved aside.
        answers: answers.json of a fine-tuned run; None: it has none.
        ranking: ranking.json; None: there is none.
        start: the checkpoint that the run started from, as init-from.txt has it.
        going: a process is training in the folder.
    """

    folder: Path
    problems: tuple[str, ...]
    rows: tuple[Mapping[str, Any], ...]
    validations: tuple[RecordedValidation, ...]
    checkpoints: tuple[Saved, ...]
    config: Mapping[str, Any]
    meta: Mapping[str, Any]
    incidents: tuple[tuple[int, str, str], ...]
    traces: tuple[Path, ...]
    answers: Mapping[str, Any] | None
    ranking: Any
    start: str | None
    going: bool

    @property
    def name(self) -> str:
        """The name of the folder, even if the path is `.`."""
        return self.folder.resolve().name or str(self.folder)

    @property
    def best(self) -> RecordedValidation | None:
        """The validation with the lowest loss, the first of several."""
        scored = [validation for validation in self.validations if math.isfinite(validation.loss)]
        return min(scored, key=lambda validation: validation.loss, default=None)

    @property
    def best_checkpoint(self) -> Saved | None:
        """The checkpoint with the lowest recorded loss that is still here.

        If none was validated, it is the newest. None: all are damaged or gone.
        """
        scored = [
            (v.loss, saved)
            for v in self.validations
            if math.isfinite(v.loss) and (saved := self.checkpoint_of(v))
        ]
        undamaged = [saved for saved in self.checkpoints if saved.problem is None]
        return (
            min(scored, key=lambda pair: pair[0])[1]
            if scored
            else undamaged[-1]
            if undamaged
            else None
        )

    @property
    def of_pairs(self) -> bool:
        """Whether the run learns from preferences: a loss is of a pair of answers, not a token."""
        return text(self.config, "finetune", "objective") == "dpo"

    @property
    def unit(self) -> str:
        """The unit of the run's losses."""
        return "loss per pair of answers" if self.of_pairs else "nats per token"

    @property
    def step(self) -> int:
        """The number of updates done, as far as it is recorded."""
        known = (
            [row["step"] for row in self.rows]
            + [v.step for v in self.validations]
            + [saved.step for saved in self.checkpoints if saved.step is not None]
        )
        return max(known, default=0)

    @property
    def tokens(self) -> int | None:
        """The number of tokens trained on."""
        return max(
            (int(row["tokens"]) for row in self.rows if row["tokens"] is not None),
            default=count(self.meta, "tokens"),
        )

    @property
    def seconds(self) -> float | None:
        """The training time in seconds, without validation and saving."""
        known = [
            row["seconds"]
            for row in self.rows
            if row["seconds"] is not None and math.isfinite(row["seconds"])
        ]
        return max(known, default=number(self.meta, "seconds"))

    @property
    def finished(self) -> bool:
        """Whether final.ckpt says that the run reached its end."""
        return any("final.ckpt" in saved.links for saved in self.checkpoints)

    def points(self, split: str, column: str, over: str = "tokens") -> list[tuple[float, float]]:
        """Return the points of two columns of metrics.csv, for one split, if both are finite."""
        pairs = [(row[over], row[column]) for row in self.rows if row["split"] == split]
        return [
            (x, y)
            for x, y in pairs
            if x is not None and y is not None and math.isfinite(x) and math.isfinite(y)
        ]

    def checkpoint_of(self, validation: RecordedValidation) -> Saved | None:
        """Return the checkpoint whose bytes were validated, if it is still here."""
        wanted = validation.manifest_sha256
        return next(
            (
                saved
                for saved in self.checkpoints
                if wanted is not None and saved.manifest_sha256 == wanted
            ),
            None,
        )


def read_run(folder: Path) -> RunRecord:
    """Read a run's folder.

    Raises:
        CheckpointError: there is no such folder, or no run in it.
    """
    if not folder.is_dir() or (folder / "meta.json").exists():
        advice = (
            f"one checkpoint, not a run's folder; write {folder.parent}"
            if folder.is_dir()
            else "no such folder; name a run's"
        )
        raise CheckpointError(f"{folder}: {advice}")
    problems: list[str] = []
    checkpoints = tuple(saved_checkpoints(folder))
    problems += [saved.problem for saved in checkpoints if saved.problem]
    meta = next((saved.meta for saved in reversed(checkpoints) if saved.meta), {})
    rows = _attempt(problems, folder / "metrics.csv", lambda file: _rows(file, problems), ())
    validations = _attempt(
        problems, folder / "evaluations.jsonl", lambda file: _validations(file, problems), ()
    )
    config = meta.get("config") or _attempt(problems, folder / "config.yaml", _yaml, {})
    if not (checkpoints or rows or validations or config):
        raise CheckpointError(
            f"{folder} holds no run: no checkpoint, no metrics.csv, no evaluations.jsonl; name the"
            " folder of one"
        )
    return RunRecord(
        folder=folder,
        rows=rows,
        validations=validations,
        checkpoints=checkpoints,
        config=config,
        meta=meta,
        incidents=_attempt(
            problems,
            folder / "incidents.jsonl",
            lambda file: _incidents(file, problems),
            (),
            needed=False,
        ),
        traces=tuple(sorted(path for pattern in TRACES for path in folder.glob(pattern))),
        answers=_attempt(problems, folder / "answers.json", read_json, None, needed=False),
        ranking=_attempt(
            problems,
            folder / "ranking.json",
            lambda file: json.loads(read_text(file)),
            None,
            needed=False,
        ),
        start=_attempt(
            problems, folder / PARENT, lambda file: read_text(file).rstrip("\n"), None, needed=False
        ),
        going=is_claimed(folder),
        problems=tuple(problems),  # last: each attempt above may add one
    )


def _attempt(
    problems: list[str],
    file: Path,
    read: Callable[[Path], Any],
    otherwise: Any,
    needed: bool = True,
) -> Any:
    if not file.exists():
        problems += [f"{file.name} is missing"] * needed
        return otherwise
    try:
        return read(file)
    except (CheckpointError, OSError, ValueError, RecursionError) as error:
        problems.append(f"{file.name} cannot be used: {getattr(error, 'strerror', None) or error}")
        return otherwise


def _rows(file: Path, problems: list[str]) -> tuple[Mapping[str, Any], ...]:
    rows, damaged = metrics.read_whole_lines(file)
    problems += left_out(file, list(damaged))
    return tuple(rows)


def _validations(file: Path, problems: list[str]) -> tuple[RecordedValidation, ...]:
    validations, damaged = read_validations(file.parent)
    problems += left_out(file, damaged)
    latest = {validation.step: validation for validation in validations}
    return tuple(latest[step] for step in sorted(latest))


def _incidents(file: Path, problems: list[str]) -> tuple[tuple[int, str, str], ...]:
    incidents, damaged = read_incidents(file.parent)
    problems += left_out(file, damaged)
    return tuple(incidents)


def _yaml(file: Path) -> dict[str, Any]:
    from lm.config.yaml_reader import MAX_BYTES
    from lm.config.yaml_reader import read_text as read_yaml

    document = read_yaml(read_text(file, MAX_BYTES))
    for line, problem in document.problems:
        raise ValueError(f"line {line}: {problem}")
    if not isinstance(document.value, dict):
        raise ValueError("it is not a mapping of sections")
    return document.value
