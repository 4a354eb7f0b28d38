"""Checkpoints that hold adapters alone: their entry in meta.json, and how they meet their base."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from lm.checkpoints.base import open_base
from lm.checkpoints.folder import Checkpoint, open_checkpoint
from lm.checkpoints.meta import Adapters, AdaptersBase, read_meta
from lm.checkpoints.train_state import load_into
from lm.optim.optimizers import trained
from lm.surgery.lora import add_adapters, merge
from lm.system.errors import CheckpointError, ConfigError
from model import Decoder

if TYPE_CHECKING:
    from lm.config.schema.config import Config


def adapters_entry(config: Config, decoder: Decoder) -> Adapters | None:
    """Return the `adapters` of meta.json for a run that trains adapters; None for any other run.

    Raises:
        CheckpointError: the base is gone.
    """
    if config.finetune is None or config.finetune.method == "full":
        return None
    base = open_base(config).checkpoint
    # finds the base again after both folders were moved together
    from_run = os.path.relpath(base.path, Path(config.checkpoint.directory).resolve())
    return Adapters(
        method=config.finetune.method,
        lora=config.finetune.lora,
        n_parameters=sum(parameter.numel() for parameter in trained(decoder).values()),
        base=AdaptersBase(path=str(base.path), from_run=from_run, manifest_sha256=base.sha256),
    )


def load_whole(decoder: Decoder, checkpoint: Checkpoint, base: Path | None = None) -> None:
    """Give a decoder without adapters the weights of a checkpoint, averaged if it has averages.

    For a checkpoint of adapters these are the weights of its base, with the adapters merged in.
    The base may hold adapters itself.

    Args:
        decoder: has the checkpoint's shape. It is on the CPU, or on the meta device, where a shape
            takes no memory before weights prove it.
        checkpoint: holds a model's weights, or adapters.
        base: the path of the base; None looks for it where meta.json says.

    Raises:
        CheckpointError: a file is missing or damaged; bitsandbytes is missing for 4-bit weights;
            the base is not the one that the adapters were trained on.
    """
    adapters = read_meta(checkpoint).adapters
    checkpoint.verify(("meta.json",))
    if adapters is None:
        load_into(decoder, checkpoint, averaged=True)
        return
    load_whole(decoder, find_base(checkpoint, adapters, base))
    try:
        add_adapters(decoder, adapters.lora, four_bits=adapters.method == "qlora")
    except ConfigError as error:  # meta.json named it, not the user
        raise CheckpointError(f"{checkpoint.path / 'meta.json'}: {error}") from error
    load_into(decoder, checkpoint, averaged=True)
    merge(decoder)


def find_base(checkpoint: Checkpoint, adapters: Adapters, named: Path | None = None) -> Checkpoint:
    """Return the base of a checkpoint: the one that is named, or the first where its run had it.

    Raises:
        CheckpointError: there is none, or it is a different one.
    """
    wanted = adapters.base.manifest_sha256
    name_it = f"`python -m tools.merge_lora --ckpt {checkpoint.path} --base CKPT --out DIR`"
    places = (
        [named]
        if named is not None
        else [Path(adapters.base.path), checkpoint.path.parent / adapters.base.from_run]
    )
    places = [Path(os.path.normpath(place)) for place in places]
    candidates = []
    for place in places:
        with contextlib.suppress(CheckpointError):
            candidates.append(open_checkpoint(place))
    if not candidates:
        looked = " and ".join(dict.fromkeys(map(str, places)))
        raise CheckpointError(
            f"{checkpoint.path} holds adapters alone, and their base is not at {looked}; say where"
            f" it is: {name_it}"
        )
    by_hash = {candidate.sha256: candidate for candidate in reversed(candidates)}
    if wanted not in by_hash:
        sha256, candidate = list(by_hash.items())[-1]
        raise CheckpointError(
            f"{checkpoint.path} holds adapters of the base with the manifest {wanted[:12]}, and"
            f" {candidate.path} has {sha256[:12]}; bring that base back, or say where it is:"
            f" {name_it}"
        )
    return by_hash[wanted]
