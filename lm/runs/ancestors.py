"""The checkpoints that a run descends from, if they are still where its meta.json says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm.checkpoints.folder import Checkpoint
from lm.system.errors import CheckpointError
from lm.system.json_values import count, lookup, text

MOST = 32


@dataclass(frozen=True)
class Ancestor:
    """A checkpoint, as its child's meta.json names it.

    Attributes:
        path: its path when the child started.
        place: the path of a checkpoint with this manifest hash today; None: it was not found.
        meta: its meta.json; empty without `place`.
    """

    path: str
    step: int | None
    manifest_sha256: str | None
    place: Path | None
    meta: Mapping[str, Any]


def ancestors(folder: Path, meta: Mapping[str, Any]) -> Iterator[Ancestor]:
    """Yield the parent of a run, then the parent's parent, until one is unknown.

    Args:
        folder: the run's folder.
        meta: the meta.json of its checkpoints.
    """
    for _ in range(MOST):  # a chain that somebody made into a ring ends, too
        parent = lookup(meta, "parent")
        path = text(parent, "path")
        if path is None:
            return
        sha256 = text(parent, "manifest_sha256")
        place = _place(folder, path, sha256)
        meta = place.meta if place is not None else {}
        where = place.path if place is not None else None
        yield Ancestor(path, count(parent, "step"), sha256, where, meta)
        folder = where.parent if where is not None else folder


def _place(folder: Path, path: str, sha256: str | None) -> Checkpoint | None:
    """Return the checkpoint at `path`, or next to the run's folder if both were moved together.

    Only a checkpoint with the same bytes counts.
    """
    named = Path(path)
    for candidate in (named, folder.resolve().parent / named.parent.name / named.name):
        try:
            checkpoint = Checkpoint(candidate)
            if checkpoint.sha256 == sha256 and checkpoint.meta:
                return checkpoint
        except (CheckpointError, OSError, ValueError):  # ValueError: a path with a NUL in it
            continue
    return None
