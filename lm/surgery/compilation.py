"""torch.compile, which may fail on any machine for reasons of its own, and then is done without."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from lm.config.schema.config import Config
from lm.surgery.fsdp import is_sharded, meet


def compile_if_wanted(
    decoder: nn.Module,
    config: Config,
    device: torch.device,
    forward_context: Callable[[], AbstractContextManager[Any]],
    say: Callable[[str], None],
) -> None:
    """Do what `trainer.compile` says, and try the result out, forward and backward; a decoder that
    cannot be compiled stays as it is.

    In place: torch.compile(decoder) would prefix every weight's name with _orig_mod.

    Args:
        decoder: the model; it is left in training mode, without gradients.
        config: the run's.
        device: where the decoder is.
        forward_context: for its precision.
        say: told what cannot be compiled.
    """
    wanted = config.trainer.compile
    if wanted == "off" or (wanted == "auto" and device.type != "cuda"):
        return
    ids = torch.zeros(
        config.trainer.micro_batch, config.row_length, dtype=torch.int64, device=device
    )
    example = (ids, ids, ids if config.data.document_mask else None)
    problem = None
    decoder.compile()
    try:
        with forward_context():
            decoder.train()(*example).sum().backward()
            with torch.no_grad():
                decoder.eval()(*example)
    except (
        Exception
    ) as error:  # whatever the compiler, its back end or a missing C compiler come up with
        problem = error
        decoder._compiled_call_impl = None
        say(
            f"torch.compile failed, so the model runs uncompiled: {type(error).__name__}:"
            f" {str(error).splitlines()[0]}"
        )
    if is_sharded(decoder):
        meet(problem)
    decoder.train().zero_grad()
