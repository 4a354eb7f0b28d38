"""Token shards: documents on disk as token ids, from which any row of any run is read quickly.

A cache is one folder, named after a fingerprint of everything that its content depends on:

    <cache_dir>/<fingerprint>/
        train-00000.bin ...    token ids without gaps, in the smallest type that holds all ids
        train-starts.bin       int64: where in the stream each document's EOS stands
        train-hashes.bin       uint64: a hash of each document's text
        train-flags.bin        conversations only: a byte for each id, see lm/documents/templates.py
        val-...                the same for the validation split
        manifest.json          type, counts, and each file's size and SHA-256 (manifest.py)

The stream of a split is `EOS d1 EOS d2 ... EOS dn EOS`: an EOS opens each document, and one closes
the last.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm.documents.templates import LEARNED
from lm.system.disk import sync
from lm.tokenizer.tokenizer import starts_of
from lm.tokens.manifest import (
    FileFacts,
    Manifest,
    SplitEntry,
    SplitName,
    WindowManifest,
    facts_of,
)

FORMAT = 2  # part of the fingerprint: raise it if the same text would give other files
SHARD_TOKENS = 2**26  # 128 MB at two bytes
COUNTED_AT_ONCE = 2**16  # tokens
MOST_OPEN = 128  # files; a process may open 1,024, and a large corpus has more shards


@dataclass(eq=False)
class Counts:
    """How much a split of a cache holds.

    Attributes:
        tokens, documents: how many there are; EOS tokens count.
        text_tokens, text_bytes: the text in tokens without EOS, and in bytes of UTF-8. In
            conversations only text that is learnt counts.
        unknown_tokens: how many tokens are the tokenizer's unknown token.
        compared_bytes, lost_bytes: how much text was compared with what its tokens decode to, and
            how much of it does not come back (lm/tokens/round_trip.py).
        empty_documents: how many documents became no token at all.
    """

    tokens: int = 0
    documents: int = 0
    text_tokens: int = 0
    text_bytes: int = 0
    unknown_tokens: int = 0
    compared_bytes: int = 0
    lost_bytes: int = 0
    empty_documents: int = 0


COUNTS = [field.name for field in fields(Counts)]


class SplitWriter(Counts):
    """Appends the documents of a split to its files; `close` returns their entry in the manifest.

    With the `state` of a killed writer it continues in the same folder, and cuts off what that
    writer wrote after the state.

    Raises:
        ValueError: the files hold less than the state says.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        eos_id: int,
        dtype: Any,
        shard_tokens: int = SHARD_TOKENS,
        state: Mapping[str, int] | None = None,
        flagged: bool = False,
    ):
        self._folder = folder
        self._split = split
        self._eos = np.array([eos_id], dtype)
        self._shard_tokens = shard_tokens
        self._flagged = flagged
        super().__init__(**{} if state is None else {name: state[name] for name in COUNTS})
        self._cut()

    @property
    def state(self) -> dict[str, int]:
        """The state from which another writer continues; call `sync` first."""
        return asdict(self)

    def add(
        self,
        ids: NDArray[Any],
        lengths: NDArray[np.int64],
        hashes: NDArray[np.uint64],
        text_bytes: int,
        flags: NDArray[np.uint8] | None = None,
        text_tokens: int | None = None,
        unknown_tokens: int = 0,
        compared_bytes: int = 0,
        lost_bytes: int = 0,
    ) -> None:
        """Append documents.

        Args:
            ids: the ids of all these documents, in the shards' type, each after an EOS.
            lengths: how many ids each document has, without EOS.
            hashes: the hash of each document's text.
            text_bytes: the size of the text in UTF-8.
            flags: a flag for each id, if the writer is `flagged`.
            text_tokens: how many of the ids are text; None: all but EOS.
            unknown_tokens, compared_bytes, lost_bytes: as in `Counts`.
        """
        assert (flags is not None) == self._flagged
        assert ids.dtype == self._eos.dtype, f"{ids.dtype} ids for {self._eos.dtype} shards"
        assert len(ids) == lengths.sum() + len(lengths), "an EOS is missing"
        if flags is not None:
            self._append("flags", flags)
        self._append("starts", self.tokens + starts_of(lengths))
        self._append("hashes", hashes)
        self._add_tokens(ids)
        self.documents += len(lengths)
        self.text_tokens += int(lengths.sum()) if text_tokens is None else text_tokens
        self.text_bytes += text_bytes
        self.unknown_tokens += unknown_tokens
        self.compared_bytes += compared_bytes
        self.lost_bytes += lost_bytes
        self.empty_documents += int((lengths == 0).sum())

    def sync(self) -> None:
        """Wait until everything is on the disk."""
        for file in self._files():
            sync(file)

    def close(self) -> SplitEntry:
        """Write the last EOS and return the manifest's entry."""
        self._add_tokens(self._eos)
        if self._flagged:
            self._append("flags", np.zeros(1, np.uint8))
        with ThreadPoolExecutor(2) as both:  # hashing runs outside the interpreter's lock
            stream = both.submit(self._stream_sha256)
            first, *others = self._files()
            facts = {file.name: facts_of(file) for file in others}
        sha256, first_sha256 = stream.result()
        first_facts = FileFacts(bytes=first.stat().st_size, sha256=first_sha256)
        return SplitEntry(
            **asdict(self),
            shard_tokens=self._shard_tokens,
            sha256=sha256,
            files={first.name: first_facts, **facts},
        )

    def _stream_sha256(self) -> tuple[str, str]:
        """Hash the ids and flags, without how they are divided into shards.

        The second hash is of the first shard alone. The stream begins with it and is often no
        longer, so reading it once is enough.
        """
        stream = hashlib.sha256()
        hashes = []
        for file in self._files():
            name = file.stem.removeprefix(f"{self._split}-")
            if name.isdigit() or name == "flags":
                with file.open("rb") as shard:
                    hashlib.file_digest(shard, lambda: stream)
                hashes.append(stream.hexdigest())
        return hashes[-1], hashes[0]

    def _add_tokens(self, ids: NDArray[Any]) -> None:
        while len(ids):
            shard, used = divmod(self.tokens, self._shard_tokens)
            fitting, ids = np.split(ids, [self._shard_tokens - used])
            self._append(f"{shard:05d}", fitting)
            self.tokens += len(fitting)

    def _append(self, name: str, values: NDArray[Any]) -> None:
        with self._file(name).open("ab") as file:
            file.write(values.data)

    def _file(self, name: str) -> Path:
        return self._folder / f"{self._split}-{name}.bin"

    def _files(self) -> list[Path]:
        # Sort by the shards' numbers, which may have more than five digits.
        return sorted(
            self._folder.glob(f"{self._split}-*.bin"), key=lambda file: (len(file.name), file.name)
        )

    def _cut(self) -> None:
        """Cut the files to the length that the state says, and remove others of this split."""
        whole, rest = divmod(self.tokens, self._shard_tokens)
        sizes = {f"{shard:05d}": self._shard_tokens for shard in range(whole)} | {
            f"{whole:05d}": rest
        }
        sizes = {name: size * self._eos.itemsize for name, size in sizes.items()} | dict.fromkeys(
            ("starts", "hashes"), 8 * self.documents
        )
        sizes |= {"flags": self.tokens} if self._flagged else {}
        for name, size in sizes.items():
            file = self._file(name)
            if size and (not file.exists() or file.stat().st_size < size):
                raise ValueError(f"{file} is not what was written")
            if size:
                os.truncate(file, size)
        for file in self._files():
            if not sizes.get(file.stem.removeprefix(f"{self._split}-")):
                file.unlink()


class TokenStore(Counts):
    """One split of a cache: a stream of `tokens` ids. Each process opens the files when it reads.

    Attributes:
        sha256: a hash of the ids and flags; equal data have equal hashes.
        flagged: whether each id has a flag.
    """

    def __init__(self, folder: Path, split: SplitName, manifest: Manifest | WindowManifest):
        entry: SplitEntry = manifest.splits[split]  # type: ignore[index]
        super().__init__(**{name: getattr(entry, name) for name in COUNTS})
        self.split = split
        self.sha256 = entry.sha256
        self.flagged = f"{split}-flags.bin" in entry.files
        self.dtype = np.dtype(manifest.dtype)
        self._shard_tokens = entry.shard_tokens
        self._prefix = str(folder / split)
        self._maps: dict[str, NDArray[Any]] = {}

    def read(self, start: int, length: int) -> NDArray[Any]:
        """Return a copy of `length` ids from `start` on; fewer at the end of the stream."""
        end = min(start + length, self.tokens)
        assert 0 <= start < end, f"nothing to read at {start} of {self.tokens}"
        size, item = self._shard_tokens, self.dtype.itemsize
        parts = []
        for shard in range(start // size, (end - 1) // size + 1):
            first, last = max(start - shard * size, 0), min(end - shard * size, size)
            parts.append(
                read_at(f"{self._prefix}-{shard:05d}.bin", first * item, (last - first) * item)
            )
        return np.frombuffer(b"".join(parts), self.dtype)

    def read_flags(self, start: int, length: int) -> NDArray[np.uint8]:
        """Return the flags of `length` ids from `start` on."""
        return np.frombuffer(read_at(f"{self._prefix}-flags.bin", start, length), np.uint8)

    @property
    def document_starts(self) -> NDArray[np.int64]:
        """The position of each document's EOS, ascending; on disk, not in memory."""
        return self._map("starts", np.int64)

    @property
    def document_hashes(self) -> NDArray[np.uint64]:
        """A hash of each document's text; on disk, not in memory."""
        return self._map("hashes", np.uint64)

    def count_ids(self, vocab_size: int) -> NDArray[np.int64]:
        """Return how often each id occurs, (vocab_size,); in conversations where it is learnt."""
        counts = np.zeros(vocab_size, np.int64)
        for start in range(0, self.tokens, COUNTED_AT_ONCE):
            ids = self.read(start, COUNTED_AT_ONCE)
            if self.flagged:
                ids = ids[(self.read_flags(start, len(ids)) & LEARNED) > 0]
            counts += np.bincount(ids, minlength=vocab_size)
        return counts

    def close(self) -> None:
        """Close the files: the disk frees a removed file only when no process has it open."""
        close_files(f"{self._prefix}-")
        self._maps.clear()

    def _map(self, name: str, dtype: Any) -> NDArray[Any]:
        if not self.documents:
            return np.empty(0, dtype)
        if name not in self._maps:
            self._maps[name] = np.asarray(np.memmap(f"{self._prefix}-{name}.bin", dtype, mode="r"))
        return self._maps[name]

    def __getstate__(self) -> dict[str, Any]:
        # Pickling a memory map for a worker would copy the file's content.
        return {**self.__dict__, "_maps": {}}


# The files that were read last stay open. Memory maps would not do: thousands would be open at
# once, and their pages would count as the process's memory.
_descriptors: dict[str, int] = {}


def read_at(path: str, start: int, size: int) -> bytes:
    """Read `size` bytes of a file from `start` on; fewer at its end."""
    return os.pread(_descriptor(path), size, start)


def close_files(prefix: str) -> None:
    """Close the files whose paths begin with a prefix."""
    for path in [path for path in _descriptors if path.startswith(prefix)]:
        os.close(_descriptors.pop(path))


def _descriptor(path: str) -> int:
    """Return a descriptor for reading a file; the last `MOST_OPEN` of all stores stay open."""
    descriptor = _descriptors.pop(path, None)
    # The file was removed, and may have been made again.
    if descriptor is not None and os.fstat(descriptor).st_nlink == 0:
        os.close(descriptor)
        descriptor = None
    if descriptor is None:
        if len(_descriptors) >= MOST_OPEN:
            os.close(_descriptors.pop(next(iter(_descriptors))))
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    _descriptors[path] = descriptor  # the latest is last
    return descriptor
