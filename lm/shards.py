"""Token shards: what documents become on disk, once, so that any row of any run can be read in an instant.

A cache is one folder, named after a fingerprint of everything that its content depends on:

    <cache_dir>/<fingerprint>/
        train-00000.bin  train-00001.bin ...    token ids without gaps, in the smallest unsigned type that holds the vocabulary
        train-starts.bin                        int64: where in the stream each document's EOS stands
        val-...                                 the same for the validation split
        manifest.json                           type, counts, and each file's size

The stream of a split is `EOS d1 EOS d2 ... EOS dn EOS`: each document is opened by an EOS, and one closes the last. A folder is written
under another name and renamed when it is whole, so what bears the right name can be used. Deleting a cache costs nothing but time.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm.disk import sync
from lm.errors import CheckpointError

FORMAT = 1  # Part of the fingerprint: raise it when the same text would give other files.
SHARD_TOKENS = 2**26  # 128 MB at two bytes.

Manifest = dict[str, Any]


class SplitWriter:
    """Appends the documents of one split to its files; `entry` is what the manifest says of them."""

    def __init__(self, folder: Path, split: str, eos_id: int, dtype: Any, shard_tokens: int = SHARD_TOKENS):
        self._folder = folder
        self._split = split
        self._eos = np.array([eos_id], dtype)
        self._shard_tokens = shard_tokens
        self._hash = hashlib.sha256()
        self.tokens = 0
        self.documents = 0
        self.text_bytes = 0

    def add(self, documents: Sequence[NDArray[Any]], text_bytes: int) -> None:
        """Append documents, given as ids of the shards' type without EOS; `text_bytes` is the size of their texts in UTF-8."""
        lengths = np.array([1 + len(ids) for ids in documents], np.int64)
        self._append(f"{self._split}-starts.bin", self.tokens + np.cumsum(lengths) - lengths)
        self._add_tokens(np.concatenate([part for ids in documents for part in (self._eos, ids)]))
        self.documents += len(documents)
        self.text_bytes += text_bytes

    def close(self) -> Manifest:
        """Write the last EOS and return the manifest's entry."""
        self._add_tokens(self._eos)
        files = sorted(self._folder.glob(f"{self._split}-*.bin"))
        return {
            "tokens": self.tokens,
            "documents": self.documents,
            "text_tokens": self.tokens - self.documents - 1,
            "text_bytes": self.text_bytes,
            "shard_tokens": self._shard_tokens,
            "sha256": self._hash.hexdigest(),
            "files": {file.name: file.stat().st_size for file in files},
        }

    def _add_tokens(self, ids: NDArray[Any]) -> None:
        assert ids.dtype == self._eos.dtype, f"{ids.dtype} ids for {self._eos.dtype} shards"
        while len(ids):
            shard, used = divmod(self.tokens, self._shard_tokens)
            fitting, ids = np.split(ids, [self._shard_tokens - used])
            self._append(f"{self._split}-{shard:05d}.bin", fitting)
            self._hash.update(fitting.tobytes())
            self.tokens += len(fitting)

    def _append(self, name: str, values: NDArray[Any]) -> None:
        with (self._folder / name).open("ab") as file:
            file.write(values.tobytes())


class TokenStore:
    """One split of a cache: a stream of `tokens` ids, read through memory maps that each process opens when it first needs them.

    Attributes:
        tokens, documents: how many there are, EOS tokens counted.
        text_tokens, text_bytes: the same text in tokens, EOS not counted, and in bytes of UTF-8.
        sha256: of the ids; equal data have equal hashes, wherever they came from.
    """

    def __init__(self, folder: Path, split: str, manifest: Manifest):
        entry = manifest["splits"][split]
        self.tokens: int = entry["tokens"]
        self.documents: int = entry["documents"]
        self.text_tokens: int = entry["text_tokens"]
        self.text_bytes: int = entry["text_bytes"]
        self.sha256: str = entry["sha256"]
        self.dtype = np.dtype(manifest["dtype"])
        self._shard_tokens: int = entry["shard_tokens"]
        self._prefix = folder / split
        self._maps: dict[str, NDArray[Any]] = {}

    def read(self, start: int, length: int) -> NDArray[Any]:
        """A copy of ids `start` to `start + length`, across shards; fewer at the end of the stream."""
        end = min(start + length, self.tokens)
        assert 0 <= start < end, f"nothing to read at {start} of {self.tokens}"
        size = self._shard_tokens
        return np.concatenate(
            [
                self._map(f"{shard:05d}", self.dtype)[max(start - shard * size, 0) : end - shard * size]
                for shard in range(start // size, (end - 1) // size + 1)
            ]
        )

    @property
    def document_starts(self) -> NDArray[np.int64]:
        """Where each document's EOS stands, ascending; on disk, not in memory."""
        return self._map("starts", np.dtype(np.int64))

    def _map(self, name: str, dtype: np.dtype[Any]) -> NDArray[Any]:
        if name not in self._maps:
            self._maps[name] = np.asarray(np.memmap(f"{self._prefix}-{name}.bin", dtype, mode="r"))
        return self._maps[name]

    def __getstate__(self) -> dict[str, Any]:
        # A worker that is sent a memory map would be sent the file's content.
        return {**self.__dict__, "_maps": {}}


def open_or_build(folder: Path, build: Callable[[Path], Manifest], say: Callable[[str], None]) -> tuple[Manifest, bool]:
    """The manifest of the cache in `folder`, built first if it is not there, and whether it was there.

    Processes that want the same cache at the same time wait for the one that builds it. What a killed one left behind is removed.

    Args:
        folder: the cache; its name is the fingerprint.
        build: fills an empty folder and returns the manifest, but for the fingerprint.
        say: told what takes time or is out of order.

    Raises:
        CheckpointError: the folder cannot be written. And whatever `build` finds wrong with the data.
    """
    if manifest := read_manifest(folder):
        return manifest, True
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder.with_suffix(".lock"), say):
            if manifest := read_manifest(folder):  # built by another process while this one waited
                return manifest, True
            if folder.exists():
                say(f"{folder} is damaged (its files are not as its manifest.json says): building it again")
            return _build(folder, build), False
    except OSError as error:
        raise CheckpointError(
            f"data.cache_dir: {folder.parent} cannot be written ({error.strerror or error}); free some space there or name another folder"
        ) from error


def _build(folder: Path, build: Callable[[Path], Manifest]) -> Manifest:
    temporary = folder.with_suffix(".tmp")
    for leftover in (folder, temporary):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir()
    try:
        manifest = {"fingerprint": folder.name, **build(temporary)}
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        for path in (*temporary.iterdir(), temporary):
            sync(path)
        temporary.rename(folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a whole cache; None where there is none, or where a file is missing or of another size."""
    try:
        manifest: Manifest = json.loads((folder / "manifest.json").read_bytes())
        files = [item for entry in manifest["splits"].values() for item in entry["files"].items()]
        whole = manifest["fingerprint"] == folder.name and all((folder / name).stat().st_size == size for name, size in files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return manifest if whole else None


@contextlib.contextmanager
def _lock(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold a lock that ends with the process, however that ends."""
    with path.open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process is preparing the same tokens in {path.parent}: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
