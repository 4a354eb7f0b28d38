"""Held-out documents that share runs of words with the training text.

This is the measure of GPT-3 (Brown et al. 2020, "Language Models are Few-Shot Learners", appendix
C). A document is suspect if any 13 words in a row also occur in the training text, regardless of
case, punctuation and white space. Words, unlike tokens, do not depend on the tokenizer; for a byte
tokenizer, 13 shared tokens would mean nothing.
"""

from __future__ import annotations

import bisect
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from lm.config.schema.source import TextSource
from lm.documents.faults import Fault
from lm.documents.files import reading
from lm.documents.formats import read_txt
from lm.documents.reader import Document
from lm.documents.templates import LEARNED
from lm.system.errors import DataError
from lm.tokenizer.tokenizer import Tokenizer
from lm.tokens.store import TokenStore

# Chinese and Japanese do not separate words: each of their characters counts as a word.
_UNPARTED = "\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
WORD = re.compile(rf"[{_UNPARTED}]|[^\W{_UNPARTED}]+")
TRAINING_CHARACTERS = 2**20  # training text that is looked up at once
HELD_OUT_CHARACTERS = 2**25  # held-out text for which the training text is read once
MULTIPLIER = np.uint64(0x9E3779B97F4A7C17)  # odd, so that the product keeps every word

Item = TypeVar("Item")


class StoredDocument(Document):
    """A document whose place is only its number; its source may know file and line."""


@dataclass(frozen=True)
class Match:
    """A held-out document that shares n-grams with the training text.

    Attributes:
        document: its place.
        training: the place of the first training document with the first shared n-gram.
        ngrams: how many n-grams the document has.
        shared: how many of them occur in the training text.
        words: the first shared n-gram, as the document writes it.
    """

    document: str
    training: str
    ngrams: int
    shared: int
    words: str


@dataclass
class Overlap:
    """The part of a held-out text that occurs in the training text.

    Documents of fewer than n words have no n-grams; they are counted as too short.
    """

    name: str
    documents: int = 0
    too_short: int = 0
    matches: list[Match] = field(default_factory=list)


def find_overlaps(
    held_out: Mapping[str, Iterable[Document]],
    training: Sequence[Document],
    n: int,
    sources: Iterable[Iterable[Document]] = (),
) -> list[Overlap]:
    """Find held-out documents that share n words in a row with the training text.

    This takes some hundred megabytes of memory for texts of any size. It reads the training text
    once for each 32 million characters of held-out text, and the sources once, to name documents by
    file:line. Two different n-grams collide with a chance of 2^-64 a pair.
    """
    overlaps = {name: Overlap(name) for name in held_out}
    items = ((name, document) for name, documents in held_out.items() for document in documents)
    numbered: dict[int, set[str]] = {}
    for part in _batches(items, HELD_OUT_CHARACTERS, lambda item: item[1].text):
        found = _search([document for _, document in part], training, n, numbered)
        for (name, _), (ngrams, match) in zip(part, found, strict=True):
            overlap = overlaps[name]
            overlap.documents += 1
            overlap.too_short += ngrams == 0
            overlap.matches += [match] if match else []
    places: dict[str, str] = {}
    for document in itertools.chain.from_iterable(sources) if numbered else ():
        places |= dict.fromkeys(numbered.pop(hash(document.text), ()), document.place)
    for overlap in overlaps.values():
        overlap.matches = [
            replace(
                match,
                document=places.get(match.document, match.document),
                training=places.get(match.training, match.training),
            )
            for match in overlap.matches
        ]
    return list(overlaps.values())


def _search(
    held_out: list[Document], training: Sequence[Document], n: int, numbered: dict[int, set[str]]
) -> Iterator[tuple[int, Match | None]]:
    """Yield each held-out document's number of n-grams, and its match if it shares any.

    Places that are only numbers are added to `numbered`: hash -> places.
    """
    ngrams, owners = _ngrams([document.text for document in held_out], n)
    keys, key_of = np.unique(ngrams, return_inverse=True)
    seen_in = np.full(len(keys), -1)  # the index in `seen` of the first document with the n-gram
    seen: list[tuple[str, int | None]] = []
    watched = tqdm(
        training,
        desc=f"looking for {n} words in a row",
        unit=" documents",
        disable=None,
        leave=False,
    )
    for batch in (
        _batches(watched, TRAINING_CHARACTERS, lambda document: document.text) if len(keys) else ()
    ):
        found, found_in = _ngrams([document.text for document in batch], n)
        places = np.searchsorted(keys, found) % len(keys)
        # Backwards: of equal n-grams the first one is written last.
        new = np.flatnonzero((keys[places] == found) & (seen_in[places] < 0))[::-1]
        holders, holder_of = np.unique(found_in[new], return_inverse=True)
        seen_in[places[new]] = len(seen) + holder_of
        seen += [_name(batch[i]) for i in holders]
    first_seen_in = seen_in[key_of]  # for each n-gram of the held-out text
    for document, (start, end) in zip(held_out, _ranges(owners, len(held_out)), strict=True):
        shared = np.flatnonzero(first_seen_in[start:end] >= 0)
        if not len(shared):
            yield end - start, None
            continue
        names = _name(document), seen[first_seen_in[start + shared[0]]]
        for place, key in names:
            if key is not None:
                numbered.setdefault(key, set()).add(place)
        yield (
            end - start,
            Match(
                names[0][0],
                names[1][0],
                end - start,
                len(shared),
                _excerpt(document.text, int(shared[0]), n),
            ),
        )


def _name(document: Document) -> tuple[str, int | None]:
    """Return a document's place and, if that is a number, its hash for a search in the sources."""
    return document.place, hash(document.text) if isinstance(document, StoredDocument) else None


def _ngrams(texts: list[str], n: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Return the hashes of all runs of n words within a text, in order, and each text's number."""
    # Python's hash differs between processes, but these hashes never leave this one.
    words = [
        np.array([hash(word.lower()) for word in WORD.findall(text)], np.int64) for text in texts
    ]
    stream = np.concatenate(words).view(np.uint64)
    owners = np.repeat(np.arange(len(texts)), [len(ids) for ids in words])
    runs = max(0, len(owners) - n + 1)
    hashes = np.zeros(runs, np.uint64)
    for i in range(n):
        hashes = hashes * MULTIPLIER + stream[i : i + runs]
    within = owners[:runs] == owners[n - 1 :][:runs]
    return hashes[within], owners[:runs][within]


def _ranges(owners: NDArray[np.int64], n: int) -> Iterator[tuple[int, int]]:
    """Return the bounds of each of 0..n-1 in the ascending `owners`."""
    bounds = np.searchsorted(owners, np.arange(n + 1))
    return itertools.pairwise(bounds.tolist())


def _excerpt(text: str, first: int, n: int) -> str:
    """Return n words from word number `first` on, as the text writes them."""
    words = list(itertools.islice(WORD.finditer(text), first, first + n))
    return text[words[0].start() : words[-1].end()]


def _batches(
    items: Iterable[Item], characters: int, text_of: Callable[[Item], str]
) -> Iterator[list[Item]]:
    batch, size = [], 0
    for item in items:
        batch.append(item)
        size += len(text_of(item))
        if size >= characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class StoredDocuments(Sequence[Document]):
    """The documents of a split's token stores, decoded on access; their places are numbers.

    Of conversations only the learnt text is decoded: all of them share the template's words.
    """

    def __init__(self, split: str, stores: Sequence[TokenStore], tokenizer: Tokenizer):
        self._split, self._stores, self._tokenizer = split, stores, tokenizer
        self._firsts = [0, *itertools.accumulate(store.documents for store in stores)]

    def __len__(self) -> int:
        return self._firsts[-1]

    def __getitem__(self, number: Any) -> Any:  # Sequence allows slices too, which nobody uses
        if not 0 <= number < len(self):
            raise IndexError(number)
        which = bisect.bisect_right(self._firsts, number) - 1
        store, inside = self._stores[which], number - self._firsts[which]
        start, end = (
            int(place)
            for place in [*store.document_starts[inside : inside + 2], store.tokens - 1][:2]
        )
        ids = store.read(start, end - start)[1:]
        if store.flagged:
            ids = ids[store.read_flags(start + 1, len(ids)) & LEARNED > 0]
        return StoredDocument(
            self._tokenizer.decode(ids.tolist()), f"{self._split} document {number + 1:,}"
        )


def read_held_out(file: str) -> Iterator[Document]:
    """Yield the documents of a file: paragraphs of .txt, lines of .jsonl, entries of .json.

    All strings of a line or an entry together are one document.

    Raises:
        DataError: the file cannot be read or has another ending.
    """
    path = Path(file)
    with reading(file, "--against"):
        if path.suffix == ".txt":
            for number, text in read_txt(
                file, TextSource(format="txt", files=[file], unit="paragraph"), None
            ):
                if isinstance(text, Fault):
                    raise DataError(
                        f"--against: {file}:{number + text.lines_below}: {text.kind}: {text.detail}"
                    )
                yield Document(text, f"{file}:{number}")
        elif path.suffix == ".jsonl":
            with path.open("rb") as stream:
                for number, line in enumerate(stream, 1):
                    if line.strip():
                        yield Document(
                            "\n".join(_strings(_parse(line, f"{file}:{number}"))),
                            f"{file}:{number}",
                        )
        elif path.suffix == ".json":
            for name, entry in _entries(_parse(path.read_bytes(), file)):
                yield Document("\n".join(_strings(entry)), f"{file}{name}")
        else:
            raise DataError(
                f"--against: {file} has an unknown ending; name files that end in .txt,"
                " .jsonl or .json"
            )


def _parse(content: bytes, place: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"--against: {place}: not JSON in UTF-8 ({error})") from error


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the items of a list, or of the lists in a mapping, with names in jq's syntax."""
    if isinstance(value, list):
        yield from ((f"[{i}]", item) for i, item in enumerate(value))
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from (
                (f".{key}{name}", item)
                for name, item in (_entries(inner) if isinstance(inner, list) else [("", inner)])
            )
    else:
        yield "", value


def _strings(value: Any) -> Iterator[str]:
    """Yield all strings in a value, in order, without keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for inner in value if isinstance(value, list) else value.values():
            yield from _strings(inner)
