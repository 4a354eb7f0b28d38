"""The part of meta.json that says where a checkpoint comes from: text, machine, versions."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any, Protocol

import torch

from lm.checkpoints.adapters import adapters_entry
from lm.checkpoints.folder import FORMAT
from lm.config.schema.config import Config
from lm.system.device import Device, Precision
from lm.system.machine import code, hardware
from lm.tokenizer.tokenizer import Tokenizer
from model import Decoder

PACKAGES = ("torch", "lightning", "transformers", "tokenizers", "safetensors", "numpy")


class Text(Protocol):
    """The text that a run trains on."""

    sha256: str
    revisions: dict[str, str]
    epochs_per_step: float
    moving_rows: bool


def lasting_meta(
    config: Config,
    decoder: Decoder,
    tokenizer: Tokenizer,
    text: Text,
    parent: dict[str, Any] | None,
    device: Device,
    precision: Precision,
) -> dict[str, Any]:
    """Return the part of meta.json that stays the same through a session.

    A run that trains adapters has `adapters` too (lm/checkpoints/adapters.py).
    """
    adapters = adapters_entry(config, decoder)
    return {
        "format": FORMAT,
        "n_parameters": decoder.n_parameters,
        "model": decoder.config.model_dump(mode="json"),
        "tokenizer": {
            "name": tokenizer.name,
            "sha256": tokenizer.sha256,
            "vocab_size": tokenizer.vocab_size,
            "eos_id": tokenizer.eos_id,
            "pad_id": tokenizer.pad_id,
        },
        "config": config.model_dump(mode="json"),
        "data_sha256": text.sha256,
        "revisions": text.revisions,
        "parent": parent,
        "shards": config.trainer.processes if config.trainer.strategy == "fsdp" else 0,
        "epochs_per_step": text.epochs_per_step,
        "moving_rows": text.moving_rows,
        "precision": precision,
        "device": device,
        "threads": torch.get_num_threads(),
        "hardware": hardware(device),
        "code": code(),
        "versions": (
            {"python": platform.python_version()}
            | {name: importlib.metadata.version(name) for name in PACKAGES}
        ),
    } | ({"adapters": adapters.model_dump(mode="json")} if adapters is not None else {})
