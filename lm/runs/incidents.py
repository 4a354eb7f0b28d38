"""What went wrong in a run that could be lived with, or could not: incidents.jsonl, and reports on
numbers that are not finite.

    incidents.jsonl              a line each: step, kind, message
    nonfinite-step-00000005/     what there was to see: report.json, batch.jsonl

The steps whose update was left out are read back from here when a run is resumed or goes back to a
checkpoint, and left out again: the checkpoint that it starts from was saved before it came to them.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from lm.checkpoints.folder import step_directories
from lm.system.disk import append, refusals, replace
from lm.system.errors import CheckpointError, NonFiniteError

Kind = Literal["skipped", "overflow", "spike", "memory"]

# each holds a whole batch; a run that goes wrong every few steps must not fill the disk with them
MAX_REPORTS = 20
SPIKE_WINDOW = 100  # steps
SPIKE_NOISE = 8


class GoBack(Exception):
    """The session ends here, and the run goes on from its newest checkpoint."""


class Incidents:
    """The incidents of a run: all processes know them, the first one reads and writes them.

    Args:
        folder: the run's folder; None on all processes but the first.
        decode: ids -> text, for the reports.
        policy: `trainer.on_nonfinite`.
        limit: `trainer.nonfinite_limit`.
        say: shows a line to the user.

    Raises:
        CheckpointError: here or later, where the files cannot be read or written.
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
        """Read what has been written down so far, and say which updates are left out; `broadcast`
        gives it to all processes.

        An overflow after `step`, from which the run goes on, counts only if it comes again: the
        rate may be another by now.
        """
        self._seen = broadcast(
            set(read_incidents(self._folder / "incidents.jsonl"))
            if self._folder is not None
            else None
        )
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
        """The steps (updates done before them) whose update was given up, for
        `trainer.on_nonfinite`.
        """
        return {step for step, kind, _ in self._seen if kind == "skipped"}

    def note(self, step: int, kind: Kind, message: str) -> None:
        """Write down and say what happened to the update that follows `step`; a run that comes by
        here again writes nothing.

        Raises:
            NonFiniteError: too many updates in a row were left out.
        """
        self._say(f"step {step + 1:,}: {message}")
        if self._folder is not None and (step, kind, message) not in self._seen:
            append(
                self._folder / "incidents.jsonl",
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
        """Do what `trainer.on_nonfinite` says with the update that follows `step`. Returns where it
        is to be left out.

        Args:
            step: updates done.
            problem: what is wrong with it.
            facts: for report.json.
            inputs: the rows that it was to learn from, as ids, for batch.jsonl.
            labels: what was to be predicted in them.

        Raises:
            NonFiniteError: the run is to stop, or too many updates in a row were left out.
            GoBack: the run is to go on from its newest checkpoint, without this step.
        """
        try:
            report = self._report(step, facts, inputs, labels)
            seen = f"; what there was to see is in {report}" if report is not None else ""
        except (
            CheckpointError
            # what went wrong is still the numbers, and every process has to go on from here alike
        ) as refusal:
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
        """Put what there was to see into a folder of its own, and return that; None where enough
        have been kept, or another writes.
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
    """Flags a loss that stands out: more than 8 noise levels, and 2 %, above the median of the last
    20.

    The noise level is the median difference between neighbours among the last 100 losses, which
    neither a falling loss nor one earlier spike moves much.
    """

    def __init__(self, recent: Sequence[float] = ()):
        self.recent = deque(recent, maxlen=SPIKE_WINDOW)

    def take(self, loss: float) -> str | None:
        """Take in the next loss; what to say if it is a spike."""
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


def read_incidents(path: Path) -> Iterable[tuple[int, str, str]]:
    """A line that a kill cut short is as if it had never been: the step before it was not saved
    either.
    """
    with refusals(path):
        lines = (
            path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
        )
    for line in lines:
        try:
            values = json.loads(line)
            yield int(values["step"]), str(values["kind"]), str(values["message"])
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            continue


def _strict(value: Any) -> Any:
    """JSON has no NaN: it is written as a word."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _strict(inner) for key, inner in value.items()}
    return [_strict(inner) for inner in value] if isinstance(value, list | tuple) else value
