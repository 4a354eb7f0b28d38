"""The door for scripts and notebooks: `from lm import load` opens a checkpoint that can write."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path

import torch

from lm.checkpoints.folder import Checkpoint
from lm.checkpoints.load import Opened
from lm.checkpoints.load import load as open_parts
from lm.generation.continuation import write
from lm.generation.prompt import open_prompt
from lm.generation.sampling import Sampling


class Model(Opened):
    """An opened checkpoint; `decoder, tokenizer, meta = load(path)` unpacks it."""

    def generate(
        self,
        prompt: str,
        max_new_tokens: int = 200,
        seed: int | None = None,
        stops: Sequence[str] = (),
        **sampling: float,
    ) -> str:
        """Return the text that the model writes after a prompt.

        Args:
            prompt: the text to continue; an empty one lets the model begin a text.
            max_new_tokens: the text ends after this many tokens, if not by itself.
            seed: equal seeds write equal texts; None draws one.
            stops: the text ends before any of these.
            sampling: the fields of `Sampling`, such as `temperature=0` (greedy) or `top_p=0.9`.

        Raises:
            ConfigError: a value is out of range.
        """
        device = next(self.decoder.parameters()).device
        generator = torch.Generator(device)
        generator.manual_seed(secrets.randbelow(2**31) if seed is None else seed)
        *_, [sample] = write(
            self.decoder,
            self.tokenizer,
            open_prompt(self.tokenizer, prompt),
            Sampling(**sampling),  # type: ignore[arg-type]  # it checks them
            max_new_tokens,
            generator,
            stops=stops,
        )
        return sample.text


def load(path: str | Path | Checkpoint, device: str = "cpu") -> Model:
    """Open a checkpoint for use; `lm.checkpoints.load` says what it reads and raises."""
    return Model(*open_parts(path, device))
