"""Documents to token shards: in parallel, in order, and continued after a kill.

    pieces of the source          Reader.pieces           one process
      -> tokens of a piece        Tokenise                any number of processes and machines
      -> which documents stay     Selection, Split        one process, in the order of the pieces
      -> shards                   SplitWriter             the same process

The tokens of a piece depend on nothing else. Decisions that depend on other documents are taken in
the order of the documents. So the files are the same, byte for byte, for any number of processes
and any number of interruptions.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lm.documents.reader import EMPTY, Piece, Reader, Selection
from lm.system.disk import read_bytes, replace
from lm.system.errors import DataError
from lm.system.progress import ReadingProgress
from lm.tokenizer.tokenizer import Tokenizer
from lm.tokens.cache import JOURNAL
from lm.tokens.manifest import Journal, Manifest, SplitName
from lm.tokens.store import SplitWriter
from lm.tokens.tokenise import Engine, Tokenise, Tokens

SPLITS: tuple[SplitName, ...] = ("train", "val")
FOR_TEST = "conversation kept for the closing report"
MOST_BYTES = 2**30  # of a journal
JOURNAL_TOKENS = 2**26  # how many tokens a killed build repeats, at most
# the journal of a build that has not begun
NOTHING: dict[str, Any] = {
    "pieces": 0,
    "border": None,
    "parted": None,
    "file": None,
    "no_text_yet": True,
    "tested": [],
    "splits": {},
}


@dataclass(frozen=True)
class Split:
    """Which documents of a source are held out for validation.

    Attributes:
        kind: `hash` holds out documents by the hash of their text, `tail` the end of all text, and
            `all` and `none` what they say.
        fraction: the share that is held out.
        test: the share that is in neither split, also chosen by hash.
    """

    kind: Literal["hash", "tail", "all", "none"]
    fraction: float = 0.0
    test: float = 0.0

    def held_out(self, hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Return for each document whether it is held out; with `tail` its place decides."""
        if self.kind == "hash":
            return hashes < np.uint64(self.fraction * 2**64)
        return np.full(len(hashes), self.kind == "all")

    def tested(self, hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Return for each document whether it is kept for a test: those with the largest hashes."""
        return (
            hashes >= np.uint64((1 - self.test) * 2**64)
            if self.test
            else np.zeros(len(hashes), bool)
        )


def prepare(
    folder: Path, reader: Reader, tokenizer: Tokenizer, split: Split, engine: Engine
) -> Manifest:
    """Write the shards of a source into `folder` and return their manifest.

    A journal in the folder says where to continue. Memory holds a few pieces per process, 8 bytes
    per document with `tail`, and 70 bytes per document if repeats are removed.

    Raises:
        DataError: the text cannot be read, or it changed meanwhile.
    """
    before = reader.identity()
    work = _Work(folder, reader, tokenizer, split)
    if split.kind == "tail" and work.border is None:
        work.border = find_tail(reader, split.fraction, engine)
        work.write_journal()
    if not work.full:
        pieces, given = itertools.tee(itertools.islice(reader.pieces(), work.pieces, None))
        with ReadingProgress("tokenising", reader.files, work.text_bytes) as progress:
            for piece, tokens in zip(
                pieces, engine(Tokenise(reader, tokenizer), given), strict=False
            ):
                work.add(piece, tokens)
                progress.advance(int(tokens.text_bytes.sum()))
                if work.full:
                    break
    if reader.identity() != before:
        raise changed_meanwhile(reader)
    return work.close()


def changed_meanwhile(reader: Reader) -> DataError:
    """Return the error for a text that somebody changes while it is read."""
    return DataError(
        f"{reader.key}: its files changed while they were read; start again when nobody writes"
        " into them"
    )


class Border(NamedTuple):
    """The place where the text to train on ends: piece, document, and character (or id)."""

    piece: int
    document: int
    character: int


def find_tail(reader: Reader, fraction: float, engine: Engine) -> Border:
    """Read everything once, and return where the last `fraction` of all characters begins."""
    selection = Selection(reader.source)
    characters: list[NDArray[np.int64]] = []
    with ReadingProgress("measuring", reader.files, 0) as progress:
        for tokens in engine(Tokenise(reader, None), reader.pieces()):
            characters.append(tokens.characters * selection.keep(tokens.hashes.tolist()))
            progress.advance(int(tokens.text_bytes.sum()))
            if selection.full:
                break
    left = int(sum(int(part.sum()) for part in characters) * (1 - fraction))
    for number, part in enumerate(characters):
        ends = part.cumsum()
        if len(ends) and ends[-1] > left:
            document = int(np.searchsorted(ends, left, side="right"))
            return Border(number, document, left - int(ends[document] - part[document]))
        left -= int(part.sum())
    return Border(len(characters), 0, 0)  # there is no text


class _Work:
    """The state of a build: what is written, and what the rest of the build needs to know."""

    def __init__(self, folder: Path, reader: Reader, tokenizer: Tokenizer, split: Split):
        self._folder = folder
        self._reader = reader
        self._split = split
        self._tokenise = Tokenise(reader, tokenizer)
        self._dtype = np.dtype(tokenizer.dtype)
        self._eos_id = tokenizer.eos_id
        self._unknown_id = tokenizer.unknown_id
        try:
            # The name of a file need not be UTF-8, and pydantic's own JSON refuses such a name.
            values = json.loads(read_bytes(folder / JOURNAL, MOST_BYTES))
            self._start(Journal.model_validate(values))
        except (OSError, ValueError, KeyError, RecursionError):
            # There is no journal, it is damaged, or the shards are not those that it describes.
            empty = {"cut": reader.cut, "removed": dict(reader.named_twice)}
            self._start(Journal.model_validate(NOTHING | empty))

    def _start(self, state: Journal) -> None:
        """Continue from a journal. Raises ValueError if it does not fit the source or the files."""
        if state.cut != self._reader.cut:
            raise ValueError("the journal counts other pieces")
        self._writers = {
            name: SplitWriter(
                self._folder,
                name,
                self._eos_id,
                self._dtype,
                state=state.splits.get(name),
                flagged=self._reader.chat is not None,
            )
            for name in SPLITS
        }
        self.pieces: int = state.pieces
        self.border = Border(*state.border) if state.border else None
        self._parted: list[int] | None = state.parted
        self._file: str | None = state.file
        self._no_text_yet: bool = state.no_text_yet
        self._removed: Counter[str] = Counter(state.removed)
        self._tested = list(state.tested)
        self._selection = Selection(self._reader.source)
        if self._selection.remembers:
            self._selection.keep(self._hashes())
            self._selection.removed.clear()
        self._safe = self.tokens

    def _hashes(self) -> list[int]:
        """Return the hashes of all documents so far.

        A document that stands across the border of train and val counts once.
        """
        hashes = list(self._tested)
        for name in (name for name, writer in self._writers.items() if writer.documents):
            hashes += np.fromfile(self._folder / f"{name}-hashes.bin", np.uint64).tolist()
        if self._parted:
            first, parts, document = self._parted
            hashes[first : first + parts] = [document]  # `tail` keeps no documents for a test
        return hashes

    @property
    def tokens(self) -> int:
        """How many tokens are written, in both splits."""
        return sum(writer.tokens for writer in self._writers.values())

    @property
    def text_bytes(self) -> int:
        """How many bytes of text that is."""
        return sum(writer.text_bytes for writer in self._writers.values())

    @property
    def full(self) -> bool:
        """Whether the limits of the source's filter are reached."""
        most = self._reader.source.filter.max_tokens
        return self._selection.full or (most is not None and self.tokens >= most)

    def add(self, piece: Piece, tokens: Tokens) -> None:
        """Write the documents of the next piece that stay."""
        if piece.file != self._file:
            self._end_of_file()
            self._file = piece.file
        self._no_text_yet = (
            self._no_text_yet and len(tokens.lengths) == 0 and set(tokens.removed) <= {EMPTY}
        )
        self._removed += tokens.removed
        keep = self._selection.keep(tokens.hashes.tolist())
        tested = keep & self._split.tested(tokens.hashes)
        if (most := self._reader.source.filter.max_tokens) is not None:
            sizes = (tokens.lengths + 1) * (keep & ~tested)  # these alone are written
            keep &= self.tokens + sizes.cumsum() - sizes < most
        if self._split.kind == "tail":
            self._add_around_border(piece, tokens, keep)
        else:
            tested &= keep
            self._removed += Counter({FOR_TEST: int(tested.sum())})
            keep &= ~tested
            # They are in no file, so the journal must keep their hashes.
            self._tested += tokens.hashes[tested].tolist() if self._selection.remembers else []
            held_out = self._split.held_out(tokens.hashes)
            self._write("train", tokens.select(keep & ~held_out))
            self._write("val", tokens.select(keep & held_out))
        self.pieces += 1
        if self.tokens - self._safe >= JOURNAL_TOKENS:
            self.write_journal()

    def _add_around_border(self, piece: Piece, tokens: Tokens, keep: NDArray[np.bool_]) -> None:
        """Write a piece before, after or at the border of `tail`, which may divide a document."""
        border = self.border
        assert border is not None
        if self.pieces != border.piece:
            self._write("train" if self.pieces < border.piece else "val", tokens.select(keep))
            return
        numbers = np.arange(len(keep))
        self._write("train", tokens.select(keep & (numbers < border.document)))
        document = next(
            itertools.islice(self._reader.read(piece, Counter()), border.document, None)
        )
        parts = [
            self._tokenise.part(document, part)
            for part in (slice(None, border.character), slice(border.character, None))
        ]
        self._parted = [
            self._writers["train"].documents,
            sum(len(part.lengths) for part in parts),
            int(tokens.hashes[border.document]),
        ]
        for name, part in zip(SPLITS, parts, strict=True):
            self._write(name, part)
        self._write("val", tokens.select(keep & (numbers > border.document)))

    def _write(self, split: SplitName, tokens: Tokens) -> None:
        if len(tokens.lengths):
            self._writers[split].add(
                tokens.ids,
                tokens.lengths,
                tokens.hashes,
                int(tokens.text_bytes.sum()),
                tokens.flags,
                int(tokens.text_tokens.sum()),
                unknown_tokens=tokens.count_unknown(self._unknown_id),
                compared_bytes=int(tokens.compared_bytes.sum()),
                lost_bytes=int(tokens.lost_bytes.sum()),
            )

    def _end_of_file(self) -> None:
        """Report a file that has no text."""
        if self._file is not None and self._no_text_yet:
            self._reader.empty_file(self._file, self._removed)
        self._no_text_yet = True

    def write_journal(self) -> None:
        """Make all work so far durable: a kill costs only what comes after this."""
        for writer in self._writers.values():
            writer.sync()
        state = {
            "cut": self._reader.cut,
            "pieces": self.pieces,
            "border": self.border,
            "parted": self._parted,
            "file": self._file,
            "no_text_yet": self._no_text_yet,
            "tested": self._tested,
            "removed": self._removed + self._selection.removed,
            "splits": {name: writer.state for name, writer in self._writers.items()},
        }
        replace(self._folder / JOURNAL, json.dumps(state))
        self._safe = self.tokens

    def close(self) -> Manifest:
        """Finish the shards and return their manifest."""
        if not self.full:
            self._end_of_file()
        most = self._reader.source.filter.max_tokens
        # Tokens first: documents beyond their limit are in no file, so a continued build cannot
        # count them towards max_documents.
        by_tokens = most is not None and self.tokens >= most
        limit = "max_tokens" if by_tokens else "max_documents" if self.full else None
        splits = {name: writer.close() for name, writer in self._writers.items()}
        return Manifest.model_validate(
            {
                "dtype": self._dtype.name,
                "splits": splits,
                "removed": dict(self._removed + self._selection.removed),
                "ended_by": limit,
            }
        )
