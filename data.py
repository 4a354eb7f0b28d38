"""The way of the data: documents -> splits -> tokens on disk -> rows -> batches. Read from the top.

    sources (txt, jsonl, hub, ...)               lm/config/schema/source.py, lm/documents/formats.py
      -> documents, each in one split            lm/documents/reader.py
      -> token shards                            lm/tokens/prepare.py, lm/tokens/store.py
      -> rows of T tokens and their successors   PackedRows, DocumentRows or ConversationRows, of each source
      -> step k: which rows of which source      lm/tokens/plan.py
      -> batches                                 TrainingSteps, ValidationBatches

Everything behind the shards is a function of the step's number, the seed and the shards: there is
no state to save, so a resumed run, more workers or more processes see the same rows in the same
steps.

Shapes are written in these letters:
    A  micro-batches of this process in one optimiser step (accumulation)
    B  rows in a micro-batch
    T  tokens in a row
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import lightning
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from lm.checkpoints.base import open_base
from lm.config.schema.chat import ChatSource
from lm.config.schema.config import Config
from lm.optim.loss import IGNORE_INDEX
from lm.system.errors import ConfigError, DataError
from lm.tokenizer.tokenizer import Tokenizer
from lm.tokens.corpus import Corpus, named, open_corpora
from lm.tokens.plan import Plan
from lm.tokens.producer import Producer, await_window
from lm.tokens.rows import ConversationRows
from lm.tokens.store import TokenStore
from lm.tokens.stream import Stream

Batch = dict[str, Any]
# Of one row: its inputs, the label of each, and which of the inputs, but the first, begin a
# document.
Row = tuple[NDArray[Any], NDArray[Any], NDArray[np.int64]]


class PackedDataModule(lightning.LightningDataModule):
    """Batches for training and validation, from a configuration and a tokenizer.

    The tokens are opened, or first made, when something is asked of them; then it says what there
    is.

    Args:
        resumed: the commits of the datasets that a resumed run streams, by their keys, as its
            checkpoint has them.

    Attributes:
        start_step: the first step of `train_dataloader`; a resumed run sets it to the number of
            updates done.

    Raises (at the first question):
        DataError: the text cannot be read or is not enough.
        CheckpointError: the cache cannot be written.
    """

    def __init__(
        self,
        config: Config,
        tokenizer: Tokenizer,
        say: Callable[[str], None] = print,
        resumed: Mapping[str, str] = MappingProxyType({}),
    ):
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.start_step = 0
        self._say = say
        self._resumed = resumed
        self._producers: dict[int, Producer] = {}

    def train_dataloader(self) -> DataLoader[Batch]:
        """One item for each optimiser step from `start_step` to the end of the run: this process's
        part of it.
        """
        rank, world_size = self._rank_and_world_size
        trainer = self.config.trainer
        steps = TrainingSteps(
            self.rows["train"], self.plan, trainer.batch_size, trainer.micro_batch, rank, world_size
        )
        return self._loader(steps, self._announced(range(self.start_step, self.config.max_steps)))

    def val_dataloader(self) -> DataLoader[Batch]:
        """`trainer.validation_rows` rows of the validation split, or all of it: the same ones in
        the same order every time.
        """
        rank, world_size = self._rank_and_world_size
        trainer = self.config.trainer
        batches = ValidationBatches(
            self.rows["val"], trainer.validation_rows, trainer.micro_batch, rank, world_size
        )
        return self._loader(batches, range(len(batches)))

    @property
    def epochs_per_step(self) -> float:
        """How much of a pass over the training rows one step is; 0 for a stream, of which nobody
        knows how long it is.

        Raises:
            ConfigError: the plan cannot be kept. This is asked for before anything of an earlier
                run is moved aside.
        """
        if self.config.data.streams:
            return 0.0
        own = len(self.config.data.parts)
        # the rest is what the base was trained on
        share = sum(self.plan.share(i) for i in range(own))
        return share * self.config.trainer.batch_size / sum(self.plan.sizes[:own])

    @property
    def text_bytes_per_token(self) -> float:
        """UTF-8 bytes of the validation text for each of its tokens, EOS not counted: from nats per
        token to bits per byte.

        Exact for the whole split; where only some of its rows are scored, the split's average
        stands for theirs.
        """
        stores = [corpus.val for corpus in self.corpora]
        return sum(store.text_bytes for store in stores) / sum(
            store.text_tokens for store in stores
        )

    @property
    def validation_sources(self) -> dict[str, float]:
        """What is validated on by its sources, in the order of `ValidationBatches`' numbers: name
        -> `text_bytes_per_token` of each alone.

        Empty where there is one source only, which has nothing to say beside the whole.
        """
        found = [(name, corpus.val) for name, corpus in named(self.corpora) if corpus.val.documents]
        return (
            {name: store.text_bytes / max(1, store.text_tokens) for name, store in found}
            if len(found) > 1
            else {}
        )

    @property
    def sha256(self) -> str:
        """Equal for equal data: a hash of all splits' tokens, wherever their files lie.

        Of a stream the dataset's commit: how much of it is held out depends on
        `trainer.validation_rows`, which may change.
        """
        held_out_of_streams = [
            corpus.val for corpus in self.corpora if isinstance(corpus.train, Stream)
        ]
        stores = [part.store for split in ("train", "val") for part in self.rows[split].parts]
        hashes = [store.sha256 for store in stores if store not in held_out_of_streams]
        return hashlib.sha256("".join(hashes).encode()).hexdigest()

    @property
    def revisions(self) -> dict[str, str]:
        """The commits of the datasets that are streamed, by their keys."""
        return {
            corpus.key: corpus.train.revision
            for corpus in self.corpora
            if isinstance(corpus.train, Stream)
        }

    @functools.cached_property
    def corpora(self) -> list[Corpus]:
        """The sources as tokens, in the order of the configuration; those to validate on last."""
        return open_corpora(self.config, self.tokenizer, self._say, revisions=self._resumed)

    @functools.cached_property
    def trained(self) -> list[Corpus]:
        """The sources that are trained on: the configuration's, and with `finetune.replay` those of
        the base, split as they were then.
        """
        own, finetune = self.corpora[: len(self.config.data.parts)], self.config.finetune
        if finetune is None or not finetune.replay:
            return own
        base = open_base(self.config).config
        if base.data.streams:
            raise ConfigError(
                "finetune.replay: the base's text was streamed, and is not stored; write 0, or name"
                " some text in data.source"
            )
        if any(chat.layout == "preferences" for _, chat in base.data.conversations):
            raise ConfigError(
                "finetune.replay: the base learnt from preferences, whose rejected answers nobody"
                " wants back; write 0"
            )
        if base.data.conversations and not self.config.data.document_mask:
            raise ConfigError(
                "finetune.replay: the base's conversations must not see those beside them in a row;"
                " write data.document_mask: true"
            )
        replayed = open_corpora(base, self.tokenizer, self._say)[: len(base.data.parts)]
        return own + [
            dataclasses.replace(
                corpus, name=f"replayed, {corpus.name}" if corpus.name else "replayed: "
            )
            for corpus in replayed
        ]

    @functools.cached_property
    def rows(self) -> dict[str, Rows]:
        """The rows of each split, "train" and "val"."""
        data, length = self.config.data, self.config.row_length
        for corpus in self.trained:
            # Documents in rows of their own may be short, and so may conversations.
            least = length + 1 if data.rows == "packed" and corpus.reader.chat is None else 2
            if isinstance(corpus.train, TokenStore) and corpus.train.tokens < least:
                raise DataError(
                    f"{corpus.key}: there are {corpus.train.tokens:,} tokens to train on, and one"
                    f" row takes {length + 1:,}: {length:,} (data.sequence_length, or"
                    " model.context_length) and the one to predict last; give more text or make"
                    " the rows shorter"
                )
        train = [self._cut(corpus, corpus.train, data.stride or length) for corpus in self.trained]
        val = [
            self._cut(corpus, corpus.val, length) for corpus in self.corpora if corpus.val.documents
        ]
        rows = {
            split: Rows(parts, self.tokenizer.pad_id, data.document_mask)
            for split, parts in (("train", train), ("val", val))
        }
        for line in summary([*self.trained, *self.corpora[len(data.parts) :]], rows):
            self._say(line)
        for corpus, part in zip(self.trained, train, strict=True):
            if not len(part):
                raise DataError(
                    f"{corpus.key}: no conversation of the train split fits a row of {length:,}"
                    " tokens; make rows longer"
                )
        if not len(rows["val"]):
            raise DataError(
                f"data.source: no conversation of the val split fits a row of {length:,} tokens;"
                " make rows longer"
            )
        return rows

    @functools.cached_property
    def plan(self) -> Plan:
        """Which rows a step trains on."""
        source, sizes, weights = (
            self.config.data.source,
            tuple(len(part) for part in self.rows["train"].parts),
            self._weights,
        )
        if source.format != "mixture":
            return Plan(sizes, weights, "repeat", self.config.trainer.seed)
        plan = Plan(sizes, weights, source.when_one_ends, self.config.trainer.seed)
        passes = [
            self.config.max_steps * self.config.trainer.batch_size * plan.share(i) / size
            for i, size in enumerate(sizes)
        ]
        steps = plan.n_rows // self.config.trainer.batch_size
        if source.when_one_ends == "stop" and self.config.max_steps > steps:
            shorter = f"trainer.max_steps {steps} at most, or " if steps else ""
            raise ConfigError(
                f"data.source.when_one_ends: stop, and parts[{int(np.argmax(passes))}] runs dry"
                f" after {steps:,} of the run's {self.config.max_steps:,} steps; write"
                f" {shorter}when_one_ends: repeat or go_on"
            )
        # else a small source may be learnt by heart unseen
        if source.when_one_ends == "repeat" and not self.config.data.streams:
            self._say(f"data: passes over each: {', '.join(f'{n:.2f}' for n in passes)}")
        return plan

    @property
    def _weights(self) -> tuple[int, ...]:
        """Of the sources that are trained on: as configured, and those of the base so that together
        they have their share.
        """
        own = [part.weight for _, part in self.config.data.parts]
        finetune = self.config.finetune
        if finetune is None or not finetune.replay:
            return tuple(own)
        replayed = [part.weight for _, part in open_base(self.config).config.data.parts]
        # 0 would be none at all
        ratio = Fraction(finetune.replay).limit_denominator(1000) or Fraction(1, 1000)
        a, b = sum(replayed) * (ratio.denominator - ratio.numerator), sum(own) * ratio.numerator
        return (*(weight * a for weight in own), *(weight * b for weight in replayed))

    def teardown(self, stage: str) -> None:
        """End the processes that read streams, and say what was left out of them."""
        for i, producer in self._producers.items():
            if left_out := producer.left_out():
                what = ", ".join(f"{count:,} x {kind}" for kind, count in left_out.items())
                self._say(
                    f"data: {self.corpora[i].key}: left out of the windows of this session: {what}"
                )
            producer.close()
        self._producers.clear()

    def _announced(self, steps: range) -> Sampler[int] | range:
        """The steps, and streams hear of each when it is about to be loaded."""
        streamed = {
            i: part
            for i, part in enumerate(self.rows["train"].parts)
            if isinstance(part, StreamedRows)
        }
        if not streamed or not steps:
            return steps
        local_rank = self.trainer.local_rank if self.trainer is not None else 0
        self.teardown("fit")
        for i, part in streamed.items() if local_rank == 0 else ():
            first, last = (
                self.plan.first_epoch_of_step(i, step, self.config.trainer.batch_size)
                for step in (steps[0], steps[-1])
            )
            self._producers[i] = Producer(
                part.stream, first, last + 1, shared=self.config.trainer.num_nodes > 1
            )
        return AnnouncedSteps(steps, self._announce)

    def _announce(self, step: int) -> None:
        """Loaders are at most a few steps ahead of the training; what a step before that needed,
        nobody needs any more.
        """
        step = max(step - 2 * self.config.data.workers - 2, self.start_step)
        for i, producer in self._producers.items():
            producer.advance(self.plan.first_epoch_of_step(i, step, self.config.trainer.batch_size))

    def _cut(self, corpus: Corpus, store: TokenStore | Stream, stride: int) -> SourceRows:
        length, packed, source = (
            self.config.row_length,
            self.config.data.rows == "packed",
            corpus.reader.source,
        )
        if isinstance(store, Stream):
            return StreamedRows(store)
        if isinstance(source, ChatSource):
            return ConversationRows(store, length, packed, source.too_long)
        return PackedRows(store, length, stride) if packed else DocumentRows(store, length)

    def _loader(self, dataset: Dataset[Batch], items: Sampler[int] | range) -> DataLoader[Batch]:
        # Without a generator of its own, each pass of a loader would draw from the global random
        # state.
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
        return (
            (self.trainer.global_rank, self.trainer.world_size)
            if self.trainer is not None
            else (0, 1)
        )


def _leave_stopping_to_the_run(worker: int) -> None:
    """Ctrl-C reaches every process of the terminal; the run finishes its step first, and for that
    it needs its workers.
    """
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

    def __init__(
        self, rows: Rows, plan: Plan, batch_size: int, micro_batch: int, rank: int, world_size: int
    ):
        self.rows = rows
        self.plan = plan
        self.batch_size = batch_size
        self.micro_batch = micro_batch
        self.rank = rank
        self.world_size = world_size

    def __getitem__(self, step: int) -> Batch:
        addresses = self.plan.of_step(step, self.batch_size)
        # (A, B, 3)
        mine = addresses.reshape(-1, self.world_size, self.micro_batch, 3)[:, self.rank]
        return {**self.rows[mine], "step": step}


class ValidationBatches(Dataset[Batch]):
    """Tensors of (B, T) that cover `n_rows` rows of a split, evenly spread over it, or all of them;
    and of several sources `source` (B,), the number of each row's.

    Every process gets equally many batches, or the last ones would wait for each other for ever.
    Rows past the end, which have no labels, fill them up, so that nothing is scored twice.
    """

    def __init__(
        self, rows: Rows, n_rows: int | None, micro_batch: int, rank: int, world_size: int
    ):
        self.rows = rows
        chosen = min(n_rows or len(rows), len(rows))
        numbers = np.arange(chosen) * len(rows) // chosen
        past_the_end = np.full(-chosen % (world_size * micro_batch), len(rows))
        self.numbers = np.concatenate([numbers, past_the_end]).reshape(-1, world_size, micro_batch)[
            :, rank
        ]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Batch:
        addresses = self.rows.addresses(self.numbers[index])
        source = {"source": torch.from_numpy(addresses[:, 0])} if len(self.rows.parts) > 1 else {}
        return self.rows[addresses] | source


class Rows:
    """The rows of all sources' splits, as tensors: T inputs, and for each the token that follows as
    its label.

        stream      EOS a b EOS c d e f g EOS                    T = 4, packed

        row         input_ids      labels         document_ids
        0           EOS a b EOS    a b EOS c      0 0 0 1
        1           c d e f        d e f g        0 0 0 0
        2           g pad pad pad  EOS - - -      0 1 1 1        "-" is IGNORE_INDEX, -100

    `document_ids` are there with `document_mask`: they come from where documents are known to
    start, as an id that looks like EOS may be anything.
    """

    def __init__(self, parts: Sequence[SourceRows], pad_id: int, document_mask: bool):
        self.parts = parts
        self.length = parts[0].length
        self.pad_id = pad_id
        self.document_mask = document_mask
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def addresses(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where rows are that are counted through all parts: (part, epoch, row), as plans have it.
        Past the end there are none.
        """
        part = np.minimum(np.searchsorted(self._ends, numbers, side="right"), len(self.parts) - 1)
        first = np.array([0, *self._ends])[part]
        return np.stack([part, np.zeros_like(numbers), numbers - first], axis=-1)

    def __getitem__(self, addresses: NDArray[np.int64]) -> dict[str, Tensor]:
        """The rows at an array of addresses (*, 3), as int64 tensors (*, T). Numbers past the end
        give rows without labels.
        """
        shape = (*addresses.shape[:-1], self.length)
        inputs = np.full(shape, self.pad_id)
        labels = np.full(shape, IGNORE_INDEX)
        begins = np.zeros(shape, np.int64)  # 1 where a new document begins, or the padding
        for i in np.ndindex(shape[:-1]):
            number, epoch, row = addresses[i].tolist()
            part = self.parts[number]
            if row < len(part):
                row += epoch * len(part) if isinstance(part, StreamedRows) else 0
                some_inputs, some_labels, starts = part.row(row)
                n = len(some_inputs)
                inputs[i][:n], labels[i][:n] = some_inputs, some_labels
                if self.document_mask:
                    begins[i][starts] = 1
                    begins[i][n : n + 1] = 1
        rows = {"input_ids": inputs, "labels": labels}
        if self.document_mask:
            rows["document_ids"] = begins.cumsum(axis=-1)
        return {name: torch.from_numpy(values) for name, values in rows.items()}


class PackedRows:
    """A split's stream of tokens, cut into rows, see `Rows`.

    Every token but the stream's first is a label exactly once, tails of documents and of the stream
    included, and a document's first token is predicted from its EOS. A document that began in an
    earlier row goes on without its past. With a stride below T rows overlap, and tokens are labels
    in several.
    """

    def __init__(self, store: TokenStore, length: int, stride: int):
        self.store = store
        self.length = length
        self.stride = stride

    def __len__(self) -> int:
        return 1 + max(0, -(-(self.store.tokens - 1 - self.length) // self.stride))

    def row(self, number: int) -> Row:
        """See `Row`."""
        start, starts = number * self.stride, self.store.document_starts
        ids = self.store.read(start, self.length + 1)
        a, b = np.searchsorted(starts, [start + 1, start + self.length])
        return ids[:-1], ids[1:], starts[a:b] - start


class DocumentRows:
    """Rows that begin where documents do, with their EOS, and are padded; a document that is longer
    than a row takes several.

    Memory holds 8 bytes for each document.
    """

    def __init__(self, store: TokenStore, length: int):
        self.store = store
        self.length = length
        starts = np.append(store.document_starts, store.tokens - 1)
        # before each document, and in all
        self._rows = np.append(0, (-(-np.diff(starts) // length)).cumsum())

    def __len__(self) -> int:
        return int(self._rows[-1])

    def row(self, number: int) -> Row:
        """See `Row`. The last label may be the next document's EOS; no other document begins in it."""
        document = int(np.searchsorted(self._rows, number, side="right")) - 1
        bounds = self.store.document_starts[document : document + 2].tolist()
        start = bounds[0] + (number - int(self._rows[document])) * self.length
        end = bounds[1] if len(bounds) == 2 else self.store.tokens - 1
        ids = self.store.read(start, min(self.length, end - start) + 1)
        return ids[:-1], ids[1:], np.empty(0, np.int64)


class StreamedRows:
    """The rows of a stream's windows, packed, one window after another: as many as one window has
    are shuffled together.
    """

    def __init__(self, stream: Stream):
        self.stream = self.store = stream
        self.length = stream.length

    def __len__(self) -> int:
        return self.stream.rows

    def row(self, number: int) -> Row:
        """See `Row`; waits until its window is there."""
        window = await_window(self.stream, number // len(self))
        return PackedRows(window, self.length, self.length).row(number % len(self))


SourceRows = PackedRows | DocumentRows | StreamedRows | ConversationRows


class AnnouncedSteps(Sampler[int]):
    """Numbers, each of which is told to `announce` before a loader gets it."""

    def __init__(self, steps: range, announce: Callable[[int], None]):
        self.steps = steps
        self.announce = announce

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[int]:
        for step in self.steps:
            self.announce(step)
            yield step


def summary(corpora: Sequence[Corpus], rows: dict[str, Rows]) -> list[str]:
    """A line for each source: what there is, where it lies, and what was left out; and one for all,
    where there are several.
    """
    lines = []
    for corpus in corpora:
        own = {
            split: [part for part in rows[split].parts if part.store in (corpus.train, corpus.val)]
            for split in rows
        }
        first, *more = [_counts(split, parts) for split, parts in own.items() if parts]
        left_out = sum(
            (
                part.left_out
                for parts in own.values()
                for part in parts
                if isinstance(part, ConversationRows)
            ),
            Counter[str](),
        )
        more += [f"{count:,} x {kind}" for kind, count in left_out.items()]
        lines.append("; ".join([f"data: {corpus.name}{first}", *more, *corpus.facts]))
    if len(rows["train"].parts) > 1:
        lines.append(
            "data: together:"
            f" {'; '.join(_counts(split, of_all.parts) for split, of_all in rows.items())}"
        )
    return lines


def _counts(split: str, parts: Sequence[SourceRows]) -> str:
    cut = f"{sum(map(len, parts)):,} rows of {parts[0].length:,}"
    stores = [part.store for part in parts if isinstance(part.store, TokenStore)]
    if len(stores) < len(parts):
        return f"{split} as it comes, {cut} shuffled together"
    documents, tokens = (
        sum(numbers)
        for numbers in zip(*((store.documents, store.tokens) for store in stores), strict=True)
    )
    # every token is an input once, but for each stream's last
    if all(isinstance(part, DocumentRows) for part in parts):
        cut += (
            f", {1 - (tokens - len(parts)) / (sum(map(len, parts)) * parts[0].length):.0%} of it"
            " padding"
        )
    if isinstance(parts[0], ConversationRows) and len(parts) == 1 and len(parts[0]):
        cut += f", {1 - parts[0].n_inputs / (len(parts[0]) * parts[0].length):.0%} of it padding"
    kind = (
        "conversations"
        if all(isinstance(part, ConversationRows) for part in parts)
        else "documents"
    )
    return f"{split} {documents:,} {kind}, {tokens:,} tokens, {cut}"
