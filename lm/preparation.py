"""Documents to token shards: in parallel, in order, and from where a killed one stopped.

    pieces of the source          Reader.pieces           one process
      -> tokens of a piece        Tokenise                any number of processes, on any number of machines
      -> which documents stay     Selection, Split        one process again, in the order of the pieces
      -> shards                   SplitWriter

What a process makes of a piece depends on nothing else, and what depends on other documents is decided in their order: so the files are
the same, byte for byte, however many processes there are and however often they were stopped.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from lm.cache import JOURNAL
from lm.disk import replace
from lm.shards import Manifest, SplitWriter
from lm.sources import EMPTY, Piece, Reader, Selection, hash_of_text
from lm.tokenizer import Tokenizer

SPLITS = ("train", "val")
JOURNAL_TOKENS = 2**26  # How much is done again, at most, after a kill.


class Tokens(NamedTuple):
    """What became of a piece: the ids of its documents one after another, and for each document some numbers."""

    ids: NDArray[Any]
    lengths: NDArray[np.int64]  # in ids
    hashes: NDArray[np.uint64]  # of the text
    characters: NDArray[np.int64]
    text_bytes: NDArray[np.int64]  # in UTF-8
    removed: Counter[str]

    def of(self, chosen: NDArray[np.bool_]) -> Tokens:
        """The same of some of the documents."""
        ids = self.ids if chosen.all() else self.ids[np.repeat(chosen, self.lengths)]
        return Tokens(ids, self.lengths[chosen], self.hashes[chosen], self.characters[chosen], self.text_bytes[chosen], self.removed)


@dataclass(frozen=True)
class Tokenise:
    """Reads a piece and tokenises it; without a tokenizer it only measures: no ids.

    Raises:
        DataError: a row cannot be read.
    """

    reader: Reader
    tokenizer: Tokenizer | None

    def __call__(self, piece: Piece) -> Tokens:
        """What became of the piece."""
        removed: Counter[str] = Counter()
        return self.of([document.text for document in self.reader.read(piece, removed)], removed)

    def of(self, texts: list[str], removed: Counter[str]) -> Tokens:
        """What became of these documents."""
        ids = self.tokenizer.encode_batch(texts) if self.tokenizer is not None else [np.empty(0, np.uint16)] * len(texts)
        return Tokens(
            ids=np.concatenate(ids) if ids else np.empty(0, self.tokenizer.dtype if self.tokenizer is not None else np.uint16),
            lengths=np.array([len(i) for i in ids], np.int64),
            hashes=np.array([hash_of_text(text) for text in texts], np.uint64),
            characters=np.array([len(text) for text in texts], np.int64),
            text_bytes=np.array([len(text) if text.isascii() else len(text.encode()) for text in texts], np.int64),
            removed=removed,
        )


class Engine(Protocol):
    """Applies a function to pieces, in any number of processes; the results come in the order of the pieces."""

    def __call__(self, function: Tokenise, pieces: Iterator[Piece]) -> Iterator[Tokens]:
        """`map(function, pieces)`."""


class Border(NamedTuple):
    """Where the text to train on ends and the rest begins: which piece, which of its documents, and which character of that."""

    piece: int
    document: int
    character: int


@dataclass(frozen=True)
class Split:
    """Which documents are validated on: by the `hash` of their text, the `tail` of all text, or `all` or `none` of a source."""

    kind: Literal["hash", "tail", "all", "none"]
    fraction: float = 0.0

    def held_out(self, hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """For each document, whether it is validated on; not for `tail`, where its place decides."""
        if self.kind == "hash":
            return hashes < np.uint64(self.fraction * 2**64)
        return np.full(len(hashes), self.kind == "all")


def prepare(folder: Path, reader: Reader, tokenizer: Tokenizer, split: Split, engine: Engine, quiet: bool = False) -> Manifest:
    """Write the shards of a source into `folder` and return their manifest; goes on where the folder's journal says.

    Memory holds a few pieces for each process, 8 bytes for each document with `tail`, and 70 for each where repeats are to be found.

    Raises:
        DataError: the text cannot be read.
    """
    border = find_tail(reader, split.fraction, engine) if split.kind == "tail" else None
    work = _Work(folder, reader, tokenizer, split, border)
    pieces, given = itertools.tee(itertools.islice(reader.pieces(), work.pieces, None))
    total = sum(Path(file).stat().st_size for file in reader.files if Path(file).exists()) or None
    # To a terminal only; the bytes are the text's, which are fewer than the files'.
    with tqdm(
        desc="tokenising", total=total, unit="B", unit_scale=True, initial=work.text_bytes, disable=quiet or None, leave=False
    ) as bar:
        for piece, tokens in zip(pieces, engine(Tokenise(reader, tokenizer), given), strict=False):
            work.add(piece, tokens)
            bar.update(int(tokens.text_bytes.sum()))
            if work.full:
                break
    return work.close()


def find_tail(reader: Reader, fraction: float, engine: Engine) -> Border | None:
    """Where the last `fraction` of all characters begins: reads everything once. None where that is nothing."""
    selection, characters = Selection(reader.source), list[NDArray[np.int64]]()
    for tokens in engine(Tokenise(reader, None), reader.pieces()):
        characters.append(tokens.characters * selection.keep(tokens.hashes.tolist()))
        if selection.full:
            break
    left = int(sum(int(part.sum()) for part in characters) * (1 - fraction))
    for number, part in enumerate(characters):
        ends = part.cumsum()
        if len(ends) and ends[-1] > left:
            document = int(np.searchsorted(ends, left, side="right"))
            return Border(number, document, left - int(ends[document] - part[document]))
        left -= int(part.sum())
    return None


class _Work:
    """Where a build stands: what is written, and what has to be known for the rest."""

    def __init__(self, folder: Path, reader: Reader, tokenizer: Tokenizer, split: Split, border: Border | None):
        self._journal = folder / JOURNAL
        start: Manifest = {"pieces": 0, "removed": reader.named_twice, "file": None, "no_text_yet": True, "splits": {}}
        state = json.loads(self._journal.read_text(encoding="utf-8")) if self._journal.exists() else start
        self._reader, self._split, self._border = reader, split, border
        self._tokenise = Tokenise(reader, tokenizer)
        dtype = np.dtype(tokenizer.dtype)
        self._writers = {name: SplitWriter(folder, name, tokenizer.eos_id, dtype, state=state["splits"].get(name)) for name in SPLITS}
        self.pieces: int = state["pieces"]
        self._removed = Counter(state["removed"])
        self._file: str | None = state["file"]
        self._no_text_yet: bool = state["no_text_yet"]
        self._selection = Selection(reader.source)
        for name in SPLITS if self.pieces else ():
            self._selection.keep(np.fromfile(folder / f"{name}-hashes.bin", np.uint64).tolist())
        self._selection.removed.clear()
        self._safe = self.tokens

    @property
    def tokens(self) -> int:
        """Written so far, in both splits."""
        return sum(writer.tokens for writer in self._writers.values())

    @property
    def text_bytes(self) -> int:
        """The same, as text."""
        return sum(writer.text_bytes for writer in self._writers.values())

    @property
    def full(self) -> bool:
        """No further document is wanted."""
        most = self._reader.source.filter.max_tokens
        return self._selection.full or (most is not None and self.tokens >= most)

    def add(self, piece: Piece, tokens: Tokens) -> None:
        """The next piece's."""
        if piece.file != self._file:
            self._end_of_file()
            self._file = piece.file
        self._no_text_yet = self._no_text_yet and len(tokens.lengths) == 0 and set(tokens.removed) <= {EMPTY}
        self._removed += tokens.removed
        keep = self._selection.keep(tokens.hashes.tolist())
        if (most := self._reader.source.filter.max_tokens) is not None:
            sizes = (tokens.lengths + 1) * keep
            keep &= self.tokens + sizes.cumsum() - sizes < most
        if self._split.kind == "tail":
            self._add_around_border(piece, tokens, keep)
        else:
            held_out = self._split.held_out(tokens.hashes)
            self._write("train", tokens.of(keep & ~held_out))
            self._write("val", tokens.of(keep & held_out))
        self.pieces += 1
        if self.tokens - self._safe >= JOURNAL_TOKENS:
            self._write_journal()

    def _add_around_border(self, piece: Piece, tokens: Tokens, keep: NDArray[np.bool_]) -> None:
        border = self._border
        if border is None or self.pieces != border.piece:
            self._write("train" if border is None or self.pieces < border.piece else "val", tokens.of(keep))
            return
        numbers = np.arange(len(keep))
        self._write("train", tokens.of(keep & (numbers < border.document)))
        text = next(itertools.islice(self._reader.read(piece, Counter()), border.document, None)).text
        for name, part in ("train", text[: border.character]), ("val", text[border.character :]):
            self._write(name, self._tokenise.of([part] if part else [], Counter()))
        self._write("val", tokens.of(keep & (numbers > border.document)))

    def _write(self, split: str, tokens: Tokens) -> None:
        if len(tokens.lengths):
            self._writers[split].add(tokens.ids, tokens.lengths, tokens.hashes, int(tokens.text_bytes.sum()))

    def _end_of_file(self) -> None:
        if self._file is not None and self._no_text_yet:
            self._reader.empty_file(self._file, self._removed)
        self._no_text_yet = True

    def _write_journal(self) -> None:
        for writer in self._writers.values():
            writer.sync()
        splits = {name: writer.state for name, writer in self._writers.items()}
        removed = self._removed + self._selection.removed
        state = {"pieces": self.pieces, "removed": removed, "file": self._file, "no_text_yet": self._no_text_yet, "splits": splits}
        replace(self._journal, json.dumps(state))
        self._safe = self.tokens

    def close(self) -> Manifest:
        """Finish the shards."""
        if not self.full:
            self._end_of_file()
        limit = "max_documents" if self._selection.full else "max_tokens" if self.full else None
        splits = {name: writer.close() for name, writer in self._writers.items()}
        dtype = np.dtype(self._tokenise.tokenizer.dtype).name if self._tokenise.tokenizer else None
        return {"dtype": dtype, "splits": splits, "removed": self._removed + self._selection.removed, "ended_by": limit}
