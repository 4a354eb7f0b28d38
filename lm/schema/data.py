"""`data`: where the text comes from and how it is cut into rows."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, StrictBool, model_validator

from lm.schema.section import Section

Text = Annotated[str, Field(min_length=1)]
SomeTexts = Annotated[list[Text], Field(min_length=1)]
# One file or several, with or without wildcards: a lone string is a list of one.
Files = Annotated[
    SomeTexts,
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value, json_schema_input_type=Text | SomeTexts),
]


class TextSource(Section):
    """Plain UTF-8 text files."""

    format: Literal["txt"] = Field(description="What the text is stored as.")
    files: Files = Field(description="A path, a glob, or a list of them.")
    unit: Literal["line", "paragraph", "file"] = Field(
        "paragraph", description="What one document is: a line, a paragraph (up to a blank line), or the whole file."
    )


class JsonlSource(Section):
    """One JSON object a line."""

    format: Literal["jsonl"] = Field(description="What the text is stored as.")
    files: Files = Field(description="A path, a glob, or a list of them.")
    text_key: str = Field("text", min_length=1, description="The key that holds the text.")


class ParquetSource(Section):
    """Parquet files."""

    format: Literal["parquet"] = Field(description="What the text is stored as.")
    files: Files = Field(description="A path, a glob, or a list of them.")
    text_key: str = Field("text", min_length=1, description="The column that holds the text.")


class HubSource(Section):
    """A Hugging Face dataset, downloaded once into the hub's own cache."""

    format: Literal["hub"] = Field(description="What the text is stored as.")
    dataset: str = Field(min_length=1, description="The dataset's id, such as roneneldan/TinyStories.")
    config: str | None = Field(None, description="The dataset's configuration, where it has several.")
    dataset_split: str = Field("train", min_length=1, description="Which of the dataset's splits to read.")
    text_key: str = Field("text", min_length=1, description="The column that holds the text.")


Source = Annotated[TextSource | JsonlSource | ParquetSource | HubSource, Field(discriminator="format")]


class DataConfig(Section):
    """Documents in, rows out."""

    source: Source = Field(description="The text to learn from.")
    validation: Source | None = Field(None, description="Text to validate on. null: a part of `source` is held out as `split` says.")
    split: Literal["hash", "tail"] = Field(
        "hash", description="Hold out documents by the hash of their text, or the last `val_fraction` of all characters."
    )
    val_fraction: float = Field(0.05, gt=0, lt=1, description="The share held out for validation.")
    sequence_length: int | None = Field(None, ge=2, description="Tokens in a row. null: model.context_length.")
    document_mask: StrictBool = Field(
        False, description="A token attends only to its own document, and positions start at 0 in each. Off: rows are one stream of text."
    )
    on_bad_row: Literal["stop", "skip"] = Field("stop", description="A row that cannot be read: stop and name it, or skip and count it.")
    cache_dir: str = Field(".cache/tokens", min_length=1, description="Token shards are kept here, by fingerprint of text and tokenizer.")
    workers: int = Field(0, ge=0, le=64, description="Processes that load batches. 0 is right for memory-mapped shards on one machine.")

    @model_validator(mode="after")
    def _separate_validation(self) -> Self:
        fields = type(self).model_fields
        changed = [key for key in ("split", "val_fraction") if getattr(self, key) != fields[key].default]
        if self.validation is not None and changed:
            raise ValueError(
                f"{' and '.join(changed)} would hold out a part of `source`, but `validation` names text of its own; remove one of the two"
            )
        return self
