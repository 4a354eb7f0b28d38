"""The tokens that a run was trained on, if they are prepared on this machine.

Nothing is prepared or downloaded here.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lm.checkpoints.base import open_base
from lm.config.schema.config import Config
from lm.config.schema.data import DataConfig
from lm.config.schema.source import SingleSource, dataset_of, is_streamed
from lm.documents.reader import Reader
from lm.system.errors import UserError
from lm.tokenizer.tokenizer import Tokenizer
from lm.tokens.cache import DamagedError, open_cache, verify
from lm.tokens.prepare import SPLITS
from lm.tokens.prepared import cache_folder
from lm.tokens.sources import split_of
from lm.tokens.store import TokenStore


@dataclass(frozen=True)
class TrainingText:
    """The training splits of a run and of its base, whether or not the run read all of them.

    Attributes:
        stores: the splits, each once. For conversations they hold the prompts too.
        missing: a line for each part that is not on this machine.
    """

    tokenizer: Tokenizer
    stores: tuple[TokenStore, ...]
    missing: tuple[str, ...] = ()

    @property
    def bytes_per_token(self) -> float:
        """Return the UTF-8 bytes of the text for each of its tokens; 0 without text."""
        text_tokens = sum(store.text_tokens for store in self.stores)
        return sum(store.text_bytes for store in self.stores) / text_tokens if text_tokens else 0.0


def training_text(
    config: Config, tokenizer: Tokenizer, data_sha256: str = ""
) -> TrainingText | str:
    """Find the tokens of a run.

    The tokens of a run's only source are found by their hash. Those of several sources are found by
    the fingerprint of their files, which must be unchanged and at the same relative paths. Hub
    datasets are missing, because only the hub knows their version; so is streamed text, because it
    is not kept. The text of a run that this one started from with --init-from is not included.

    Args:
        config: the run's configuration, from its checkpoints.
        tokenizer: the run's tokenizer.
        data_sha256: from the checkpoint's meta.json.

    Returns:
        The text; if none of it is on this machine, the reason in one line.
    """
    stores, missing = dict[str, TokenStore](), list[str]()
    for split in _own(config.data, tokenizer, data_sha256):
        if isinstance(split, str):
            missing.append(split)
        else:
            stores[split.sha256] = split
    if config.finetune is not None:
        try:
            base = open_base(config)
            before = training_text(base.config, tokenizer, str(base.meta.values.get("data_sha256")))
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
    """Yield each source's training split, or the reason why it is not on this machine."""
    if len(data.parts) == 1 and data.validation is None:
        split = _find_by_hash(Path(data.cache_dir), data_sha256, tokenizer.vocab_size)
        if split is not None:
            yield split
            return
    for key, part in data.parts:
        if is_streamed(part.source):
            yield f"{key}: {part.source.dataset} was streamed, and its text was not kept"
        elif (dataset := dataset_of(part.source)) is not None:
            yield f"{key}: only the hub knows which tokens are those of {dataset}"
        else:
            yield _find_by_files(data, key, part.source, tokenizer)


def _find_by_hash(caches: Path, data_sha256: str, vocab_size: int) -> TokenStore | None:
    """Return the training split of the cache whose two splits have a run's `data_sha256`."""
    for folder in sorted(path.parent for path in caches.glob("*/manifest.json")):
        with contextlib.suppress(DamagedError):
            if (manifest := open_cache(folder)) is None:
                continue
            train, val = (TokenStore(folder, split, manifest) for split in SPLITS)
            if hashlib.sha256((train.sha256 + val.sha256).encode()).hexdigest() == data_sha256:
                verify(folder, manifest, vocab_size)
                return train
    return None


def _find_by_files(
    data: DataConfig, key: str, source: SingleSource, tokenizer: Tokenizer
) -> TokenStore | str:
    try:
        reader = Reader(source, key, data.on_bad_row, tokenizer)
        folder = cache_folder(data, reader, split_of(data, reader), tokenizer)
        manifest = open_cache(folder, tokenizer.vocab_size)
    except UserError as error:
        return str(error)
    except DamagedError as damage:
        return f"{key}: its tokens are damaged ({damage}); tools.prepare makes them again"
    if manifest is None:
        return (
            f"{key}: its tokens are not in {folder}: its files have changed, or the cache was"
            " cleared; tools.prepare makes it again"
        )
    return TokenStore(folder, "train", manifest)
