"""Which files a checkpoint has: one that a single process wrote, or one that many wrote in shards.
Only the standard library.

ordinary    model.safetensors  train_state.pt                       [ema.safetensors]                tokenizer.json  meta.json
sharded     model-00001-of-00002.safetensors   model-00002-of-00002.safetensors
            optimizer-00001-of-00002.safetensors  ...               [ema-00001-of-00002.safetensors  ...]
            train_state.json                                                                         tokenizer.json  meta.json
merged      model.safetensors                                                                        tokenizer.json  meta.json
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

ORDINARY = ("model.safetensors", "train_state.pt", "tokenizer.json", "meta.json")
# nothing can be resumed from it, but it can be begun from
MERGED = ("model.safetensors", "tokenizer.json", "meta.json")
SHARDED = ("train_state.json", "tokenizer.json", "meta.json")
SHARD_NAME = re.compile(r"([a-z]+)-([0-9]{5})-of-([0-9]{5})\.safetensors")


class Begun(NamedTuple):
    """A checkpoint that several processes have begun: the temporary folder, and what the manifest
    is to say of the files in it.
    """

    folder: Path
    files: dict[str, Any]


def shard_names(kind: str, count: int) -> list[str]:
    """The files of a kind of tensors ("model", "optimizer", "ema") that `count` processes wrote."""
    return [f"{kind}-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def shard_count(names: Iterable[str]) -> int:
    """How many processes wrote the checkpoint that has files of these names; 0 for an ordinary one."""
    return max((int(match[3]) for match in map(SHARD_NAME.fullmatch, names) if match), default=0)


def required(names: Iterable[str]) -> set[str]:
    """The files that must be there for those to be a whole checkpoint."""
    names = list(names)
    count = shard_count(names)
    if count == 0:
        return set(MERGED if set(names) == set(MERGED) else ORDINARY)
    kinds = {"model", "optimizer"} | {
        match[1] for match in map(SHARD_NAME.fullmatch, names) if match
    }
    return {*SHARDED, *(name for kind in kinds for name in shard_names(kind, count))}
