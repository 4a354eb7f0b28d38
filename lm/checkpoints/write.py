"""How the checkpoints in a run's folder change on the disk: written, named, kept and deleted.

Each change is one rename, so that a kill leaves the old state or the new one. Nothing is deleted
or renamed but checkpoints, the names of checkpoints, and temporary files with the folder's mark
(lm/system/mark.py). No link is followed. folder.py says what is in a folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lm.checkpoints.folder import (
    NAMES,
    Checkpoint,
    hash_of_table,
    pointed,
    step_directories,
    step_name,
)
from lm.system.disk import fingerprint, refusals, sync
from lm.system.errors import CheckpointError
from lm.system.mark import leftovers, temporary
from lm.system.refusal import remark


class Begun(NamedTuple):
    """A checkpoint that several processes have begun to write."""

    folder: Path  # the temporary folder
    files: dict[str, Any]  # the manifest's entries for the files that are in it already


def write_checkpoint(
    path: Path,
    writers: Mapping[str, Callable[[Path], None]],
    needed: int = 0,
    begun: Begun | None = None,
) -> dict[str, Any]:
    """Write a checkpoint so that it is complete or absent; return its manifest.

    Args:
        path: the final name. A checkpoint with this name is replaced.
        writers: file name -> function that writes that file at the path it is given.
        needed: about how many bytes the checkpoint takes, for the message about a full disk.
        begun: files that were written already, flushed and hashed.

    Raises:
        CheckpointError: the disk refused; what was there before is untouched.
    """
    new, files = begun or Begun(temporary(path), {})
    replaced = temporary(path, "replaced")
    try:
        with refusals(path, needed):
            new.mkdir(parents=True, exist_ok=begun is not None)
            for name, write in writers.items():
                write(new / name)
                sync(new / name)
                files[name] = fingerprint(new / name)
            manifest = {"files": files, "sha256": hash_of_table(files)}
            # without a line end after the last bracket, the file is no JSON wherever it is cut
            (new / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
            sync(new / "manifest.json")
            sync(new)
            if os.path.lexists(path):  # a directory that is not empty cannot be renamed over
                if not _holds_nothing_else(path):
                    raise CheckpointError(
                        f"{path} is in the way: it is no checkpoint, or holds other files; move it"
                    )
                path.rename(replaced)
            new.rename(path)
            sync(path.parent)
    finally:
        _clear_away(new)
        _clear_away(replaced)
    return manifest


def write_json(path: Path, value: object) -> None:
    """Write a value as readable JSON."""
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def point(folder: Path, name: str, target: Path) -> None:
    """Let a name mean `target`, a checkpoint in the same folder, in one step: by a relative link
    or, on a file system that refuses links, by a small file.

    Raises:
        CheckpointError: the disk refused, or the name belongs to a file that is no run's.
    """
    entry = folder / name
    with refusals(entry):
        if os.path.lexists(entry) and pointed(folder, name) is None:
            raise CheckpointError(f"{entry} was not made by a run, and is in its way; move it away")
        restore_name(folder, name)
        new = temporary(entry)
        try:
            try:
                new.symlink_to(target.name)
            except OSError:
                with new.open("x", encoding="utf-8") as file:
                    file.write(target.name + "\n")
                sync(new)
            new.replace(entry)
        finally:
            new.unlink(missing_ok=True)


def restore_name(folder: Path, name: str) -> None:
    """Make a name that is a copied directory a link or a small file again.

    The step keeps one whole copy of the checkpoint.

    Raises:
        CheckpointError: the folder has another checkpoint of that step, or the copy holds other
            files too.
        OSError: the disk refused.
    """
    copy, target = folder / name, pointed(folder, name)
    if target is None or copy.is_symlink() or not copy.is_dir():
        return
    step = folder / step_name(Checkpoint(copy).step)
    if not _holds_nothing_else(copy) or (target == copy and os.path.lexists(step)):
        raise CheckpointError(
            f"{copy} is a copied checkpoint that is not the same as {step.name}; move it away"
        )
    if target == step:
        spare = step if _is_whole(copy) and not _is_whole(step) else copy
        _remove(spare)
    if copy.exists():
        copy.rename(step)
    point(folder, name, step)


def remove_lost(folder: Path) -> list[str]:
    """Remove the names in a run's folder that an archive made empty directories, and return them.

    An archive that does not follow links may leave those in their place. Raises OSError.
    """
    lost = [
        name
        for name in NAMES
        if (entry := folder / name).is_dir() and not entry.is_symlink() and not any(entry.iterdir())
    ]
    for name in lost:
        (folder / name).rmdir()
    return lost


def retain(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints and those that a name or a link means. A
    directory that holds other files too stays.

    Raises:
        CheckpointError: the disk refused.
    """
    kept = {os.path.realpath(entry) for entry in folder.iterdir() if entry.is_symlink()}
    kept |= {os.path.realpath(target) for name in NAMES if (target := pointed(folder, name))}
    for path in step_directories(folder)[:-keep]:
        if os.path.realpath(path) in kept:
            continue
        if not _holds_nothing_else(path):
            remark(f"{path} is not deleted: it is damaged, or holds other files than a run's")
            continue
        with refusals(path):
            _remove(path)


def sweep(folder: Path) -> None:
    """Remove the temporary files of killed writers; the caller must hold the folder's lock."""
    for entry in leftovers(folder):
        _clear_away(entry)


def _holds_nothing_else(path: Path) -> bool:
    """Return whether a directory holds a checkpoint's files alone: it may be removed."""
    try:
        names = {entry.name for entry in path.iterdir()}
        return not path.is_symlink() and names <= {*Checkpoint(path).files, "manifest.json"}
    except (OSError, CheckpointError):
        return False


def _is_whole(path: Path) -> bool:
    with contextlib.suppress(CheckpointError):
        Checkpoint(path).verify()
        return True
    return False


def _remove(path: Path) -> None:
    """Remove a checkpoint. It is renamed first: half of it must not look like a checkpoint."""
    doomed = temporary(path, "deleted")
    path.rename(doomed)
    _clear_away(doomed)


def _clear_away(leftover: Path) -> None:
    """Delete a temporary file or folder.

    A checkpoint that was renamed to make room for its successor gets its name back if the
    successor never arrived.
    """
    final = leftover.with_name(leftover.name[1:].rpartition(".tmp-")[0])
    with contextlib.suppress(OSError):
        if leftover.name.endswith("-replaced") and leftover.exists() and not final.exists():
            leftover.rename(final)
        elif leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)
