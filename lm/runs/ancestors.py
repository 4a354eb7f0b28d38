"""The checkpoints that a run descends from, as far as they still lie where it says, or beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm.checkpoints.folder import Checkpoint
from lm.system.errors import CheckpointError
from lm.system.json_values import found, text, whole

MOST = 32


@dataclass(frozen=True)
class Ancestor:
    """A checkpoint, as its child's meta.json has it.

    Attributes:
        path: as it was named then.
        place: where a checkpoint with just this manifest hash lies now; None: nowhere that we
            looked.
        meta: its meta.json; empty without `place`.
    """

    path: str
    step: int | None
    manifest_sha256: str | None
    place: Path | None
    meta: Mapping[str, Any]


def ancestors(folder: Path, meta: Mapping[str, Any]) -> Iterator[Ancestor]:
    """The parent of a run in `folder` whose checkpoints have `meta`, then its parent, to the first
    whose own are not known.
    """
    for _ in range(MOST):  # a chain that somebody has made into a ring ends, too
        parent = found(meta, "parent")
        path = text(parent, "path")
        if path is None:
            return
        sha256 = text(parent, "manifest_sha256")
        place = _place(folder, path, sha256)
        meta = Checkpoint(place).meta if place is not None else {}
        yield Ancestor(path, whole(parent, "step"), sha256, place, meta)
        folder = place.parent if place is not None else folder


def _place(folder: Path, path: str, sha256: str | None) -> Path | None:
    """As it is written, or beside the run's folder, if runs were moved together. Only the very
    bytes count.
    """
    named = Path(path)
    for candidate in (named, folder.resolve().parent / named.parent.name / named.name):
        try:
            if Checkpoint(candidate).sha256 == sha256 and Checkpoint(candidate).meta:
                return candidate
        except (
            CheckpointError,
            OSError,
            ValueError,
        ):  # ValueError: no path at all, with a NUL in it
            continue
    return None
