"""Which held-out text the model is trained on: documents that share runs of words with the training
text.

This is the measure of GPT-3 (Brown et al. 2020, "Language Models are Few-Shot Learners", appendix
C): a document is suspect if any 13 words in a row are in the training text too, without regard to
case, punctuation and white space. Words and not tokens, so that the answer does not depend on the
tokenizer, and 13 bytes in common would mean nothing.
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

# Nothing parts the words of Chinese and Japanese: each of their characters counts as one.
_UNPARTED = "\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
WORD = re.compile(rf"[{_UNPARTED}]|[^\W{_UNPARTED}]+")
TRAINING_CHARACTERS = 2**20  # Training text is looked up this much at a time,
HELD_OUT_CHARACTERS = 2**25  # and held-out text, for each of which the training text is read once.
MULTIPLIER = np.uint64(0x9E3779B97F4A7C17)  # odd, so that no word is multiplied away

Item = TypeVar("Item")


class StoredDocument(Document):
    """A document whose place is only its number; the source that it came from may know a better
    one.
    """


@dataclass(frozen=True)
class Match:
    """A held-out document that shares n-grams with the training text.

    Attributes:
        document, training: where it stands, and where the first training document that has the
            first shared n-gram.
        ngrams, shared: how many it has, and how many of them are in the training text.
        words: the first shared one, as the document has it.
    """

    document: str
    training: str
    ngrams: int
    shared: int
    words: str


@dataclass
class Overlap:
    """How much of a held-out text is in the training text. Documents of less than n words have no
    n-grams: they are not judged.
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
    """Which documents of the held-out texts, given by name, share n words in a row with the
    training text.

    Memory: some hundred megabytes, however large the texts are. Time: the words of the training
    text are gone through once for each 32 million characters of held-out text, and the sources
    once, to name documents by file:line. Two different n-grams pass for one with a chance of 2^-64
    a pair.
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
    """For each held-out document, how many n-grams it has, and what it shares. Stored ones are
    noted in `numbered`: hash -> places.
    """
    ngrams, owners = _ngrams([document.text for document in held_out], n)
    keys, key_of = np.unique(ngrams, return_inverse=True)
    seen_in = np.full(len(keys), -1)  # which of `seen` has it first
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
        # backwards: of equal ones the first is written last
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
    """A document's place and, if that is only a number, the hash to look for in the sources."""
    return document.place, hash(document.text) if isinstance(document, StoredDocument) else None


def _ngrams(texts: list[str], n: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """The hashes of all runs of n words that lie in one text, in order, and the number of that
    text.
    """
    # Python's own hash differs from process to process; here one process is all there is.
    words = [
        np.array([hash(word.lower()) for word in WORD.findall(text)], np.int64) for text in texts
    ]
    stream = np.concatenate(words).view(np.uint64)
    owners = np.repeat(np.arange(len(texts)), [len(ids) for ids in words])
    runs = max(0, len(owners) - n + 1)
    hashes = np.zeros(runs, np.uint64)
    for i in range(n):
        hashes = hashes * MULTIPLIER + stream[i : i + runs]
    whole = owners[:runs] == owners[n - 1 :][:runs]
    return hashes[whole], owners[:runs][whole]


def _ranges(owners: NDArray[np.int64], n: int) -> Iterator[tuple[int, int]]:
    """Where in the ascending `owners` each of 0..n-1 stands, from and to."""
    bounds = np.searchsorted(owners, np.arange(n + 1))
    return itertools.pairwise(bounds.tolist())


def _excerpt(text: str, first: int, n: int) -> str:
    """n words from the one numbered `first` on, as they stand in the text."""
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
    """The documents of a split's token stores, decoded when they are asked for: what the model sees
    of them. Their place is a number.

    Of conversations what is learnt of them: the words that a template puts around it would be
    shared by all.
    """

    def __init__(self, split: str, stores: Sequence[TokenStore], tokenizer: Tokenizer):
        self._split, self._stores, self._tokenizer = split, stores, tokenizer
        self._firsts = [0, *itertools.accumulate(store.documents for store in stores)]

    def __len__(self) -> int:
        return self._firsts[-1]

    def __getitem__(self, number: Any) -> Any:  # Sequence wants slices too, which nobody asks for
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
    """The documents of any further text: paragraphs of a .txt, and of a .jsonl or .json all strings
    of a line or an entry together.

    Raises:
        DataError: it cannot be read, or is of another kind.
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
                f"--against: {file} is of no kind that is known here; name files that end in .txt,"
                " .jsonl or .json"
            )


def _parse(content: bytes, place: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"--against: {place}: not JSON in UTF-8 ({error})") from error


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """The items of a list, and of lists in a mapping; with their names in the manner of jq."""
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
    """All strings in a value, in order; keys are no text."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for inner in value if isinstance(value, list) else value.values():
            yield from _strings(inner)
