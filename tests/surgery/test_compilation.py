"""Test that a run compiles its model once, before the first step."""

from __future__ import annotations

import contextlib
import functools

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from lm.config.schema.config import Config
from lm.surgery.compilation import try_to_compile
from model import Decoder


@pytest.mark.usefixtures("takes_seconds")
@pytest.mark.parametrize("masked", [False, True])
def test_a_step_uses_what_was_compiled_before(
    masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first step compiles nothing again, and nothing interrupts the graph."""
    traced = functools.partialmethod(nn.Module.compile, backend="eager")  # no C compiler
    monkeypatch.setattr(Decoder, "compile", traced)
    config = Config.model_validate(
        {
            "data": {"source": {"format": "txt", "files": "unused"}, "document_mask": masked},
            "model": {"context_length": 16, "n_layers": 2, "d_model": 16, "vocab_size": 50},
            "trainer": {"max_steps": 1, "batch_size": 4},
            "optimizer": {"warmup_steps": 0},
        }
    )
    torch._dynamo.reset()
    counters.clear()
    decoder, problems = Decoder(config.model), list[str]()
    try_to_compile(
        decoder, config, 4, torch.device("cpu"), contextlib.nullcontext, True, problems.append
    )
    compiled = counters["stats"]["unique_graphs"]
    ids = torch.randint(0, 50, (3, 4, 16))
    documents = torch.zeros_like(ids) if masked else [None] * 3
    for row, labels, of_row in zip(ids, ids.clone(), documents, strict=True):
        decoder(row, labels, of_row, total=True).backward()
    assert not problems and compiled > 0
    assert counters["stats"]["unique_graphs"] == compiled
    assert not counters["graph_break"]
    torch._dynamo.reset()
