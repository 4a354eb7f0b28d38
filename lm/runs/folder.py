"""A run's folder: its files, its lock, and the ways in which a run starts or continues in it.

    checkpoints/
        step-*.ckpt, best.ckpt, last.ckpt, ...    see lm/checkpoints/folder.py
        config.yaml            the resolved configuration
        metrics.csv            one row for each logged step and each validation
        evaluations.jsonl      one line for each validation (lm/runs/results.py)
        curves.png, events.*   curves, and TensorBoard's files
        after-step-*-1         the later checkpoints and results of a run that went back to a step
        .lock                  held while a run writes here
        .run-id                the mark that says whose folder it is (lm/system/mark.py)

A run takes a new or empty folder, or one that a run has written. A folder of other files is
refused, unless an empty `.run-id` allows it. Only two things are ever deleted: old checkpoints
beyond `checkpoint.keep`, and log lines that the same run is going to write again. An earlier run in
the way of a new one is moved aside, and the user is told. This file needs only the standard
library, so that listing and refusing are instant.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import re
from pathlib import Path

from lm.checkpoints.folder import (
    NAMES,
    Checkpoint,
    checkpoints_in,
    is_ours,
    obstacle,
    pointed,
    step_directories,
    step_of,
)
from lm.checkpoints.write import point, remove_lost, restore_name, sweep
from lm.runs import metrics, results
from lm.runs.results import RecordedValidation
from lm.system.disk import read_text, refusals, replace
from lm.system.errors import CheckpointError, ConfigError
from lm.system.locks import claim, was_claimed
from lm.system.mark import MARK, is_allowed, is_shared, mark_of, set_mark

RECORDS = ("metrics.csv", results.FILE)
# what a run and its reports write: a folder with other files that is allowed may not hold these
WRITTEN = (
    *RECORDS, "config.yaml", "curves.png", "incidents.jsonl", "init-from.txt", "report.md",
    "answers.json", "report.html",
)  # fmt: skip
# names the checkpoint that the run started from, in case it is killed before its own first one
PARENT = "init-from.txt"
# what else a run's folder may hold: what a run writes under other names, and its reports
OTHERS = re.compile(
    r"report\.md|report\.html|answers\.json|ranking\.(md|csv|png|json)|\.lock|\.run-id"
    r"|consolidated|\.DS_Store|Thumbs\.db|slurm-\d+\.out"
    r"|after-step-\d+-\d+|nonfinite-step-\d+|error-.*\.txt|events\.out\.tfevents\..*|\..+\.tmp-.+"
)


class RunFolder:
    """A run's folder, locked by this process."""

    def __init__(self, path: str | Path):
        """Create the folder if necessary, lock and mark it, and remove the temporary files of
        killed runs. Names that a copy or an archive has made directories become names again.

        Raises:
            ConfigError: another run is using it, or it holds files that are not a run's.
            CheckpointError: it cannot be created or written.
        """
        self.path = Path(path)
        shared = _holds_other_files(self.path)
        missing = [
            folder for folder in (self.path, *self.path.parents) if not os.path.lexists(folder)
        ]
        self._lock = claim(self.path)
        self._made = missing
        with refusals(self.path):
            set_mark(self.path, shared=shared)
            for folder in (self.path, *self.path.glob("after-step-*")):
                if mark_of(folder) == mark_of(self.path) and not folder.is_symlink():
                    sweep(folder)
            lost = remove_lost(self.path) if is_run(self.path) else []
            for name in NAMES:
                restore_name(self.path, name)
        if lost:
            self._make_again(lost)

    def start_fresh(self) -> str | None:
        """Make room for a new run; return a message about the old one, or None without one.

        The whole folder is renamed, in one atomic operation, to the first free `NAME-1`, `NAME-2`.

        Raises:
            ConfigError: moving the folder would move another run, or a user's files.
            CheckpointError: the folder cannot be moved.
        """
        if not is_run(self.path) and not any((self.path / name).exists() for name in RECORDS):
            self._require_room(step=0)
            return None
        here = self.path.resolve()  # a link stays; the folder behind it is moved
        inner = sorted(lock.parent.name for lock in here.glob("*/.lock"))
        if inner or is_shared(here) or Path.cwd().is_relative_to(here):
            why = (
                f"the folders of other runs ({', '.join(inner)})"
                if inner
                else "files that are not a run's"
                if is_shared(here)
                else "the directory in which this command runs"
            )
            raise ConfigError(
                f"checkpoint.directory: {self.path} holds a run, and {why}, so it is not moved"
                " aside; name a new folder"
            )
        if foreign := _foreign(here):
            more = f" and {len(foreign) - 1} more" * (len(foreign) > 1)
            raise ConfigError(
                f"checkpoint.directory: {self.path} holds a run, and what no run writes"
                f" ({foreign[0]}{more}), so it is not moved aside; move"
                f" {'them' if more else 'it'} away, or name a new checkpoint.directory"
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
        with refusals(here):
            set_mark(here)
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
        """Let a run that ended before its first checkpoint begin again in its folder.

        Return a message, or None if the folder does not clearly hold such a start. It does not if
        the configuration is different, or if there was a checkpoint that somebody removed to keep
        the logs alone. `start_fresh` then moves the folder aside.

        The logs are deleted, because the run is going to write them again. The other files stay:
        incidents.jsonl, whose skipped updates are skipped again, reports and tracebacks.

        Args:
            configuration: the text of the run's config.yaml.
            first_save: the step of its first checkpoint; later log lines mean that it existed.
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
        """Bring the folder back to its state after `step`; return a message about moved files.

        Later checkpoints and results move to a folder `after-step-...`, with a copy of the later
        rows of metrics.csv; the log itself drops them when it is opened. The message is None if
        nothing was moved.

        Raises:
            ConfigError: a file or folder that is no run's has a name that this run needs.
            CheckpointError: the disk refused.
        """
        self._require_room(step)
        later = [path for path in self.path.iterdir() if step_of(path) > step]
        later.sort(key=step_of)
        evaluations = self.evaluations()
        undone = [line for line in evaluations if line.step > step]
        message = None
        if later or undone:
            aside = _first_free(self.path / f"after-step-{step:08d}")
            rows = metrics.after(self.path / "metrics.csv", step)
            with refusals(aside):
                aside.mkdir()
                set_mark(aside, mark_of(self.path))
                # First of all: a rewind that was cut short finds nothing later here, and then skips
                # this part.
                if rows:
                    replace(aside / "metrics.csv", rows)
                # Newest first: if this is cut short, `--resume auto` finds the checkpoint that is
                # nearest to the wanted one.
                for path in reversed(later):
                    if path.is_symlink():  # a relative link would lead elsewhere from there
                        (aside / path.name).symlink_to(path.resolve())
                        path.unlink()
                    else:
                        path.rename(aside / path.name)
            if undone:
                results.write_validations(aside, undone)
                kept = [line for line in evaluations if line.step <= step]
                results.write_validations(self.path, kept)
            message = (
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
        return message

    def evaluations(self) -> list[RecordedValidation]:
        """Return all recorded validations, oldest first."""
        return results.read_validations(self.path)[0]

    def is_validated(self, step: int) -> bool:
        """Return whether the validation of `step` is recorded."""
        return any(line.step == step for line in self.evaluations())

    def validations_without_progress(self) -> int:
        """Count the recorded validations since the lowest loss."""
        return results.validations_without_progress(self.evaluations())

    def record(self, validation: RecordedValidation) -> None:
        """Append a validation durably, and update best.ckpt. Raises CheckpointError."""
        results.append_validation(self.path, validation)
        self.point_to_best()

    def point_to_best(self) -> None:
        """Set best.ckpt to the checkpoint with the lowest recorded loss that is still here."""
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

    def _make_again(self, lost: list[str]) -> None:
        """Set names that were lost. A run sets last.ckpt and final.ckpt to its newest checkpoint;
        what ranked-best.ckpt meant is not known here. Raises CheckpointError.
        """
        ours = [path for path in step_directories(self.path) if is_ours(path)]
        for name in ("last.ckpt", "final.ckpt"):
            if name in lost and ours:
                point(self.path, name, ours[-1])
        if "best.ckpt" in lost:
            self.point_to_best()

    def _require_room(self, step: int) -> None:
        """Raise ConfigError if something that is no run's has a name that this run needs."""
        taken = obstacle(self.path, step)
        if taken is not None:
            raise ConfigError(
                f"checkpoint.directory: {taken} was not made by a run, and this run needs its name;"
                " move it away"
            )

    def close(self) -> None:
        """Release the lock; the end of the process does so too.

        Folders that were created for a run which was then refused are removed.
        """
        with contextlib.suppress(OSError):
            if self._made and {entry.name for entry in self.path.iterdir()} <= {".lock", MARK}:
                (self.path / MARK).unlink()
                (self.path / ".lock").unlink()
                for folder in self._made:
                    folder.rmdir()
        self._lock.close()


def is_run(folder: Path) -> bool:
    """Return whether a folder holds something of a run: a checkpoint, or one of its records."""
    with contextlib.suppress(OSError, CheckpointError):
        if any(is_ours(path) for path in checkpoints_in(folder)):
            return True
    with contextlib.suppress(OSError, CheckpointError):
        if metrics.is_metrics(folder / "metrics.csv"):
            return True
    with contextlib.suppress(CheckpointError):
        return bool(results.read_validations(folder)[0])
    return False


def _holds_other_files(folder: Path) -> bool:
    """Return whether a folder holds a user's files, and an empty mark that lets a run begin there.

    A run of an earlier version has no mark. It is known by what it holds, or by its lock.

    Raises:
        ConfigError: it holds files, is not a run's, and nothing allows a run.
    """
    try:
        names = sorted({entry.name for entry in folder.iterdir()} - {".lock"})
    except OSError:
        return False  # there is none, or `claim` says what is wrong with it
    if not names or mark_of(folder) or is_run(folder) or was_claimed(folder):
        return False
    if not is_allowed(folder):
        some = ", ".join(names[:3]) + ", ..." * (len(names) > 3)
        raise ConfigError(
            f"checkpoint.directory: {folder} holds files that are not a run's ({some}); name a new"
            f" folder, or allow this one by an empty file {folder / MARK}"
        )
    if taken := [name for name in WRITTEN if name in names]:
        raise ConfigError(
            f"checkpoint.directory: {folder / taken[0]} is not a run's, and a run would write over"
            " it; move it away"
        )
    return names != [MARK]


def _foreign(folder: Path) -> list[str]:
    """Return the names in a run's folder that no run writes, sorted."""
    return sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.name not in (*WRITTEN, *NAMES)
        and step_of(entry) < 0
        and not OTHERS.fullmatch(entry.name)
    )


def parent_of_start(folder: Path) -> str | None:
    """Return the checkpoint that `--init-from` named when the run was started, if any.

    Raises:
        CheckpointError: the file that names it cannot be read.
    """
    file = folder / PARENT
    try:
        return read_text(file).rstrip("\n")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{file} cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8'}; it names"
            " the checkpoint that the run started from: remove it and give --init-from (or"
            " finetune.base) again"
        ) from error


def _first_free(path: Path) -> Path:
    """Return `path-1`, or the path with the next number that is free."""
    numbered = (path.with_name(f"{path.name}-{number}") for number in itertools.count(1))
    return next(candidate for candidate in numbered if not os.path.lexists(candidate))


def _count(things: list[Path] | list[RecordedValidation], name: str) -> str:
    return f"{len(things)} {name}{'s' * (len(things) != 1)}"
