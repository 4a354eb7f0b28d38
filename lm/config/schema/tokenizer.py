"""`tokenizer`: how text becomes token ids."""

import re
from collections.abc import Iterator
from typing import Annotated

from pydantic import AfterValidator, Field

from lm.config.schema.section import PathText, Section


def _special(name: str) -> str:
    if not re.fullmatch(r"<\|\w{1,100}\|>", name):
        raise ValueError("a special token is written <|name|>, with letters, digits or _ for name")
    return name


SpecialToken = Annotated[str, AfterValidator(_special)]


class TokenizerConfig(Section):
    """The tokenizer of a new run. Every checkpoint carries its own."""

    name: PathText = Field(
        "byte",
        description=(
            "byte; or bpe, a byte-level BPE that is learnt from the run's own text; or a Hugging"
            " Face tokenizer: a hub id (gpt2), a folder, or a tokenizer.json."
        ),
    )
    vocab_size: int | None = Field(
        None,
        ge=261,
        le=2**20,
        description=(
            "bpe: how many tokens to learn, the 256 bytes and the special tokens included. Fewer,"
            " if the text supports no more."
        ),
    )
    special_tokens: tuple[SpecialToken, ...] = Field(
        (),
        max_length=256,
        description="bpe: special tokens besides those of the templates, such as <|im_start|>.",
    )

    def problems(self) -> Iterator[str]:
        """Yield what is wrong between the keys."""
        if self.name == "bpe" and self.vocab_size is None:
            yield "name bpe learns a vocabulary; write its size, such as vocab_size: 5000"
        if self.name != "bpe" and (self.vocab_size is not None or self.special_tokens):
            key = "vocab_size" if self.vocab_size is not None else "special_tokens"
            yield f"{key} is for name: bpe, and {self.name} has its own; remove it"
