"""manifest.json with types: what a token cache, or a window of a stream, says about its files; and
the journal of a cache that is being built.

A manifest may be damaged, edited, or written by another program. So its values are checked before
anything uses them, and its own hash shows a change that leaves every type right.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lm.system.disk import fingerprint, read_json
from lm.system.errors import CheckpointError, printable

FILE = "manifest.json"
SEAL = "manifest_sha256"  # the hash of all other keys; manifests of earlier versions have none

Count = Annotated[int, Field(ge=0, le=2**50)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Kind = Annotated[str, Field(max_length=1000, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
Hash = Annotated[int, Field(ge=0, lt=2**64)]  # of a text
Triple = Annotated[list[Hash], Field(min_length=3, max_length=3)]
SplitName = Literal["train", "val"]


class Strict(BaseModel):
    """A part of a manifest. Keys of another version of the project are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, allow_inf_nan=False)


class FileFacts(Strict):
    """The size and hash of a file."""

    bytes: Count
    sha256: Digest


class SplitEntry(Strict):
    """A split: its counts (`lm.tokens.store.Counts`), and its files by name."""

    tokens: Annotated[Count, Field(ge=1)]
    documents: Count
    text_tokens: Count
    text_bytes: Count
    unknown_tokens: Count = 0
    compared_bytes: Count = 0
    lost_bytes: Count = 0
    empty_documents: Count = 0
    shard_tokens: Annotated[Count, Field(ge=1)]
    sha256: Digest
    files: dict[str, FileFacts] = {}

    def sizes(self, split: str, itemsize: int) -> dict[str, int]:
        """Return the sizes that the counts give the files; without flags, which are optional."""
        shards = -(-self.tokens // self.shard_tokens)
        if shards > len(self.files):
            return {}
        tokens = {
            f"{split}-{i:05d}.bin": min(self.shard_tokens, self.tokens - i * self.shard_tokens)
            for i in range(shards)
        }
        documents = {f"{split}-starts.bin": 8, f"{split}-hashes.bin": 8} if self.documents else {}
        return {name: size * itemsize for name, size in tokens.items()} | {
            name: size * self.documents for name, size in documents.items()
        }


class Manifest(Strict):
    """The manifest of a cache; `fingerprint` is the name of its folder."""

    fingerprint: str = ""
    dtype: Literal["uint16", "uint32"]
    splits: dict[SplitName, SplitEntry]
    removed: dict[Kind, Count] = {}
    ended_by: Kind | None = None

    @model_validator(mode="after")
    def _files_have_the_sizes_of_the_counts(self) -> Self:
        for split, entry in self.splits.items():
            sizes = entry.sizes(split, np.dtype(self.dtype).itemsize)
            flags = f"{split}-flags.bin"
            sizes |= {flags: entry.tokens} if flags in entry.files else {}
            stated = {name: file.bytes for name, file in entry.files.items() if file.bytes}
            if sizes != stated:
                raise ValueError(f"the files of {split} have other sizes than its counts say")
        return self

    @property
    def files(self) -> dict[str, FileFacts]:
        """All files of the cache, by name."""
        return {name: file for entry in self.splits.values() for name, file in entry.files.items()}


class Journal(Strict):
    """The journal of a build that goes on after a kill; `_Work` in prepare.py says what it means.

    Attributes:
        border, parted: three numbers each.
        tested: hashes of documents.
        splits: `lm.tokens.store.Counts` of what is written.
    """

    cut: list[Count]
    pieces: Count
    border: Triple | None
    parted: Triple | None
    file: str | None
    no_text_yet: bool
    tested: list[Hash]
    removed: dict[Kind, Count]
    splits: dict[SplitName, dict[str, Count]]


class Position(Strict):
    """A place in a streamed dataset.

    Attributes:
        passes: complete passes over the dataset.
        row: rows read since.
        state: the state of the datasets library.
    """

    passes: Count = 0
    row: Count = 0
    state: Any = None


class WindowManifest(Strict):
    """The manifest of a window: its tokens, and what is needed to make the next window.

    Attributes:
        position: where the dataset continues.
        rest_starts: where documents begin in the tokens that are left over.
    """

    dtype: Literal["uint16", "uint32"]
    splits: dict[Literal["train"], SplitEntry]
    position: Position
    rest_starts: list[Count]
    removed: dict[Kind, Count]

    @model_validator(mode="after")
    def _has_its_split(self) -> Self:
        if not self.splits:
            raise ValueError("its split is missing")
        return self

    @property
    def files(self) -> dict[str, FileFacts]:
        """The files of the tokens; those of earlier versions have no list."""
        entry = self.splits["train"]
        tokens = {"train-00000.bin": FileFacts(bytes=0, sha256=entry.sha256)}
        return tokens | {name: f for name, f in entry.files.items() if name != "rest.bin"}

    @property
    def sha256(self) -> str:
        """The hash of the tokens."""
        return self.splits["train"].sha256


def sealed(manifest: BaseModel) -> str:
    """Return a manifest as JSON, with its own hash."""
    values = manifest.model_dump(mode="json")
    return json.dumps({**values, SEAL: _digest(values)}, indent=1)


def read_values(file: Path) -> dict[str, Any]:
    """Return the values of a manifest, whose types are not checked yet.

    Raises:
        ValueError: the file cannot be read, or its hash is wrong.
    """
    try:
        values = read_json(file)
    except CheckpointError as error:
        raise ValueError(str(error)) from error
    seal = values.pop(SEAL, None)
    if seal is not None and seal != _digest(values):
        raise ValueError(f"{file} was changed after it was written")
    return values


def first_problem(error: ValueError) -> str:
    """Return in a few words why values are not a manifest."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "all"
        return printable(f"{FILE}: {place[:200]}: {first['msg']}")
    return str(error)


def facts_of(file: Path) -> FileFacts:
    """Return a file's size and hash."""
    return FileFacts(**fingerprint(file))


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
