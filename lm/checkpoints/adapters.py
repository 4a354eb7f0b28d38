"""Checkpoints that hold adapters alone: what they say of their base, where it is, and how the two
become one model.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from lm.checkpoints.base import open_base
from lm.checkpoints.folder import open_checkpoint, read_manifest, read_meta, verify
from lm.checkpoints.meta import Adapters, AdaptersBase, read_adapters
from lm.checkpoints.train_state import load_into
from lm.config.schema.config import Config
from lm.optim.optimizers import trained
from lm.surgery.lora import add_adapters, merge
from lm.system.errors import CheckpointError, ConfigError
from model import Decoder


def describe(config: Config, decoder: Decoder) -> Adapters | None:
    """What the meta.json of a run that trains adapters says of them; None of any other run. Raises
    CheckpointError: the base is gone.
    """
    if config.finetune is None or config.finetune.method == "full":
        return None
    base = open_base(config)
    # found again where both were moved together
    from_run = os.path.relpath(base.folder, Path(config.checkpoint.directory).resolve())
    return Adapters(
        method=config.finetune.method,
        lora=config.finetune.lora,
        n_parameters=sum(parameter.numel() for parameter in trained(decoder).values()),
        base=AdaptersBase(path=str(base.folder), from_run=from_run, manifest_sha256=base.sha256),
    )


def load_whole(decoder: Decoder, folder: Path, base: Path | None = None) -> None:
    """Give a decoder without adapters the weights of a checkpoint, the averaged ones where it has
    them.

    Of a checkpoint of adapters these are its base's with the adapters merged in; the base may be
    one of adapters itself.

    Args:
        decoder: has the checkpoint's shape; on the CPU, or on the meta device, where a shape takes
            no memory before weights prove it.
        folder: the checkpoint.
        base: where its base is; None looks where its meta.json says.

    Raises:
        CheckpointError: something is missing or damaged, bitsandbytes for 4-bit weights too, or the
            base is another than the one that the adapters were trained beside.
    """
    verify(folder, ("meta.json",))
    adapters = read_adapters(folder, read_meta(folder))
    if adapters is None:
        load_into(decoder, folder, averaged=True)
        return
    load_whole(decoder, find_base(folder, adapters, base))
    try:
        add_adapters(decoder, adapters.lora, four_bits=adapters.method == "qlora")
    except ConfigError as error:  # what it names was written there, not by whoever loads it
        raise CheckpointError(f"{folder / 'meta.json'}: {error}") from error
    load_into(decoder, folder, averaged=True)
    merge(decoder)


def find_base(folder: Path, adapters: Adapters, named: Path | None = None) -> Path:
    """The base of the checkpoint `folder`: the one that is named, or the first that is where its
    run had it.

    Raises:
        CheckpointError: there is none, or it is another one.
    """
    wanted = adapters.base.manifest_sha256
    name_it = f"`python -m tools.merge_lora --ckpt {folder} --base CKPT --out DIR`"
    places = (
        [named]
        if named is not None
        else [Path(adapters.base.path), folder.parent / adapters.base.from_run]
    )
    places = [Path(os.path.normpath(place)) for place in places]
    there = []
    for place in places:
        with contextlib.suppress(CheckpointError):
            there.append(open_checkpoint(place))
    if not there:
        looked = " and ".join(dict.fromkeys(map(str, places)))
        raise CheckpointError(
            f"{folder} holds adapters alone, and their base is not at {looked}; say where it is:"
            f" {name_it}"
        )
    found = {read_manifest(place)["sha256"]: place for place in reversed(there)}
    if wanted not in found:
        sha256, place = list(found.items())[-1]
        raise CheckpointError(
            f"{folder} holds adapters of the base with the manifest {wanted[:12]}, and {place} has"
            f" {sha256[:12]}; bring that base back, or say where it is: {name_it}"
        )
    return found[wanted]
