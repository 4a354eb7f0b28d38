"""A run's folder: who may write in it, what it holds, and what its checkpoints scored.

    checkpoints/
        step-*.ckpt, best.ckpt, last.ckpt, final.ckpt     see lm/checkpoint.py
        config.yaml            the resolved configuration
        metrics.csv            one row each `logging.every` steps and each validation
        evaluations.jsonl      one line each validation: step, checkpoint, loss, and a text that the model wrote
        curves.png, events.*   curves, and TensorBoard's files
        .lock                  held while a run writes here

Nothing is ever deleted but old checkpoints beyond `checkpoint.keep`: what is in the way of a new run is moved aside, and that is said.
Only the standard library, so that listing and refusing are instant.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from lm.checkpoint import newest_whole, open_checkpoint, point, pointed, read_manifest, step_directories, step_of, sweep, verify
from lm.errors import CheckpointError, ConfigError

NAMES = ("best.ckpt", "last.ckpt", "final.ckpt")


@dataclass(frozen=True)
class Evaluated:
    """One line of evaluations.jsonl: the score of the weights after `step` updates. Step 0 has no checkpoint and no manifest."""

    step: int
    manifest_sha256: str | None
    loss: float
    perplexity: float
    bits_per_byte: float
    tokens: int
    seconds: float
    sample: str | None = None


class RunFolder:
    """A run's folder, locked by this process."""

    def __init__(self, path: str | Path):
        """Create the folder if need be and lock it.

        Raises:
            ConfigError: another run is at work in it.
            CheckpointError: it cannot be created or written.
        """
        self.path = Path(path)
        self._lock = _lock(self.path)

    def start_fresh(self) -> str | None:
        """Make room for a new run; return what was said to be here and where it is now, or None if there was nothing.

        The whole folder is renamed, one atomic operation, to the first free `NAME-1`, `NAME-2`, ...
        """
        steps = step_directories(self.path)
        if not steps and not any((self.path / name).exists() for name in ("metrics.csv", "evaluations.jsonl")):
            sweep(self.path)
            return None
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}-{number}")).exists():
            number += 1
        try:
            self.path.rename(aside)
        except OSError as error:
            raise CheckpointError(
                f"{self.path} holds another run and cannot be moved to {aside} ({error.strerror}); set checkpoint.directory to a new folder"
            ) from error
        self.close()
        self._lock = _lock(self.path)
        held = f"{len(steps)} checkpoint{'s' * (len(steps) != 1)}" + (f", the last at step {step_of(steps[-1]):,}" if steps else "")
        return f"{self.path} held another run ({held}); it is now {aside} (continue it with --resume auto --checkpoint.directory {aside})"

    def rewind(self, step: int) -> str | None:
        """Forget what happened after `step`, because the run goes on from there; checkpoints of that future are moved aside, not deleted."""
        sweep(self.path)
        later = [path for path in step_directories(self.path) if step_of(path) > step]
        kept = [line for line in self.evaluations() if line.step <= step]
        self._rewrite_evaluations(kept)
        said = None
        if later:
            number = 1
            while (aside := self.path / f"after-step-{step:08d}-{number}").exists():
                number += 1
            aside.mkdir()
            for path in later:
                path.rename(aside / path.name)
            said = f"{len(later)} later checkpoint{'s' * (len(later) != 1)} moved to {aside}"
        for name in NAMES:
            target = pointed(self.path, name)
            if name == "final.ckpt" or (target is not None and not target.exists()):
                (self.path / name).unlink(missing_ok=True)
        self.point_to_best()
        return said

    def evaluations(self) -> list[Evaluated]:
        """Every recorded validation, oldest first."""
        return read_evaluations(self.path)

    def record(self, evaluated: Evaluated) -> None:
        """Append a validation's result, durably, and let best.ckpt follow it."""
        with (self.path / "evaluations.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(evaluated)) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.point_to_best()

    def point_to_best(self) -> None:
        """Let best.ckpt mean the checkpoint with the lowest recorded loss, of those that are still here."""
        by_manifest = {}
        for path in step_directories(self.path):
            try:
                by_manifest[read_manifest(path)["sha256"]] = path
            except CheckpointError:
                continue
        scored = [line for line in self.evaluations() if line.manifest_sha256 in by_manifest and not math.isnan(line.loss)]
        if scored:
            best = min(scored, key=lambda line: (line.loss, line.step))
            point(self.path, "best.ckpt", by_manifest[best.manifest_sha256])

    def close(self) -> None:
        """Release the lock; the end of the process does so too."""
        self._lock.close()

    def _rewrite_evaluations(self, lines: Iterable[Evaluated]) -> None:
        path = self.path / "evaluations.jsonl"
        if not path.exists():
            return
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(asdict(line)) + "\n" for line in lines), encoding="utf-8")
        temporary.replace(path)


def find_checkpoint(folder: Path, resume: str, say: Callable[[str], None]) -> Path | None:
    """The checkpoint to continue from: for `auto` the newest whole one (None: nothing to resume), else the one that is named.

    Raises:
        CheckpointError: `auto` found checkpoints, all of them damaged; or the named one is missing or damaged.
        ConfigError: the named one lies in another folder than this run's.
    """
    if resume == "auto":
        found, problems = newest_whole(folder)
        for problem in problems:
            say(f"passed over: {problem}")
        if found is None and problems:
            raise CheckpointError(
                f"{folder}: none of its {len(problems)} checkpoints is whole; start again without --resume (they will be kept)"
            )
        return found
    found = open_checkpoint(resume)
    if found.parent != folder.resolve():
        raise ConfigError(
            f"command line: --resume {resume}: that run is in {found.parent}, but checkpoint.directory is {folder}; "
            f"write --checkpoint.directory {found.parent} to continue it, or --init-from {resume} to start a new run from its weights"
        )
    verify(found)
    return folder / found.name


def read_evaluations(folder: Path) -> list[Evaluated]:
    """The lines of a run's evaluations.jsonl; one that a kill cut short is left out, and so was never a result."""
    path = folder / "evaluations.jsonl"
    if not path.exists():
        return []
    lines: list[Evaluated] = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            values: dict[str, Any] = json.loads(text)
            lines.append(Evaluated(**values))
        except (ValueError, TypeError):
            continue
    return lines


def validations_without_progress(lines: list[Evaluated]) -> int:
    """How many validations have passed since the lowest loss; early stopping compares it with its patience."""
    losses = [math.inf if math.isnan(line.loss) else line.loss for line in lines]
    return len(losses) - 1 - losses.index(min(losses)) if losses else 0


def _lock(path: Path) -> TextIO:
    try:
        path.mkdir(parents=True, exist_ok=True)
        file = (path / ".lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be used as the run's folder: {error.strerror}; set checkpoint.directory to another"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        raise ConfigError(
            f"{path} is in use by another run (process {holder}); wait for it, or set checkpoint.directory to another folder"
        ) from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file
