"""A checkpoint becomes a decoder in evaluation mode, its tokenizer and its meta data."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

from lm.checkpoints.adapters import load_whole
from lm.checkpoints.folder import Checkpoint, open_checkpoint
from lm.checkpoints.meta import read_meta
from lm.checkpoints.weights import read_weights
from lm.tokenizer.tokenizer import Tokenizer
from model import Decoder


class Opened(NamedTuple):
    """An opened checkpoint; `decoder, tokenizer, meta = load(path)` unpacks it."""

    decoder: Decoder
    tokenizer: Tokenizer
    meta: dict[str, Any]  # the content of meta.json


def load(path: str | Path | Checkpoint, device: str = "cpu") -> Opened:
    """Open a checkpoint for use: `decoder, tokenizer, meta = load("checkpoints/best.ckpt")`.

    The decoder is in evaluation mode. It holds the averaged (EMA) weights if the run kept them.
    Adapters are merged into the weights of their base. Only JSON and safetensors files are read,
    so a hostile file cannot run code.

    Raises:
        CheckpointError: the path is missing or is not a checkpoint; its weights do not fit its
            configuration; the base of its adapters is missing or a different one.
    """
    checkpoint = path if isinstance(path, Checkpoint) else open_checkpoint(path)
    meta = read_meta(checkpoint)
    tokenizer = meta.load_tokenizer()
    with torch.device("meta"):
        decoder = Decoder(meta.model, initialise=False)
    if meta.adapters is not None:
        load_whole(decoder, checkpoint)
    else:
        # strict=False only because a tied head has a second name in state_dict(). read_weights has
        # already compared every name with the model's.
        decoder.load_state_dict(
            read_weights(checkpoint, dict(decoder.named_parameters())), strict=False, assign=True
        )
        decoder.tie_weights()
    return Opened(decoder.to(device).eval(), tokenizer, checkpoint.meta)
