"""The folder of a token cache: built once, under a lock, and used only if it is complete and whole.

A folder is written under a temporary name and renamed when it is complete. An interrupted build
continues where it stopped. Deleting a cache costs nothing but time.

A command that learns or scores from a cache first reads all of it: each file must have the hash
that manifest.json says, each id must be one of the tokenizer, and the places where documents begin
must be ascending and within the tokens. On each machine only the first process of a run does this.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lm.system.disk import sync
from lm.system.environment import count_processes, is_first_on_machine
from lm.system.errors import CheckpointError, DataError, first_line
from lm.system.locks import hold
from lm.system.refusal import why
from lm.tokens import manifest as manifests
from lm.tokens.hashing import hash_files
from lm.tokens.manifest import Manifest, WindowManifest

JOURNAL = "journal.json"  # the progress of a folder that is being built


class DamagedError(ValueError):
    """The reason why a cache that exists is not what was written."""


def open_or_build(
    folder: Path,
    build: Callable[[Path], Manifest],
    say: Callable[[str], None],
    vocab_size: int | None = None,
) -> tuple[Manifest, bool]:
    """Return the manifest of the cache in `folder`, and whether it existed; if not, build it.

    Processes that need the same cache wait for the one that builds it. If a process is killed, the
    next one continues its work, provided that the work has a `JOURNAL`.

    Args:
        folder: the cache; its name is the fingerprint.
        build: fills a folder, and returns the manifest without the fingerprint. The folder is
            empty, or holds a journal.
        say: logs a line.
        vocab_size: reads and checks the whole cache too; the tokenizer has so many ids.

    Raises:
        CheckpointError: the folder cannot be written; or it was damaged, and is built again: other
            processes of this run, which do not read all of it, may have opened the damaged files.
        DataError: `build` found a mistake in the data.
    """
    damaged = False
    try:
        if manifest := open_cache(folder, vocab_size):
            return manifest, True
    except DamagedError as damage:
        damaged = True
        say(f"{folder} is damaged ({damage}): building it again")
    waiting = f"another process is preparing the same tokens in {folder.parent}: waiting for it"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with hold(folder.with_suffix(".lock"), lambda: say(waiting)):
            try:
                if manifest := open_cache(folder, vocab_size):  # built while this process waited
                    return manifest, True
            except DamagedError:
                damaged = True
            built = _build(folder, build)
    except OSError as error:
        kept = (
            f"; {folder.with_suffix('.tmp')} keeps what is done, and it goes on from there"
            if unfinished(folder)
            else ""
        )
        raise CheckpointError(
            f"data.cache_dir: {folder.parent} cannot be written: {why(error, folder.parent)}{kept}"
        ) from error
    if damaged and count_processes() > 1:
        raise CheckpointError(
            f"data.cache_dir: {folder} was damaged and is built again; start again with the same"
            " command"
        )
    return built, False


def open_cache(folder: Path, vocab_size: int | None = None) -> Manifest | None:
    """Return the manifest of a cache; None if there is no folder.

    Args:
        folder: the cache.
        vocab_size: as in `open_or_build`.

    Raises:
        DamagedError: the cache is not what was written.
    """
    try:
        if not folder.exists():
            return None
    except OSError:
        return None  # building it says why
    try:
        values = manifests.read_values(folder / manifests.FILE)
        manifest = Manifest.model_validate(values)
    except ValueError as error:
        raise DamagedError(manifests.first_problem(error)) from error
    if manifest.fingerprint != folder.name:
        raise DamagedError(f"{manifests.FILE} is of another folder")
    if len(manifest.splits) < 2:
        raise DamagedError(f"{manifests.FILE} lacks a split")
    for name, file in manifest.files.items():
        try:
            size = (folder / name).stat().st_size
        except OSError as error:
            raise DamagedError(f"{name}: {error.strerror}") from error
        if size != file.bytes:
            raise DamagedError(f"{name} has {size:,} bytes instead of {file.bytes:,}")
    if vocab_size is not None and is_first_on_machine():
        verify(folder, manifest, vocab_size)
    return manifest


def verify(folder: Path, manifest: Manifest | WindowManifest, vocab_size: int) -> None:
    """Read all files of a cache or of a window; check hashes, ids and where documents begin.

    Raises:
        DamagedError: naming a file that differs.
    """
    dtype = np.dtype(manifest.dtype)
    last_start: dict[str, int] = {}

    def see(path: Path, chunk: bytes) -> None:
        split, _, name = path.stem.partition("-")
        if name == "starts":
            starts = np.frombuffer(chunk, np.int64)
            tokens = manifest.splits[split].tokens  # type: ignore[index]
            ascending = np.diff(starts, prepend=last_start.get(split, -1)) > 0
            if not ascending.all() or starts[-1] >= tokens:
                raise DamagedError(f"{path.name} holds places where no document can begin")
            last_start[split] = int(starts[-1])
        elif name.isdigit() and (largest := np.frombuffer(chunk, dtype).max()) >= vocab_size:
            raise DamagedError(
                f"{path.name} holds the id {largest:,}, beyond the tokenizer's {vocab_size:,}"
            )

    paths = [folder / name for name in manifest.files]
    try:
        found = hash_files("checking the tokens", paths, see)
    except DamagedError:
        raise
    except (OSError, ValueError) as error:
        raise DamagedError(f"its files cannot be read ({first_line(error)})") from error
    for (name, file), sha256 in zip(manifest.files.items(), found, strict=True):
        if sha256 != file.sha256:
            raise DamagedError(f"{name} has another hash than {manifests.FILE} says")


def unfinished(folder: Path) -> bool:
    """Return whether a part of a cache exists that the next build continues."""
    with contextlib.suppress(OSError):  # a name that is too long, or a folder that is shut
        return (folder.with_suffix(".tmp") / JOURNAL).exists()
    return False


def _build(folder: Path, build: Callable[[Path], Manifest]) -> Manifest:
    """Build a cache in a temporary folder, and rename the folder at the end."""
    temporary = folder.with_suffix(".tmp")
    if not unfinished(folder):
        shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(exist_ok=True)
    try:
        manifest = build(temporary).model_copy(update={"fingerprint": folder.name})
        text = manifests.sealed(manifest)
        (temporary / manifests.FILE).write_text(text, encoding="utf-8")
        for path in (*temporary.iterdir(), temporary):
            sync(path)
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one, which was kept until now
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
