"""The folder of a token cache: built once, under a lock, and used only if it is complete.

A folder is written under a temporary name and renamed when it is complete. An interrupted build
continues where it stopped. Deleting a cache costs nothing but time.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from lm.system.disk import fingerprint, sync
from lm.system.errors import CheckpointError, DataError
from lm.system.locks import hold
from lm.tokens.store import Manifest

JOURNAL = "journal.json"  # the progress of a folder that is being built


def open_or_build(
    folder: Path, build: Callable[[Path], Manifest], say: Callable[[str], None]
) -> tuple[Manifest, bool]:
    """Return the manifest of the cache in `folder`, and whether it existed; if not, build it.

    Processes that need the same cache wait for the one that builds it. If a process is killed, the
    next one continues its work, provided that the work has a `JOURNAL`.

    Args:
        folder: the cache; its name is the fingerprint.
        build: fills a folder, and returns the manifest without the fingerprint. The folder is
            empty, or holds a journal.
        say: logs a line.

    Raises:
        CheckpointError: the folder cannot be written.
        DataError: `build` found a mistake in the data.
    """
    if manifest := read_manifest(folder):
        return manifest, True
    waiting = f"another process is preparing the same tokens in {folder.parent}: waiting for it"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with hold(folder.with_suffix(".lock"), lambda: say(waiting)):
            if manifest := read_manifest(folder):  # built by another process while this one waited
                return manifest, True
            if folder.exists():
                say(
                    f"{folder} is damaged (its files are not as its manifest.json says): building"
                    " it again"
                )
            return _build(folder, build), False
    except OSError as error:
        kept = (
            f"; {folder.with_suffix('.tmp')} keeps what is done, and it goes on from there"
            if unfinished(folder)
            else ""
        )
        raise CheckpointError(
            f"data.cache_dir: {folder.parent} cannot be written ({error.strerror or error}); free"
            " some space there or name another folder" + kept
        ) from error


def unfinished(folder: Path) -> bool:
    """Return whether a part of a cache exists that the next build continues."""
    return (folder.with_suffix(".tmp") / JOURNAL).exists()


def _build(folder: Path, build: Callable[[Path], Manifest]) -> Manifest:
    """Build a cache in a temporary folder, and rename the folder at the end."""
    temporary = folder.with_suffix(".tmp")
    shutil.rmtree(folder, ignore_errors=True)
    if not unfinished(folder):
        shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(exist_ok=True)
    try:
        manifest = {"fingerprint": folder.name, **build(temporary)}
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        for path in (*temporary.iterdir(), temporary):
            sync(path)
        temporary.rename(folder)
        sync(folder.parent)
    except BaseException as error:
        # A text with a mistake becomes another text when it is mended. But a build that was
        # stopped, or that found the disk full, continues.
        if isinstance(error, DataError) or not (temporary / JOURNAL).exists():
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    (folder / JOURNAL).unlink(missing_ok=True)  # last: a kill before the renaming needs it
    return manifest


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of a complete cache; None if a file is missing or has the wrong size."""
    try:
        manifest: Manifest = json.loads((folder / "manifest.json").read_bytes())
        files = [item for entry in manifest["splits"].values() for item in entry["files"].items()]
        complete = manifest["fingerprint"] == folder.name and all(
            (folder / name).stat().st_size == file["bytes"] for name, file in files
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return manifest if complete else None


def damaged(folder: Path, manifest: Manifest) -> list[str]:
    """Read all files, and return those that differ from the manifest's hashes or cannot be read."""
    files = [item for entry in manifest["splits"].values() for item in entry["files"].items()]
    names = []
    for name, file in files:
        try:
            same = fingerprint(folder / name) == file
        except OSError:
            same = False
        if not same:
            names.append(name)
    return names
