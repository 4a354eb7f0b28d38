"""torch.compile, which may fail on any machine for reasons of its own, and then is done without."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn


def compile_in_place(
    decoder: nn.Module, example: tuple[Any, ...], forward_context: Callable[[], AbstractContextManager[Any]], say: Callable[[str], None]
) -> None:
    """Compile a decoder and try it out at once, forward and backward; one that cannot be compiled stays as it is, and that is said.

    In place: torch.compile(decoder) would prefix every weight's name with _orig_mod.

    Args:
        decoder: the model; it is left in training mode, without gradients.
        example: the arguments that it will be called with.
        forward_context: where it will run, for its precision.
        say: shows a line to the user.
    """
    decoder.compile()
    try:
        with forward_context():
            decoder.train()(*example).sum().backward()
            with torch.no_grad():
                decoder.eval()(*example)
    except Exception as error:  # whatever the compiler, its back end or a missing C compiler come up with
        decoder._compiled_call_impl = None
        say(f"torch.compile failed, so the model runs uncompiled: {type(error).__name__}: {str(error).splitlines()[0]}")
    decoder.train().zero_grad()
