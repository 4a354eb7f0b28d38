"""`tokenizer`: how text becomes token ids."""

from pydantic import Field

from lm.config.schema.section import Section


class TokenizerConfig(Section):
    """The tokenizer travels inside every checkpoint, so this section matters only to a run that
    starts from text.
    """

    name: str = Field(
        "byte",
        min_length=1,
        description=(
            "byte, or a Hugging Face tokenizer: a hub id (gpt2), a folder, or a tokenizer.json."
        ),
    )
