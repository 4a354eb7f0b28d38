"""The folder of a token cache: built once, under a lock, resumed where it was interrupted, and used
only if it is whole.

A folder is written under another name and renamed when it is whole, so what bears the right name
can be used. Deleting a cache costs nothing but time.
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

JOURNAL = "journal.json"  # in a folder that is being built: how far it is


def open_or_build(
    folder: Path, build: Callable[[Path], Manifest], say: Callable[[str], None]
) -> tuple[Manifest, bool]:
    """The manifest of the cache in `folder`, built first if it is not there, and whether it was
    there.

    Processes that want the same cache at the same time wait for the one that builds it. One that
    was killed or stopped leaves its work behind for the next, if it has written a `JOURNAL`.

    Args:
        folder: the cache; its name is the fingerprint.
        build: fills a folder and returns the manifest, but for the fingerprint. The folder is
            empty, or holds a journal.
        say: told what takes time or is out of order.

    Raises:
        CheckpointError: the folder cannot be written. And whatever `build` finds wrong with the
            data.
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
    """Whether a part of a cache is there that the next build goes on from."""
    return (folder.with_suffix(".tmp") / JOURNAL).exists()


def _build(folder: Path, build: Callable[[Path], Manifest]) -> Manifest:
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
        # A wrong text has to be mended, and then it is another one. But what was stopped, or found
        # the disk full, goes on.
        if isinstance(error, DataError) or not (temporary / JOURNAL).exists():
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    (folder / JOURNAL).unlink(missing_ok=True)  # last: a kill before the renaming finds it
    return manifest


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a whole cache; None where there is none, or where a file is missing or of
    another size.
    """
    try:
        manifest: Manifest = json.loads((folder / "manifest.json").read_bytes())
        files = [item for entry in manifest["splits"].values() for item in entry["files"].items()]
        whole = manifest["fingerprint"] == folder.name and all(
            (folder / name).stat().st_size == file["bytes"] for name, file in files
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return manifest if whole else None


def damaged(folder: Path, manifest: Manifest) -> list[str]:
    """The files whose content is not what the manifest's hashes say, or cannot be read; reads them
    all.
    """
    files = [item for entry in manifest["splits"].values() for item in entry["files"].items()]
    found = []
    for name, file in files:
        try:
            whole = fingerprint(folder / name) == file
        except OSError:
            whole = False
        if not whole:
            found.append(name)
    return found
