"""The way of the data: documents -> splits -> tokens on disk -> rows -> batches. Read from the top.

    source (txt, jsonl, parquet, hub)            lm/sources.py
      -> documents, each in one split            split_documents
      -> token shards, memory-mapped             build, lm/shards.py
      -> rows of T tokens and their successors   PackedRows
      -> step k: which rows                      lm/plan.py
      -> batches                                 TrainingSteps, ValidationBatches

Everything behind the shards is a function of the step's number, the seed and the shards: there is no state to save, so a resumed run, more
workers or more processes see the same rows in the same steps.

Shapes are written in these letters:
    A  micro-batches of this process in one optimiser step (accumulation)
    B  rows in a micro-batch
    T  tokens in a row
"""

from __future__ import annotations

import functools
import hashlib
import json
import signal
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from lm.errors import DataError
from lm.loss import IGNORE_INDEX
from lm.plan import rows_of_step
from lm.schema import Config
from lm.schema.data import DataConfig
from lm.shards import FORMAT, Manifest, SplitWriter, TokenStore, open_or_build
from lm.sources import Reader
from lm.tokenizer import Tokenizer

SPLITS = ("train", "val")
BATCH_CHARACTERS = 2**20  # Documents are tokenised together up to this much text: what building a cache holds in memory.

Batch = dict[str, Any]


class PackedDataModule(lightning.LightningDataModule):
    """Batches for training and validation, from a configuration and a tokenizer.

    The tokens are opened, or first made, when something is asked of them; then one line says what there is.

    Attributes:
        start_step: the first step of `train_dataloader`; a resumed run sets it to the number of updates done.

    Raises (at the first question):
        DataError: the text cannot be read or is not enough.
        CheckpointError: the cache cannot be written.
    """

    def __init__(self, config: Config, tokenizer: Tokenizer, say: Callable[[str], None] = print):
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.start_step = 0
        self._say = say

    def train_dataloader(self) -> DataLoader[Batch]:
        """One item for each optimiser step from `start_step` to the end of the run: this process's part of it."""
        rank, world_size = self._rank_and_world_size
        trainer = self.config.trainer
        steps = TrainingSteps(self.rows["train"], trainer.batch_size, trainer.micro_batch, trainer.seed, rank, world_size)
        return self._loader(steps, range(self.start_step, self.config.max_steps))

    def val_dataloader(self) -> DataLoader[Batch]:
        """`trainer.validation_rows` rows of the validation split, or all of it: the same ones in the same order every time."""
        rank, world_size = self._rank_and_world_size
        trainer = self.config.trainer
        batches = ValidationBatches(self.rows["val"], trainer.validation_rows, trainer.micro_batch, rank, world_size)
        return self._loader(batches, range(len(batches)))

    @property
    def epochs_per_step(self) -> float:
        """How much of a pass over the training rows one step is."""
        return self.config.trainer.batch_size / len(self.rows["train"])

    @property
    def text_bytes_per_token(self) -> float:
        """UTF-8 bytes of the validation text for each of its tokens, EOS not counted: from nats per token to bits per byte.

        Exact for the whole split; where only some of its rows are scored, the split's average stands for theirs.
        """
        return self.rows["val"].store.text_bytes / self.rows["val"].store.text_tokens

    @property
    def sha256(self) -> str:
        """Equal for equal data: a hash of both splits' tokens, wherever their files lie."""
        return hashlib.sha256("".join(self.rows[split].store.sha256 for split in SPLITS).encode()).hexdigest()

    @functools.cached_property
    def rows(self) -> dict[str, PackedRows]:
        """The rows of each split, "train" and "val"."""
        data, length = self.config.data, self.config.row_length
        readers = [Reader(data.source, "data.source", data.on_bad_row)]
        if data.validation is not None:
            readers.append(Reader(data.validation, "data.validation", data.on_bad_row))
        folder = Path(data.cache_dir).expanduser() / fingerprint(data, self.tokenizer, readers)
        manifest, cached = open_or_build(folder, lambda empty: build(empty, data, self.tokenizer, readers), self._say)
        stores = {split: TokenStore(folder, split, manifest) for split in SPLITS}
        if stores["train"].tokens <= length:
            raise DataError(
                f"data.source: there are {stores['train'].tokens:,} tokens to train on, and one row takes {length + 1:,}: {length:,} "
                "(data.sequence_length, or model.context_length) and the one to predict last; give more text or make the rows shorter"
            )
        rows = {split: PackedRows(store, length, self.tokenizer.pad_id, data.document_mask) for split, store in stores.items()}
        self._say(summary(rows, manifest, f"{'read from' if cached else 'written to'} {folder}"))
        return rows

    def _loader(self, dataset: Dataset[Batch], items: range) -> DataLoader[Batch]:
        # Without a generator of its own, each pass of a loader would draw from the global random state.
        return DataLoader(
            dataset,
            sampler=items,
            batch_size=None,
            num_workers=self.config.data.workers,
            generator=torch.Generator(),
            worker_init_fn=_leave_stopping_to_the_run,
        )

    @property
    def _rank_and_world_size(self) -> tuple[int, int]:
        """This process's rank, and how many there are."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)


def _leave_stopping_to_the_run(worker: int) -> None:
    """Ctrl-C reaches every process of the terminal; the run finishes its step first, and for that it needs its workers."""
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


class TrainingSteps(Dataset[Batch]):
    """Item k is what one process trains on in optimiser step k: `step`, and tensors of (A, B, T).

    The step's rows are dealt out in the order (micro-batch, process, row):

        rows of the step    0 1 2 3 4 5 6 7        2 processes, B = 2, so A = 2
        process 0           0 1     4 5
        process 1               2 3     6 7

    Another number of processes or another B deals the same rows.
    """

    def __init__(self, rows: PackedRows, batch_size: int, micro_batch: int, seed: int, rank: int, world_size: int):
        self.rows = rows
        self.batch_size = batch_size
        self.micro_batch = micro_batch
        self.seed = seed
        self.rank = rank
        self.world_size = world_size

    def __getitem__(self, step: int) -> Batch:
        numbers = rows_of_step(step, self.batch_size, len(self.rows), self.seed)
        mine = numbers.reshape(-1, self.world_size, self.micro_batch)[:, self.rank]  # (A, B)
        return {**self.rows[mine], "step": step}


class ValidationBatches(Dataset[Batch]):
    """Tensors of (B, T) that cover `n_rows` rows of a split, evenly spread over it, or all of them.

    Every process gets equally many batches, or the last ones would wait for each other for ever. Rows past the end, which have no labels,
    fill them up, so that nothing is scored twice.
    """

    def __init__(self, rows: PackedRows, n_rows: int | None, micro_batch: int, rank: int, world_size: int):
        self.rows = rows
        chosen = min(n_rows or len(rows), len(rows))
        numbers = np.arange(chosen) * len(rows) // chosen
        past_the_end = np.full(-chosen % (world_size * micro_batch), len(rows))
        self.numbers = np.concatenate([numbers, past_the_end]).reshape(-1, world_size, micro_batch)[:, rank]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Batch:
        return self.rows[self.numbers[index]]


class PackedRows:
    """A split's stream of tokens, cut into rows: T inputs, and for each the token that follows as its label.

        stream      EOS a b EOS c d e f g EOS                    T = 4

        row         input_ids      labels         document_ids
        0           EOS a b EOS    a b EOS c      0 0 0 1
        1           c d e f        d e f g        0 0 0 0
        2           g pad pad pad  EOS - - -      0 1 1 1        "-" is IGNORE_INDEX, -100

    So every token but the stream's first is a label exactly once, tails of documents and of the stream included, and a document's first
    token is predicted from its EOS. `document_ids` are there with `document_mask`: they come from where documents are known to start, as
    an id that looks like EOS may be anything. A document that began in an earlier row goes on without its past.
    """

    def __init__(self, store: TokenStore, length: int, pad_id: int, document_mask: bool):
        self.store = store
        self.length = length
        self.pad_id = pad_id
        self.document_mask = document_mask

    def __len__(self) -> int:
        return -(-(self.store.tokens - 1) // self.length)

    def __getitem__(self, numbers: NDArray[np.int64]) -> dict[str, Tensor]:
        """The rows of any array of row numbers, as int64 tensors (*numbers.shape, T). Numbers past the end give rows without labels."""
        shape = (numbers.size, self.length)
        inputs = np.full(shape, self.pad_id)
        labels = np.full(shape, IGNORE_INDEX)
        begins = np.zeros(shape, np.int64)  # 1 where a new document begins, or the padding
        for i, number in enumerate(numbers.ravel().tolist()):
            if number < len(self):
                start = number * self.length
                ids = self.store.read(start, self.length + 1)
                n = len(ids) - 1
                inputs[i, :n], labels[i, :n] = ids[:-1], ids[1:]
                if self.document_mask:
                    begins[i, self._document_starts(start + 1, start + n) - start] = 1
                    begins[i, n : n + 1] = 1
        rows = {"input_ids": inputs, "labels": labels}
        if self.document_mask:
            rows["document_ids"] = begins.cumsum(axis=1)
        return {name: torch.from_numpy(values).view(*numbers.shape, self.length) for name, values in rows.items()}

    def _document_starts(self, first: int, end: int) -> NDArray[np.int64]:
        """Places in the stream, first <= place < end, where documents begin."""
        starts = self.store.document_starts
        a, b = np.searchsorted(starts, [first, end])
        return starts[a:b]


def build(folder: Path, data: DataConfig, tokenizer: Tokenizer, readers: list[Reader]) -> Manifest:
    """Write the shards of both splits into an empty folder and return their manifest.

    Memory holds a batch of documents, and 8 bytes for each document there is.

    Raises:
        DataError: a split would be empty.
    """
    writers = {split: SplitWriter(folder, split, tokenizer.eos_id, tokenizer.dtype) for split in SPLITS}
    hashes = {split: array("Q") for split in SPLITS}
    documents = tqdm(split_documents(data, readers), desc="tokenising", unit=" documents", disable=None, leave=False)
    for batch in _batches(documents):
        for split in SPLITS:
            if texts := [text for name, text in batch if name == split]:
                writers[split].add(tokenizer.encode_batch(texts), sum(len(text.encode()) for text in texts))
                hashes[split].extend(map(hash_of_text, texts))
    splits = {split: writer.close() for split, writer in writers.items()}
    _check_splits(data, splits)
    repeated = int(np.isin(np.array(hashes["val"]), np.array(hashes["train"])).sum())
    skipped = sum((reader.skipped for reader in readers), start=Counter())
    return {"dtype": np.dtype(tokenizer.dtype).name, "splits": splits, "skipped": skipped, "repeated": repeated}


def split_documents(data: DataConfig, readers: list[Reader]) -> Iterator[tuple[str, str]]:
    """Every document's split and text.

    hash        A document's text decides, so the split is the same in any order of files, and equal documents are never in both.
    tail        The last `val_fraction` of all characters; the document at the border is cut in two there. Reads everything twice.
    validation  Each source is a split.
    """
    if data.validation is not None:
        for split, reader in zip(SPLITS, readers, strict=True):
            yield from ((split, document.text) for document in reader)
    elif data.split == "hash":
        for document in readers[0]:
            yield "val" if hash_of_text(document.text) < data.val_fraction * 2**64 else "train", document.text
    else:
        left = int(sum(len(document.text) for document in readers[0]) * (1 - data.val_fraction))
        for document in readers[0]:
            for split, text in ("train", document.text[:left]), ("val", document.text[left:]):
                if text:
                    yield split, text
            left = max(0, left - len(document.text))


def hash_of_text(text: str) -> int:
    """64 bits of a text's BLAKE2b, the same on every machine (unlike Python's own hash)."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _batches(documents: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    batch, size = [], 0
    for split, text in documents:
        batch.append((split, text))
        size += len(text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    yield batch


def _check_splits(data: DataConfig, splits: dict[str, Manifest]) -> None:
    train, val = (splits[split]["documents"] for split in SPLITS)
    if all(splits[split]["text_tokens"] for split in SPLITS):
        return
    if train + val == 0:
        raise DataError("data.source: there is no text in it; name files that hold some")
    if data.validation is not None:
        empty = "data.validation" if train else "data.source"
        raise DataError(f"{empty}: there is no text in it; name files that hold some")
    if train + val == 1 and data.split == "hash":
        raise DataError(
            "data.split: hash needs several documents, and the text is a single one; write data.split: tail, which holds out its end"
        )
    raise DataError(
        f"data.val_fraction: {data.val_fraction} with data.split: {data.split} leaves {train} documents to train on and {val} to validate "
        "on; give more text or another val_fraction" + (", or write data.split: tail" if data.split == "hash" else "")
    )


def fingerprint(data: DataConfig, tokenizer: Tokenizer, readers: list[Reader]) -> str:
    """A hash of all that the shards depend on, cut to a folder's name. Not of row length and mask: rows are cut when they are read."""
    content = {
        "format": FORMAT,
        "tokenizer": [tokenizer.sha256, tokenizer.eos_id],
        "sources": [reader.identity() for reader in readers],
        "settings": data.model_dump(include={"split", "val_fraction", "on_bad_row"}),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def summary(rows: dict[str, PackedRows], manifest: Manifest, origin: str) -> str:
    """One line: what there is, where it lies, and what was left out."""
    parts = [
        f"{split} {part.store.documents:,} documents, {part.store.tokens:,} tokens, {len(part):,} rows of {part.length:,}"
        for split, part in rows.items()
    ]
    stores = [part.store for part in rows.values()]
    parts.append(f"{sum(store.text_bytes for store in stores) / sum(store.text_tokens for store in stores):.2f} bytes per token")
    parts.append(origin)
    if manifest["skipped"]:
        parts.append("skipped: " + ", ".join(f"{count:,} x {kind}" for kind, count in manifest["skipped"].items()))
    if manifest["repeated"]:
        parts.append(f"{manifest['repeated']:,} of the validation documents are also in the training text")
    return "data: " + "; ".join(parts)
