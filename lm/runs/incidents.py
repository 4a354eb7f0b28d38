"""The incidents of a run: skipped updates, loss spikes, and reports on numbers that are not finite.

    incidents.jsonl              one line for each incident: step, kind, message
    nonfinite-step-00000005/     the evidence: report.json, batch.jsonl

A run that is resumed or goes back to a checkpoint reads the skipped updates from here and skips
them again, because the checkpoint was saved before it reached them.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from lm.checkpoints.folder import step_directories
from lm.runs.lines import left_out, read_records
from lm.system.disk import append, refusals, replace
from lm.system.errors import CheckpointError, NonFiniteError
from lm.system.json_values import count, text

Kind = Literal["skipped", "overflow", "spike", "memory"]

FILE = "incidents.jsonl"

# each report holds a whole batch; a run that fails every few steps must not fill the disk
MAX_REPORTS = 20
SPIKE_WINDOW = 100  # steps
SPIKE_NOISE = 8


class GoBack(Exception):
    """Ends the session; the run continues from its newest checkpoint."""


class Incidents:
    """The incidents of a run. All processes know them; the first one reads and writes the file.

    Args:
        folder: the run's folder; None on all processes except the first.
        decode: turns ids into text, for the reports.
        policy: `trainer.on_nonfinite`.
        limit: `trainer.nonfinite_limit`.
        say: prints a line.

    Raises:
        CheckpointError: every method, if the files cannot be read or written.
    """

    def __init__(
        self,
        folder: Path | None,
        decode: Callable[[list[int]], str],
        policy: str,
        limit: int,
        say: Callable[[str], None],
    ):
        self._folder = folder
        self._decode = decode
        self._policy = policy
        self._limit = limit
        self._say = say
        self._seen: set[tuple[int, str, str]] = set()
        self._left_out: set[int] = set()

    def recall(self, step: int, broadcast: Callable[[Any], Any]) -> None:
        """Read the recorded incidents on the first process, and print the skipped updates.

        An overflow after `step`, where the run continues, counts only if it happens again: the
        learning rate may be different by now.

        Args:
            step: updates done.
            broadcast: sends the first process's value to all processes.
        """
        folder = self._folder
        incidents, damaged = read_incidents(folder) if folder is not None else ([], [])
        for message in left_out(Path(FILE), damaged):
            self._say(message)
        self._seen = broadcast(set(incidents))
        self._left_out = self.skipped | {
            at for at, kind, _ in self._seen if kind == "overflow" and at < step
        }
        if self.skipped:
            self._say(
                "updates that are left out, as before:"
                f" {', '.join(str(step + 1) for step in sorted(self.skipped))}"
            )

    @property
    def skipped(self) -> set[int]:
        """The steps (counted in updates before them) that `trainer.on_nonfinite` skipped."""
        return {step for step, kind, _ in self._seen if kind == "skipped"}

    def note(self, step: int, kind: Kind, message: str) -> None:
        """Record and print an incident of the update after `step`; a repeated one is recorded once.

        Raises:
            NonFiniteError: too many updates in a row were skipped.
        """
        self._say(f"step {step + 1:,}: {message}")
        if self._folder is not None and (step, kind, message) not in self._seen:
            append(
                self._folder / FILE,
                json.dumps({"step": step, "kind": kind, "message": message}),
            )
        self._seen.add((step, kind, message))
        if kind in ("skipped", "overflow"):
            self._left_out.add(step)
        if self._left_out.issuperset(range(step - self._limit + 1, step + 1)):
            raise NonFiniteError(
                f"step {step + 1}: {self._limit} updates in a row had to be left out"
                " (trainer.nonfinite_limit); lower optimizer.lr, or, with fp16, start again with"
                " trainer.precision: fp32"
            )

    def give_up(
        self,
        step: int,
        problem: str,
        facts: dict[str, Any],
        inputs: list[list[int]],
        labels: list[list[int]],
    ) -> None:
        """Do what `trainer.on_nonfinite` says with the update after `step`; return to skip it.

        Args:
            step: updates done.
            problem: what is wrong with the update.
            facts: for report.json.
            inputs: the rows of the step, as ids, for batch.jsonl.
            labels: the labels of these rows.

        Raises:
            NonFiniteError: the run stops, or too many updates in a row were skipped.
            GoBack: the run continues from its newest checkpoint, without this step.
        """
        try:
            report = self._report(step, facts, inputs, labels)
            seen = f"; what there was to see is in {report}" if report is not None else ""
        # the numbers are still the problem, and all processes must continue in the same way
        except CheckpointError as refusal:
            seen = f"; what there was to see could not be kept: {refusal}"
        if self._policy == "stop":
            raise NonFiniteError(
                f"step {step + 1}: {problem}, so the update was not made, and no checkpoint has"
                f" anything of it{seen}. Most often optimizer.lr is too high or"
                " optimizer.warmup_steps too few; trainer.on_nonfinite: skip or rollback would"
                " go on"
            )
        self.note(step, "skipped", f"{problem}, so the update is left out{seen}")
        if self._policy == "rollback":
            raise GoBack(
                f"step {step + 1}: going back to the newest checkpoint, to do without this step"
                " from there"
            )

    def _report(
        self, step: int, facts: dict[str, Any], inputs: list[list[int]], labels: list[list[int]]
    ) -> Path | None:
        """Write a report into a new folder and return the folder.

        Return None if there are enough reports already, or if another process writes them.
        """
        if self._folder is None:
            return None
        folder = self._folder / f"nonfinite-step-{step + 1:08d}"
        if not folder.exists() and len(list(self._folder.glob("nonfinite-step-*"))) >= MAX_REPORTS:
            return None
        newest = step_directories(self._folder)[-1:]
        facts = facts | {"last_checkpoint": str(newest[0]) if newest else None}
        rows = [
            {"text": self._decode(ids), "input_ids": ids, "labels": targets}
            for ids, targets in zip(inputs, labels, strict=True)
        ]
        with refusals(folder):
            folder.mkdir(exist_ok=True)
        replace(
            folder / "report.json", json.dumps(_strict(facts), indent=1, ensure_ascii=False) + "\n"
        )
        replace(
            folder / "batch.jsonl",
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
        )
        return folder


class SpikeWatch:
    """Flags a loss that is more than 8 noise levels, and 2 %, above the median of the last 20.

    The noise level is the median difference between neighbours among the last 100 losses. Neither a
    falling loss nor one earlier spike changes it much.
    """

    def __init__(self, recent: Sequence[float] = ()):
        self.recent = deque(recent, maxlen=SPIKE_WINDOW)

    def take(self, loss: float) -> str | None:
        """Add the next loss; return a message if it is a spike."""
        message = None
        if len(self.recent) >= SPIKE_WINDOW // 2:
            usual = statistics.median(list(self.recent)[-20:])
            noise = statistics.median(
                abs(later - earlier) for earlier, later in itertools.pairwise(self.recent)
            )
            if loss > usual + max(SPIKE_NOISE * noise, 0.02 * abs(usual)):
                message = f"loss spike: {loss:.4f}, where the median of the last 20 is {usual:.4f}"
        self.recent.append(loss)
        return message


def read_incidents(run: Path) -> tuple[list[tuple[int, str, str]], list[int]]:
    """Return (step, kind, message) of each incident, and the numbers of damaged lines.

    A line that a kill cut short is damaged. Its incident does not count: the step before it was not
    saved either. A run without the file has no incidents.

    Raises:
        CheckpointError: the file cannot be read.
    """
    return read_records(run / FILE, _parse)


def _parse(values: dict[str, Any] | None) -> tuple[int, str, str] | None:
    step, kind, message = count(values, "step"), text(values, "kind"), text(values, "message")
    return None if step is None or kind is None or message is None else (step, kind, message)


def _strict(value: Any) -> Any:
    """Return a value with NaN and infinity as words, because JSON has no such numbers."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _strict(inner) for key, inner in value.items()}
    return [_strict(inner) for inner in value] if isinstance(value, list | tuple) else value
