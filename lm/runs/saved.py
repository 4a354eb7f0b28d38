"""The checkpoints in a run's folder, whole or damaged.

list.py starts with this file, so it needs only the standard library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm.checkpoints.folder import NAMES, Checkpoint, checkpoints_in, pointed, step_of
from lm.system.errors import CheckpointError
from lm.system.json_values import count


@dataclass(frozen=True)
class Saved:
    """A checkpoint in the folder. If it is damaged, `problem` says how, and nothing is known of it
    but the path, the step and the links.

    Attributes:
        step: None if neither the name nor meta.json says it.
        links: those of best.ckpt, last.ckpt, final.ckpt, ... that mean it.
        meta: the content of meta.json.
        files: name -> {"bytes", "sha256"}, from the manifest.
    """

    path: Path
    step: int | None
    links: tuple[str, ...]
    meta: Mapping[str, Any]
    files: Mapping[str, Any]
    manifest_sha256: str | None
    problem: str | None

    @property
    def size(self) -> int | None:
        """The bytes of all its files; None if it is damaged."""
        if self.problem is not None:
            return None
        return sum(count(file, "bytes") or 0 for file in self.files.values())


def saved_checkpoints(folder: Path) -> list[Saved]:
    """Return the checkpoints in a run's folder, oldest first.

    Raises:
        CheckpointError: the folder cannot be read.
    """
    return [saved_checkpoint(path) for path in checkpoints_in(folder)]


def saved_checkpoint(path: Path) -> Saved:
    """Return one checkpoint, whole or damaged."""
    step = named if (named := step_of(path)) >= 0 else None
    links = tuple(name for name in NAMES if pointed(path.parent, name) == path)
    checkpoint = Checkpoint(path)
    try:
        meta, step = checkpoint.meta, checkpoint.step
        files, sha256 = checkpoint.files, checkpoint.sha256
    except CheckpointError as error:
        return Saved(path, step, links, {}, {}, None, problem=str(error))
    return Saved(path, step, links, meta, files, sha256, problem=None)
