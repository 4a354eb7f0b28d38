"""`tokenizer`: how text becomes token ids."""

from pydantic import Field

from lm.config.schema.section import PathText, Section


class TokenizerConfig(Section):
    """The tokenizer of a new run. Every checkpoint carries its own."""

    name: PathText = Field(
        "byte",
        description=(
            "byte, or a Hugging Face tokenizer: a hub id (gpt2), a folder, or a tokenizer.json."
        ),
    )
