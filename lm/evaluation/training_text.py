"""The tokens that a run was trained on, where they lie prepared on this machine. Nothing is
prepared for it, and nothing downloaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lm.checkpoints.base import open_base
from lm.config.schema.config import Config
from lm.config.schema.data import DataConfig
from lm.config.schema.source import HubSource, SingleSource, dataset_of
from lm.documents.reader import Reader
from lm.system.errors import UserError
from lm.tokenizer.tokenizer import Tokenizer
from lm.tokens.cache import read_manifest
from lm.tokens.corpus import cache_folder, split_of
from lm.tokens.prepare import SPLITS
from lm.tokens.store import TokenStore


@dataclass(frozen=True)
class TrainingText:
    """What a run was trained on, and what its base was before it: the training splits, whether the
    run came to read all of them or not.

    Attributes:
        stores: the splits, each once. Of conversations they hold the prompts too.
        missing: what is not here, a line for each part.
    """

    tokenizer: Tokenizer
    stores: tuple[TokenStore, ...]
    missing: tuple[str, ...] = ()

    @property
    def tokens(self) -> int:
        """How many there are."""
        return sum(store.tokens for store in self.stores)

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of the text for each of its tokens; 0 where there is no text."""
        text_tokens = sum(store.text_tokens for store in self.stores)
        return sum(store.text_bytes for store in self.stores) / text_tokens if text_tokens else 0.0


def training_text(
    config: Config, tokenizer: Tokenizer, data_sha256: str = ""
) -> TrainingText | str:
    """Find the tokens of a run.

    Those of a run's only source are known by their hash. Of several each is found by the
    fingerprint of its files, which have to be where they were, seen from the same folder, and
    unchanged; a dataset of the hub would have to be asked for its version. What is streamed is not
    kept, and so is not here. Nor is what a run has read that another one started from by
    --init-from.

    Args:
        config: what the run was trained with, as its checkpoints have it.
        tokenizer: the one that it was trained with.
        data_sha256: of the checkpoint's meta.json.

    Returns:
        The text; if none of it is here, the reason in one line.
    """
    stores, missing = dict[str, TokenStore](), list[str]()
    for found in _own(config.data, tokenizer, data_sha256):
        if isinstance(found, str):
            missing.append(found)
        else:
            stores[found.sha256] = found
    if config.finetune is not None:
        try:
            base = open_base(config)
            before = training_text(base.config, tokenizer, str(base.meta.get("data_sha256")))
        except UserError as error:
            before = str(error)
        if isinstance(before, str):
            missing.append(f"of finetune.base: {before}")
        else:
            stores |= {store.sha256: store for store in before.stores}
            missing += [f"of finetune.base: {reason}" for reason in before.missing]
    return (
        TrainingText(tokenizer, tuple(stores.values()), tuple(missing))
        if stores
        else "; ".join(missing)
    )


def _own(data: DataConfig, tokenizer: Tokenizer, data_sha256: str) -> Iterator[TokenStore | str]:
    """Of each source the tokens to train on, or why they are not here."""
    if (
        len(data.parts) == 1
        and data.validation is None
        and (found := _of_hash(Path(data.cache_dir).expanduser(), data_sha256))
    ):
        yield found
        return
    for key, part in data.parts:
        if isinstance(part.source, HubSource) and part.source.streaming:
            yield f"{key}: what was read of {part.source.dataset} was streamed, and not kept"
        elif (dataset := dataset_of(part.source)) is not None:
            yield (
                f"{key}: which tokens are those of {dataset} cannot be told without asking the hub"
            )
        else:
            yield _of_files(data, key, part.source, tokenizer)


def _of_hash(caches: Path, data_sha256: str) -> TokenStore | None:
    """The training split of the cache whose two splits together have a run's hash of its data."""
    for folder in sorted(path.parent for path in caches.glob("*/manifest.json")):
        if (manifest := read_manifest(folder)) is not None:
            train, val = (TokenStore(folder, split, manifest) for split in SPLITS)
            if hashlib.sha256((train.sha256 + val.sha256).encode()).hexdigest() == data_sha256:
                return train
    return None


def _of_files(
    data: DataConfig, key: str, source: SingleSource, tokenizer: Tokenizer
) -> TokenStore | str:
    try:
        reader = Reader(source, key, data.on_bad_row, tokenizer)
        folder = cache_folder(data, reader, split_of(data, reader), tokenizer)
    except UserError as error:
        return str(error)
    manifest = read_manifest(folder)
    if manifest is None:
        return (
            f"{key}: its tokens are not in {folder}: its files have changed, or the cache was"
            " cleared; tools.prepare makes it again"
        )
    return TokenStore(folder, "train", manifest)
