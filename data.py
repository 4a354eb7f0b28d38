"""The data, from documents to batches. Read this file from the top; it names the others.

    sources (txt, jsonl, hub, ...)           lm/config/schema/source.py, lm/documents/formats.py
      -> documents, each in one split        lm/documents/reader.py
      -> token shards on disk                lm/tokens/prepare.py, lm/tokens/store.py
      -> rows of T inputs and T labels       lm/tokens/rows.py
      -> step k: which rows it trains on     lm/tokens/plan.py
      -> batches                             TrainingSteps, ValidationBatches

Everything after the shards is a function of the step's number, the seed and the shards. There is no
state to save: a resumed run, more workers or more processes see the same rows in the same steps.

Shapes are written in these letters:
    A  micro-batches of this process in one optimiser step (accumulation)
    B  rows in a micro-batch
    T  tokens in a row
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lm.checkpoints.base import open_base
from lm.config.schema.config import Config
from lm.optim.loss import IGNORE_INDEX
from lm.system.workers import start_worker, workers_with_room
from lm.tokenizer.tokenizer import Tokenizer
from lm.tokens.corpus import Corpus, open_corpora
from lm.tokens.mixture import epochs_per_step, make_plan, open_replayed, with_length
from lm.tokens.plan import Plan
from lm.tokens.producer import AnnouncedSteps, Producers
from lm.tokens.rows import SourceRows, StreamedRows, cut_splits, require_rows
from lm.tokens.stream import Stream
from lm.tokens.summary import hash_of_data, summary, text_bytes, text_bytes_by_source

Batch = dict[str, Any]


class PackedDataModule(lightning.LightningDataModule):
    """Batches for training and validation, from a configuration and a tokenizer.

    Tokens are opened, or made first, when they are first needed; then `say` logs what there is.

    Args:
        revisions: the dataset commits that a resumed run streams, by their sources' keys.
        moving_rows: whether each epoch cuts packed rows elsewhere, so that other tokens lack their
            past. Runs of earlier versions go on without it.

    Attributes:
        start_step: the first step of `train_dataloader`; a resumed run sets it to its updates done.

    Raises (when tokens are first needed):
        DataError: the text cannot be read or is not enough.
        CheckpointError: the cache cannot be written.
    """

    def __init__(
        self,
        config: Config,
        tokenizer: Tokenizer,
        say: Callable[[str], None] = print,
        revisions: Mapping[str, str] | None = None,
        moving_rows: bool = True,
    ):
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.moving_rows = moving_rows
        self.start_step = 0
        self._say = say
        self._resumed = revisions or {}
        self._producers: Producers | None = None

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return an item for each step from `start_step` on: this process's part of the step."""
        rank, world_size = self._rank_and_world_size
        trainer = self.config.trainer
        dataset = TrainingSteps(
            self.rows["train"], self.plan, trainer.batch_size, trainer.micro_batch, rank, world_size
        )
        steps = range(self.start_step, self.sized_config.max_steps)
        return self._loader(dataset, self._announced(steps) if self.config.data.streams else steps)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return batches of `trainer.validation_rows` rows, the same every time; null: all."""
        rank, world_size = self._rank_and_world_size
        trainer = self.config.trainer
        dataset = ValidationBatches(
            self.rows["val"], trainer.validation_rows, trainer.micro_batch, rank, world_size
        )
        return self._loader(dataset, range(len(dataset)))

    @functools.cached_property
    def corpora(self) -> list[Corpus]:
        """The configuration's sources as tokens, in its order; `data.validation` comes last."""
        return open_corpora(self.config, self.tokenizer, self._say, revisions=self._resumed)

    @functools.cached_property
    def trained(self) -> list[Corpus]:
        """The sources to train on: the configuration's, then those replayed of the base."""
        own = self.corpora[: len(self.config.data.parts)]
        return own + open_replayed(self.config, self._replayed, self.tokenizer, self._say)

    @functools.cached_property
    def rows(self) -> dict[str, Rows]:
        """The rows of each split, "train" and "val"."""
        train, val = cut_splits(self.config, self.trained, self.corpora, self.moving_rows)
        for line in summary(self.trained, self.corpora, train, val):
            self._say(line)
        require_rows(self.config, self.trained, train, val)
        settings = self.tokenizer.pad_id, self.config.data.document_mask
        return {"train": Rows(train, *settings), "val": Rows(val, *settings)}

    @functools.cached_property
    def plan(self) -> Plan:
        """Which rows each step trains on."""
        sizes = [len(part) for part in self.rows["train"].parts]
        return make_plan(self.config, self._replayed, sizes, self._say)

    @property
    def epochs_per_step(self) -> float:
        """Passes over the training text per step. Raises ConfigError if the text is too short."""
        return epochs_per_step(self.config, self.plan)

    @functools.cached_property
    def sized_config(self) -> Config:
        """The configuration, which knows its steps: `trainer.max_epochs` takes the text's size."""
        by_epochs = self.config.trainer.max_epochs is not None
        return with_length(self.config, self.plan) if by_epochs else self.config

    @functools.cached_property
    def text_bytes(self) -> NDArray[np.float64]:
        """The bytes of validation text that each id stands for, (V,): for bits per byte."""
        return text_bytes(self.tokenizer, [corpus.val for corpus in self.corpora])

    @functools.cached_property
    def validation_sources(self) -> dict[str, NDArray[np.float64]]:
        """`text_bytes` of each source by name, in the order of `ValidationBatches`."""
        return text_bytes_by_source(self.tokenizer, self.corpora)

    @property
    def sha256(self) -> str:
        """A hash of all splits' tokens, equal for equal data, wherever the files lie."""
        return hash_of_data(self.corpora, [*self.rows["train"].parts, *self.rows["val"].parts])

    @property
    def revisions(self) -> dict[str, str]:
        """The commits of the datasets that are streamed, by their sources' keys."""
        return {c.key: c.train.revision for c in self.corpora if isinstance(c.train, Stream)}

    def teardown(self, stage: str) -> None:
        """End the processes that read streams."""
        if self._producers is not None:
            self._producers.close()

    @functools.cached_property
    def _replayed(self) -> Config | None:
        """The base's configuration, if `finetune.replay` adds the base's text."""
        finetune = self.config.finetune
        return open_base(self.config).config if finetune and finetune.replay else None

    def _announced(self, steps: range) -> AnnouncedSteps:
        """Start the producers of streams; they hear of each step before it is loaded."""
        self.teardown("fit")  # those of an earlier fit
        parts = self.rows["train"].parts
        self._producers = Producers(self.plan, self.config.trainer.batch_size, self._say)
        if self.trainer is None or self.trainer.local_rank == 0:  # one for all of a machine
            streams = {i: p.stream for i, p in enumerate(parts) if isinstance(p, StreamedRows)}
            self._producers.start(streams, steps, shared=self.config.trainer.num_nodes > 1)
        return AnnouncedSteps(steps, self._producers, ahead=self.config.data.steps_ahead)

    def _loader(self, dataset: Dataset[Batch], items: Iterable[int]) -> DataLoader[Batch]:
        return DataLoader(
            dataset,
            sampler=items,
            batch_size=None,  # an item is a batch already
            num_workers=workers_with_room(self.config.data.workers),
            generator=torch.Generator(),  # else each pass draws from the global random state
            worker_init_fn=start_worker,
        )

    @property
    def _rank_and_world_size(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size


@dataclass(eq=False)
class TrainingSteps(Dataset[Batch]):
    """Item k is what one process trains on in optimiser step k: `step`, and tensors of (A, B, T).

    The step's rows are dealt out in the order (micro-batch, process, row):

        rows of the step    0 1 2 3 4 5 6 7        2 processes, B = 2, so A = 2
        process 0           0 1     4 5
        process 1               2 3     6 7

    Another number of processes or another B deals the same rows.
    """

    rows: Rows
    plan: Plan
    batch_size: int
    micro_batch: int
    rank: int
    world_size: int

    def __getitem__(self, step: int) -> Batch:
        addresses = self.plan.of_step(step, self.batch_size)  # (rows of the step, 3)
        dealt = addresses.reshape(-1, self.world_size, self.micro_batch, 3)
        return {**self.rows[dealt[:, self.rank]], "step": step}  # (A, B, 3) -> (A, B, T)


class ValidationBatches(Dataset[Batch]):
    """Tensors of (B, T): `n_rows` rows of a split, evenly spread over it, or all of them.

    With several sources `source` (B,) is the number of each row's source. Every process gets
    equally many batches, or the last ones would wait for each other for ever. Rows past the end
    fill them up; these have no labels, so nothing is scored twice.
    """

    def __init__(
        self, rows: Rows, n_rows: int | None, micro_batch: int, rank: int, world_size: int
    ):
        self.rows = rows
        chosen = min(n_rows or len(rows), len(rows))
        spread = np.arange(chosen) * len(rows) // chosen
        past_the_end = np.full(-chosen % (world_size * micro_batch), len(rows))
        dealt = np.append(spread, past_the_end).reshape(-1, world_size, micro_batch)
        self.numbers = dealt[:, rank]  # (batches, B)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Batch:
        addresses = self.rows.addresses(self.numbers[index])
        source = {"source": torch.from_numpy(addresses[:, 0])} if len(self.rows.parts) > 1 else {}
        return self.rows[addresses] | source


class Rows:
    """The rows of a split, of all sources, as tensors: T inputs, and for each the next token.

        stream      EOS a b EOS c d e f g EOS                    T = 4, packed

        row         input_ids      labels         document_ids
        0           EOS a b EOS    a b EOS c      0 0 0 1
        1           c d e f        d e f g        0 0 0 0
        2           g pad pad pad  EOS - - -      0 1 1 1        "-" is IGNORE_INDEX, -100

    `document_ids` exist with `document_mask`. They come from the stored places where documents
    begin, because an id that looks like EOS may be anything.
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
        """Turn numbers counted through all parts into addresses (part, epoch, row), as in plans."""
        part = np.minimum(np.searchsorted(self._ends, numbers, side="right"), len(self.parts) - 1)
        first = np.array([0, *self._ends])[part]
        return np.stack([part, np.zeros_like(numbers), numbers - first], axis=-1)

    def __getitem__(self, addresses: NDArray[np.int64]) -> dict[str, Tensor]:
        """Return rows at addresses (*, 3) as int64 tensors (*, T); past the end without labels."""
        shape = (*addresses.shape[:-1], self.length)
        inputs = np.full(shape, self.pad_id)
        labels = np.full(shape, IGNORE_INDEX)
        starts = np.zeros(shape, np.int64)  # 1 where a document begins, or the padding
        for i in np.ndindex(shape[:-1]):
            number, epoch, row = addresses[i].tolist()
            part = self.parts[number]
            if row < len(part):
                row_inputs, row_labels, row_starts = part.row(row, epoch)
                n = len(row_inputs)
                inputs[i][:n], labels[i][:n] = row_inputs, row_labels
                starts[i][row_starts] = 1
                starts[i][n : n + 1] = 1
        rows = {"input_ids": inputs, "labels": labels}
        if self.document_mask:
            rows["document_ids"] = starts.cumsum(axis=-1)
        return {name: torch.from_numpy(values) for name, values in rows.items()}
