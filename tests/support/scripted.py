"""Provide a decoder whose continuations a test chooses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lm.config.schema.model import ModelConfig
from lm.tokenizer.tokenizer import ByteTokenizer

BYTE = ByteTokenizer()


class ScriptedDecoder(torch.nn.Module):
    """A decoder that continues each prompt with given ids, then with zeros. When it scores, all
    tokens are equally likely.
    """

    def __init__(self, replies: dict[tuple[int, ...], list[int]]):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))
        self.config = ModelConfig(vocab_size=BYTE.vocab_size, context_length=400)
        self.replies = replies
        self.read: list[list[int]] = []

    def new_cache(self, rows: int, length: int) -> Any:
        self.read = [[] for _ in range(rows)]
        return type("Cache", (), {"length": 0, "padding": None})()

    def forward(self, ids: Tensor, cache: Any = None) -> Tensor:
        if cache is None:
            return torch.zeros(*ids.shape, BYTE.vocab_size)
        padding = (
            [0] * len(ids) if cache.padding is None or cache.length else cache.padding.tolist()
        )
        self.read = [
            known[: cache.length] + row[skip:]
            for known, row, skip in zip(self.read, ids.tolist(), padding, strict=True)
        ]
        cache.length += ids.shape[1]
        scores = torch.zeros(len(ids), 1, BYTE.vocab_size)
        for row, read in enumerate(self.read):
            for prompt, reply in self.replies.items():
                if tuple(read[: len(prompt)]) == prompt:
                    given = len(read) - len(prompt)
                    scores[row, 0, reply[given] if given < len(reply) else 0] = 100.0
        return scores
