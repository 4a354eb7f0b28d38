"""A stream: a dataset that is larger than the disk, tokenised into windows during the run.

The documents of the dataset, in their order, are one endless sequence of tokens EOS d1 EOS d2 ...,
as in a cache. At the dataset's end the sequence continues at its beginning. Window w is a fixed
stretch of it, and rows are shuffled within their window (lm/tokens/plan.py). Each window stores
what is needed to make the next one: the position in the dataset and the tokens that are left over.
So each window can be made again, and a resumed run sees the same rows in the same steps. A shuffle
buffer cannot promise that.

    <cache_dir>/<fingerprint>/
        stream.json           the dataset's commit, for a run that has no checkpoint yet
        <commit>/
            val-262144/       a cache of the validation documents: at least so many tokens
            window-000000/    manifest.json and rest.bin, which stay, and the tokens while needed

lm/tokens/producer.py is the process that makes the windows.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lm.config.schema.source import HubSource
from lm.documents import hub
from lm.documents.faults import text_of
from lm.documents.reader import Piece, Reader
from lm.system.disk import read_json, refusals, replace, sync
from lm.system.errors import CheckpointError, DataError
from lm.system.json_values import text
from lm.tokenizer.tokenizer import Tokenizer, starts_of
from lm.tokens.cache import DamagedError, open_or_build, verify
from lm.tokens.manifest import FILE as MANIFEST
from lm.tokens.manifest import Manifest, Position, WindowManifest, facts_of, read_values, sealed
from lm.tokens.prepare import SPLITS, Split
from lm.tokens.store import Counts, SplitWriter, TokenStore
from lm.tokens.tokenise import Tokenise

BEGINNING = Position()


@dataclass(frozen=True)
class Stream:
    """The windows of a streamed source, and its validation documents.

    Attributes:
        folder: the cache.
        reader: cleans the documents; it knows the source.
        tokenizer: turns the documents into ids.
        split: which documents are held out for validation, and never trained on.
        rows: how many rows a window has.
        length: T, the tokens in a row.
        revision: the dataset's commit.
    """

    folder: Path
    reader: Reader
    tokenizer: Tokenizer
    split: Split
    rows: int
    length: int
    revision: str
    _stores: dict[int, TokenStore] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """A hash of the dataset's commit; everything else is in the configuration."""
        return hashlib.sha256(self.revision.encode()).hexdigest()

    @property
    def window_bytes(self) -> int:
        """The size of a window's tokens on the disk."""
        return (self.rows * self.length + 1) * np.dtype(self.tokenizer.dtype).itemsize

    @property
    def _source(self) -> HubSource:
        assert isinstance(self.reader.source, HubSource)
        return self.reader.source

    def validation(self, tokens: int) -> TokenStore:
        """Return the first held-out documents of the stream, with at least so many tokens.

        Raises:
            DataError: the dataset cannot be read.
            CheckpointError: the disk refuses the cache.
        """
        folder = self.folder / f"val-{tokens}"
        manifest, _ = open_or_build(
            folder,
            lambda empty: self._hold_out(empty, tokens),
            lambda _: None,
            self.tokenizer.vocab_size,
        )
        return TokenStore(folder, "val", manifest)

    def window(self, number: int) -> TokenStore:
        """Return a window's tokens, which must exist (`is_whole`).

        Each process reads the whole window once and compares its hashes: 34 MB take 20 ms or more.

        Raises:
            DataError: the window is damaged.
        """
        if number not in self._stores:
            for old in [old for old in self._stores if abs(old - number) > 1]:
                self._stores.pop(old).close()
            folder = self._window(number)
            try:
                manifest = self._verified(number)
            except DamagedError as damage:
                raise DataError(
                    f"{folder} is damaged ({damage}); --resume auto makes this window again"
                ) from damage
            self._stores[number] = TokenStore(folder, "train", manifest)
        return self._stores[number]

    def is_whole(self, number: int) -> bool:
        """Return whether a window's tokens exist."""
        try:
            return (self._window(number) / "train-00000.bin").stat().st_size == self.window_bytes
        except FileNotFoundError:
            return False

    def removed(self, number: int) -> Counter[str]:
        """Count the documents that the filters removed from a window."""
        manifest = self._manifest(number)
        return Counter(manifest.removed if manifest is not None else {})

    def clear(self, before: int, after: int | None = None) -> None:
        """Remove the tokens of the windows before and after these two.

        They can be made again from the files that stay.
        """
        # sorted: train-00000.bin goes first, and without it a window is not whole
        for path in sorted(self.folder.glob("window-*/train-*.bin")):
            number = int(path.parent.name.removeprefix("window-").removesuffix(".tmp"))
            if number < before or (after is not None and number > after):
                path.unlink()

    def clear_damaged(self, numbers: range) -> None:
        """Remove the tokens of those windows that are not what was written, so that they are made
        again.
        """
        for number in filter(self.is_whole, numbers):
            try:
                self._verified(number)
            except DamagedError:
                (self._window(number) / "train-00000.bin").unlink()

    def make(self, number: int) -> None:
        """Write a window.

        A window begins where the one before it ends. If that is unknown, the windows before it are
        made too, but without keeping their tokens.

        Raises:
            DataError: the dataset cannot be read.
            CheckpointError: the disk refuses a window.
        """
        known = number
        while known > 0 and self._manifest(known - 1) is None:
            known -= 1
        for window in range(known, number + 1):
            self._make(window)
            if window < number:
                for path in sorted(self._window(window).glob("train-*.bin")):
                    path.unlink()

    def _make(self, number: int) -> None:
        """Write a window; the end of the one before it is known."""
        size = self.rows * self.length
        position, tokens, starts = self._end_of(number - 1)
        removed: Counter[str] = Counter()
        parts, count = [tokens], len(tokens)
        batches = self._batches(position, removed)
        while count < size + 1:
            texts, position = next(batches)
            batch = Tokenise(self.reader, self.tokenizer).encode(texts, removed)
            batch = batch.select(~self.split.held_out(batch.hashes))
            starts = np.concatenate([starts, count + starts_of(batch.lengths)])
            parts.append(batch.ids)
            count += len(batch.ids)
        stream = np.concatenate(parts)
        rest, rest_starts = stream[size:], starts[starts >= size] - size
        after = {
            "position": position,
            "rest_starts": rest_starts.tolist(),
            "removed": dict(removed),
        }
        with refusals(self._window(number), self.window_bytes):
            self._write(number, stream[: size + 1], starts[starts < size + 1], rest, after)

    def _end_of(self, number: int) -> tuple[Position, Any, Any]:
        """Return where the dataset continues after a window, and the tokens that are left over.

        The third value is where documents begin in these tokens.
        """
        if number < 0:
            return BEGINNING, np.empty(0, self.tokenizer.dtype), np.empty(0, np.int64)
        manifest = self._manifest(number)
        assert manifest is not None, "`make` begins behind a window that is known"
        rest = np.fromfile(self._window(number) / "rest.bin", self.tokenizer.dtype)
        return manifest.position, rest, np.array(manifest.rest_starts, np.int64)

    def _manifest(self, number: int) -> WindowManifest | None:
        """Return what is known of a window whose tokens may be removed; None if nothing is.

        The next window begins with rest.bin, so that must be what was written.
        """
        folder = self._window(number)
        try:
            manifest = WindowManifest.model_validate(read_values(folder / MANIFEST))
            rest = manifest.splits["train"].files.get("rest.bin")  # older windows list no files
            good = rest is None or facts_of(folder / "rest.bin") == rest
        except (OSError, ValueError):
            return None
        return manifest if good else None

    def _verified(self, number: int) -> WindowManifest:
        """Return the manifest of a window after reading all of it. Raises DamagedError."""
        folder, manifest = self._window(number), self._manifest(number)
        if manifest is None:
            raise DamagedError(f"{MANIFEST} or rest.bin is not what was written")
        entry = manifest.splits["train"]
        if manifest.dtype != np.dtype(self.tokenizer.dtype).name or entry.tokens != (
            self.rows * self.length + 1
        ):
            raise DamagedError(f"{MANIFEST} is of another window")
        verify(folder, manifest, self.tokenizer.vocab_size)
        return manifest

    def _write(
        self, number: int, tokens: Any, starts: Any, rest: Any, after: dict[str, Any]
    ) -> None:
        """Write a window's files; if it was made before, its tokens must be the same."""
        folder = self._window(number)
        temporary = folder.with_suffix(".tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        tokens.tofile(temporary / "train-00000.bin")
        starts.tofile(temporary / "train-starts.bin")
        rest.tofile(temporary / "rest.bin")
        files = {file.name: facts_of(file) for file in sorted(temporary.iterdir())}
        counts = Counts(len(tokens), len(starts), text_tokens=len(tokens) - len(starts))
        entry = {
            **asdict(counts),
            "shard_tokens": len(tokens),
            "sha256": files["train-00000.bin"].sha256,
            "files": files,
        }
        manifest = WindowManifest.model_validate(
            {"dtype": tokens.dtype.name, "splits": {"train": entry}, **after}
        )
        (temporary / MANIFEST).write_text(sealed(manifest), encoding="utf-8")
        if (before := self._manifest(number)) is not None and before.sha256 != manifest.sha256:
            raise DataError(
                f"{self._source.dataset}: what was read before comes out otherwise now; start"
                " anew with another checkpoint.directory"
            )
        shutil.rmtree(folder, ignore_errors=True)
        for path in (*temporary.iterdir(), temporary):
            sync(path)
        temporary.rename(folder)
        sync(self.folder)

    def _hold_out(self, folder: Path, tokens: int) -> Manifest:
        """Write held-out documents from the beginning of the dataset, at most one pass."""
        writers = {
            name: SplitWriter(folder, name, self.tokenizer.eos_id, self.tokenizer.dtype)
            for name in SPLITS
        }
        removed: Counter[str] = Counter()
        batches = self._batches(BEGINNING, removed) if self.split.kind != "none" else ()
        for texts, position in batches:
            if position.passes:
                break
            measured = Tokenise(self.reader, None).encode(texts, removed)
            held_out = self.split.held_out(measured.hashes)
            chosen = Tokenise(self.reader, self.tokenizer).encode(
                [text for text, held in zip(texts, held_out, strict=True) if held], removed
            )
            if len(chosen.lengths):
                writers["val"].add(
                    chosen.ids,
                    chosen.lengths,
                    chosen.hashes,
                    int(chosen.text_bytes.sum()),
                    unknown_tokens=chosen.count_unknown(self.tokenizer.unknown_id),
                    compared_bytes=int(chosen.compared_bytes.sum()),
                    lost_bytes=int(chosen.lost_bytes.sum()),
                )
            if writers["val"].tokens > tokens:
                break
        splits = {name: writer.close() for name, writer in writers.items()}
        dtype = np.dtype(self.tokenizer.dtype).name
        return Manifest.model_validate({"dtype": dtype, "splits": splits, "removed": dict(removed)})

    def _batches(
        self, position: Position, removed: Counter[str]
    ) -> Iterator[tuple[list[str], Position]]:
        """Yield texts from a position on, without end, each batch with the position after it.

        Raises:
            DataError: the dataset cannot be read, or has no text.
        """
        passes, row, state = position.passes, position.row, position.state
        while True:
            empty = row == 0
            for values, after in hub.stream(self._source, self.revision, state):
                rows = [(row + i, text_of(value)) for i, value in enumerate(values, 1)]
                row += len(rows)
                texts = [
                    document.text
                    for document in self.reader.read(
                        Piece(self._source.dataset, None, rows), removed
                    )
                ]
                empty = empty and not texts
                yield texts, Position(passes=passes, row=row, state=after)
            if empty:
                raise DataError(
                    f"{self.reader.key}: {self._source.dataset} has no text to train on"
                )
            passes, row, state = passes + 1, 0, None

    def _window(self, number: int) -> Path:
        return self.folder / f"window-{number:06d}"


def choose_revision(folder: Path, source: HubSource, resumed: str | None) -> str:
    """Return the dataset's commit that a run reads to its end.

    It is the commit in the run's checkpoint, or the newest one when the run first started.

    Args:
        folder: the folder that keeps it.
        source: the dataset.
        resumed: the commit in the checkpoint, if the run is resumed.

    Raises:
        DataError: the hub does not answer.
        CheckpointError: the folder cannot be written.
    """
    path = folder / "stream.json"
    revision = resumed or _kept_revision(path)
    if revision is None or resumed is not None:
        revision = revision or hub.newest_revision(source)
        with refusals(folder):
            folder.mkdir(parents=True, exist_ok=True)
        replace(path, json.dumps({"revision": revision}))
    return revision


def _kept_revision(path: Path) -> str | None:
    """Return the commit in stream.json; None if there is none, or if it is no commit."""
    try:
        revision = text(read_json(path), "revision")
    except CheckpointError:
        return None
    return revision if revision and re.fullmatch(r"[0-9a-f]{40,64}", revision) else None
