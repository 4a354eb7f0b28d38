"""torch.compile, if it works: it may fail on any machine, and the model then runs uncompiled."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from lm.config.schema.config import Config
from lm.surgery.fsdp import is_sharded, meet
from lm.system.errors import first_line
from model import Decoder


def try_to_compile(
    decoder: Decoder,
    config: Config,
    rows: int,
    device: torch.device,
    forward_context: Callable[[], AbstractContextManager[Any]],
    total: bool,
    say: Callable[[str], None],
) -> None:
    """Compile the decoder, and try it forward and backward. If that fails, the decoder stays as it
    was.

    It is compiled in place: torch.compile(decoder) would prefix every weight's name.

    Args:
        decoder: the model; it ends in training mode, without gradients.
        config: the run's configuration.
        rows: the rows of one forward pass.
        device: the decoder's device.
        forward_context: the context of its precision.
        total: whether the training step needs the sum of the losses only.
        say: prints why the decoder was not compiled.
    """
    ids = torch.zeros(rows, config.row_length, dtype=torch.int64, device=device)
    # Not one tensor three times: the code would hold for that alone, and be compiled again.
    example = (ids, ids.clone(), ids.clone() if config.data.document_mask else None)
    problem = None
    decoder.compile()
    try:
        with forward_context():
            decoder.train()(*example, total=total).sum().backward()
            with torch.no_grad():
                decoder.eval()(*example)
    except Exception as error:  # from the compiler, its back end or a missing C compiler
        problem = error
        decoder._compiled_call_impl = None
        say(
            f"torch.compile failed, so the model runs uncompiled: {type(error).__name__}:"
            f" {first_line(error)}"
        )
    if is_sharded(decoder):
        meet(problem)
    decoder.train().zero_grad()


def is_compiled(decoder: Decoder) -> bool:
    """Return whether the decoder runs compiled."""
    return decoder._compiled_call_impl is not None
