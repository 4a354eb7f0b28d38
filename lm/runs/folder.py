"""A run's folder: who may write in it, what it holds, and what its checkpoints scored.

    checkpoints/
        step-*.ckpt, best.ckpt, last.ckpt, final.ckpt, ranked-best.ckpt     see lm/checkpoints/folder.py
        config.yaml            the resolved configuration
        metrics.csv            one row each `logging.every` steps and each validation
        evaluations.jsonl      one line each validation: step, checkpoint, loss, and a text that the model wrote
        curves.png, events.*   curves, and TensorBoard's files
        after-step-*-1         what came after a step to which the run went back
        .lock                  held while a run writes here

Nothing is ever deleted but old checkpoints beyond `checkpoint.keep`, and log lines that the same
run is going to write again: what is in the way of a new run is moved aside, and that is said. Only
the standard library, so that listing and refusing are instant.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
from pathlib import Path

from lm.checkpoints.folder import (
    NAMES,
    Checkpoint,
    point,
    pointed,
    step_directories,
    step_of,
    sweep,
)
from lm.runs import metrics, results
from lm.runs.results import RecordedValidation
from lm.system.disk import read_text, refusals, replace
from lm.system.errors import CheckpointError, ConfigError
from lm.system.locks import claim

RECORDS = ("metrics.csv", results.FILE)
# the checkpoint that the run started from, for a start that comes to no checkpoint of its own
PARENT = "init-from.txt"


class RunFolder:
    """A run's folder, locked by this process."""

    def __init__(self, path: str | Path):
        """Create the folder if need be, lock it, and remove what a killed run left half-written.

        Raises:
            ConfigError: another run is at work in it.
            CheckpointError: it cannot be created or written.
        """
        self.path = Path(path)
        missing = [
            folder for folder in (self.path, *self.path.parents) if not os.path.lexists(folder)
        ]
        self._lock = claim(self.path)
        self._made = missing
        for folder in (self.path, *self.path.glob("after-step-*")):
            sweep(folder)

    def start_fresh(self) -> str | None:
        """Make room for a new run; return what was found here and where it is now, or None if there
        was nothing.

        The whole folder is renamed, one atomic operation, to the first free `NAME-1`, `NAME-2`, ...

        Raises:
            ConfigError: moving the folder would move more than one run.
            CheckpointError: the folder cannot be moved.
        """
        if not any(self.path.glob("*.ckpt")) and not any(
            (self.path / name).exists() for name in RECORDS
        ):
            return None
        here = self.path.resolve()  # what a link means is moved, not the link
        inner = sorted(lock.parent.name for lock in here.glob("*/.lock"))
        if inner or Path.cwd().is_relative_to(here):
            why = (
                f"the folders of other runs ({', '.join(inner)})"
                if inner
                else "the directory in which this command runs"
            )
            raise ConfigError(
                f"checkpoint.directory: {self.path} holds a run, and {why}, so it is not moved"
                " aside; name a new folder"
            )
        aside = _first_free(here)
        try:
            here.rename(aside)
        except OSError as error:
            raise CheckpointError(
                f"{self.path} holds another run and cannot be moved to {aside} ({error.strerror});"
                " set checkpoint.directory to a new folder"
            ) from error
        moved, self._lock = self._lock, claim(here)
        moved.close()
        shown = self.path.with_name(aside.name) if self.path.absolute() == here else aside
        steps = step_directories(shown)
        if not steps:
            return f"{self.path} held another run, without checkpoints; it is now {shown}"
        return (
            f"{self.path} held another run ({_count(steps, 'checkpoint')}, the last at step"
            f" {step_of(steps[-1]):,}); it is now {shown} (continue it with --resume auto"
            f" --checkpoint.directory {shown})"
        )

    def begin_again(self, configuration: str, first_save: int) -> str | None:
        """Let a run that was ended before its first checkpoint (killed, or by a full disk) begin
        again in its place; return what to say.

        Its logs are taken away: the run is going to write them again, as it does with the lines
        behind a checkpoint that it goes on from. What it will not write again stays:
        incidents.jsonl, whose skipped updates are skipped again, reports and tracebacks. None, and
        nothing is touched, where that is not certain: the configuration is another, or there has
        been a checkpoint, which somebody took away to keep the logs alone. `start_fresh` moves such
        a folder aside.

        Args:
            configuration: the run's, as it stands in config.yaml.
            first_save: the step of its first checkpoint; whatever is logged later had one.
        """
        try:
            same = read_text(self.path / "config.yaml") == configuration
            late = metrics.after(self.path / "metrics.csv", first_save) or any(
                line.step > 0 for line in self.evaluations()
            )
        except (OSError, ValueError, CheckpointError):
            return None
        if not same or late or any(self.path.glob("*.ckpt")):
            return None
        with refusals(self.path):
            for name in RECORDS:
                (self.path / name).unlink(missing_ok=True)
        return (
            f"{self.path} holds a start of this run that came to no checkpoint: its logs begin anew"
        )

    def rewind(self, step: int) -> str | None:
        """Let the run stand where it stood after `step`, from where it goes on; return what was
        moved aside for that, or None.

        Later checkpoints and results are kept in a folder `after-step-...`, with a copy of the
        later rows of metrics.csv; the log itself drops them when it is opened. Raises
        CheckpointError.
        """
        later = [path for path in step_directories(self.path) if step_of(path) > step]
        evaluations = self.evaluations()
        undone = [line for line in evaluations if line.step > step]
        said = None
        if later or undone:
            aside = _first_free(self.path / f"after-step-{step:08d}")
            rows = metrics.after(self.path / "metrics.csv", step)
            with refusals(aside):
                aside.mkdir()
                # before anything is moved: when nothing later is left here, the rest of a rewind
                # that was cut short is skipped
                if rows:
                    replace(aside / "metrics.csv", rows)
                # newest first: if this is cut short, what `--resume auto` finds is nearest to what
                # was asked
                for path in reversed(later):
                    path.rename(aside / path.name)
            if undone:
                results.write_validations(aside, undone)
                kept = [line for line in evaluations if line.step <= step]
                results.write_validations(self.path, kept)
            said = (
                f"{_count(later, 'later checkpoint')} and {_count(undone, 'later result')} moved to"
                f" {aside}"
            )
        with refusals(self.path):
            for name in NAMES:
                target = pointed(self.path, name)
                if target is not None and (name == "final.ckpt" or not target.exists()):
                    (self.path / name).unlink()
        if steps := step_directories(self.path):
            point(self.path, "last.ckpt", steps[-1])
        self.point_to_best()
        return said

    def evaluations(self) -> list[RecordedValidation]:
        """Every recorded validation, oldest first."""
        return results.read_validations(self.path)[0]

    def record(self, validation: RecordedValidation) -> None:
        """Append a validation's result, durably, and let best.ckpt follow it. Raises
        CheckpointError.
        """
        results.append_validation(self.path, validation)
        self.point_to_best()

    def point_to_best(self) -> None:
        """Let best.ckpt mean the checkpoint with the lowest recorded loss, of those that are still
        here.
        """
        by_manifest: dict[str | None, Path] = {}
        for path in step_directories(self.path):
            try:
                by_manifest[Checkpoint(path).sha256] = path
            except CheckpointError:
                continue
        scored = [
            line
            for line in self.evaluations()
            if line.manifest_sha256 in by_manifest and not math.isnan(line.loss)
        ]
        if scored:
            best = min(scored, key=lambda line: (line.loss, line.step))
            point(self.path, "best.ckpt", by_manifest[best.manifest_sha256])

    def close(self) -> None:
        """Release the lock; the end of the process does so too. Folders that were made for a run
        which was refused go again.
        """
        with contextlib.suppress(OSError):
            if self._made and [entry.name for entry in self.path.iterdir()] == [".lock"]:
                (self.path / ".lock").unlink()
                for folder in self._made:
                    folder.rmdir()
        self._lock.close()


def parent_of_start(folder: Path) -> str | None:
    """The checkpoint that `--init-from` named when the run in this folder was started, if it did."""
    try:
        return read_text(folder / PARENT).rstrip("\n")
    except FileNotFoundError:
        return None


def _first_free(path: Path) -> Path:
    """`path-1`, or the next number of which nothing has the name."""
    numbered = (path.with_name(f"{path.name}-{number}") for number in itertools.count(1))
    return next(candidate for candidate in numbered if not os.path.lexists(candidate))


def _count(things: list[Path] | list[RecordedValidation], name: str) -> str:
    return f"{len(things)} {name}{'s' * (len(things) != 1)}"
