"""Where text comes from: one section per format, what may be left out of it, and mixtures of
several.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, StrictBool, field_validator, model_validator

from lm.config.schema.chat import ChatSource
from lm.config.schema.files_and_filter import FILES, FORMAT, Files, Filter, filter_field
from lm.config.schema.section import Section


class TextSource(Section):
    """Plain UTF-8 text files."""

    format: Literal["txt"] = Field(description=FORMAT)
    files: Files = Field(description=FILES)
    unit: Literal["line", "paragraph", "file"] = Field(
        "paragraph",
        description=(
            "What one document is: a line, a paragraph (up to a blank line), or the whole file."
        ),
    )
    filter: Filter = filter_field()


class JsonlSource(Section):
    """One JSON object a line."""

    format: Literal["jsonl"] = Field(description=FORMAT)
    files: Files = Field(description=FILES)
    text_key: str = Field(
        "text", min_length=1, description="The key or column that holds the text."
    )
    filter: Filter = filter_field()


class CsvSource(Section):
    """Comma-separated values with a line of column names."""

    format: Literal["csv"] = Field(description=FORMAT)
    files: Files = Field(description=FILES)
    text_key: str = Field(
        "text", min_length=1, description="The key or column that holds the text."
    )
    delimiter: str = Field(
        ",", min_length=1, max_length=1, description='What parts the columns; a tab is "\\t".'
    )
    filter: Filter = filter_field()

    @field_validator("delimiter")
    @classmethod
    def _what_can_part_columns(cls, delimiter: str) -> str:
        if delimiter in '"\r\n':
            raise ValueError(
                "a quote or a line end has another meaning in CSV; write another character"
            )
        return delimiter


class ParquetSource(Section):
    """Parquet files."""

    format: Literal["parquet"] = Field(description=FORMAT)
    files: Files = Field(description="A path, a glob, or a list of them.")
    text_key: str = Field(
        "text", min_length=1, description="The key or column that holds the text."
    )
    filter: Filter = filter_field()


class SmsSource(Section):
    """The SMS Spam Collection, each message rewritten as an instruction with its answer."""

    format: Literal["sms"] = Field(description=FORMAT)
    files: Files = Field(description=FILES)
    filter: Filter = filter_field()


class InstructionSource(Section):
    """Instructions, inputs and outputs, in a JSON list or one JSON object a line, each rewritten as
    one text.
    """

    format: Literal["instruction"] = Field(description=FORMAT)
    files: Files = Field(description=FILES)
    filter: Filter = filter_field()


class BinSource(Section):
    """Token ids without a header, as nanoGPT's train.bin: documents parted by the tokenizer's EOS,
    each kept as it is.
    """

    format: Literal["bin"] = Field(description=FORMAT)
    files: Files = Field(description="A path, a glob, or a list of them.")
    dtype: Literal["uint16", "uint32"] | None = Field(
        None,
        description=(
            "The type of the ids, lowest byte first. null: uint16, or uint32 for a tokenizer of"
            " more than 65,536 ids."
        ),
    )
    filter: Filter = filter_field()

    @model_validator(mode="after")
    def _ids_stay_as_they_are(self) -> Self:
        if self.filter.ascii_only:
            raise ValueError(
                "filter.ascii_only would change text that is token ids already; remove it"
            )
        return self


class HubSource(Section):
    """A Hugging Face dataset: downloaded once into the hub's own cache, or streamed while the run
    goes.
    """

    format: Literal["hub"] = Field(description=FORMAT)
    dataset: str = Field(
        min_length=1, description="The dataset's id, such as roneneldan/TinyStories."
    )
    config: str | None = Field(
        None, description="The dataset's configuration, where it has several."
    )
    dataset_split: str = Field(
        "train", min_length=1, description="Which of the dataset's splits to read."
    )
    revision: str | None = Field(
        None,
        description=(
            "The dataset's commit or branch. null: the newest when the tokens are first made."
        ),
    )
    text_key: str = Field(
        "text", min_length=1, description="The key or column that holds the text."
    )
    streaming: StrictBool = Field(
        False,
        description="Read it over the network as training goes instead of downloading it first.",
    )
    window_tokens: int = Field(
        2**24,
        ge=2**10,
        description=(
            "With streaming: tokens that are shuffled together. The disk holds three such windows"
            " at most."
        ),
    )
    filter: Filter = filter_field()

    @model_validator(mode="after")
    def _what_a_stream_can_do(self) -> Self:
        endless = [
            key
            for key in ("max_documents", "max_tokens", "deduplicate")
            if getattr(self.filter, key)
        ]
        if self.streaming and endless:
            keys = " and ".join(f"filter.{key}" for key in endless)
            raise ValueError(
                f"{keys} would need a streaming source as a whole; remove it, or write streaming:"
                " false"
            )
        return self


SingleSource = Annotated[
    TextSource
    | JsonlSource
    | CsvSource
    | ParquetSource
    | SmsSource
    | InstructionSource
    | BinSource
    | HubSource
    | ChatSource,
    Field(discriminator="format"),
]


class Part(Section):
    """One source of a mixture."""

    weight: int = Field(
        ge=1,
        le=1000,
        description="This source's share of the rows, beside the other weights: 4, 4 and 2, say.",
    )
    source: SingleSource = Field(description="Where its text comes from.")


class MixtureSource(Section):
    """Several sources, each giving its share of the tokens of every few rows."""

    format: Literal["mixture"] = Field(description=FORMAT)
    parts: list[Part] = Field(
        min_length=1, max_length=100, description="The sources and their weights."
    )
    when_one_ends: Literal["stop", "repeat", "go_on"] = Field(
        "repeat",
        description=(
            "When a source runs dry: refuse runs that need more of it (stop), shuffle it anew"
            " (repeat), or take the others until all are dry (go_on)."
        ),
    )

    @model_validator(mode="after")
    def _streams_have_no_end(self) -> Self:
        if self.when_one_ends != "repeat" and any(
            isinstance(part.source, HubSource) and part.source.streaming for part in self.parts
        ):
            raise ValueError(
                f"when_one_ends {self.when_one_ends} needs to know how long each source is, and a"
                " streamed one has no end; write repeat"
            )
        return self


Source = Annotated[
    TextSource
    | JsonlSource
    | CsvSource
    | ParquetSource
    | SmsSource
    | InstructionSource
    | BinSource
    | HubSource
    | ChatSource
    | MixtureSource,
    Field(discriminator="format"),
]


def dataset_of(source: Section) -> str | None:
    """The dataset of the Hugging Face hub that a source is, or None where it is files."""
    return getattr(source, "dataset", None)


def files_of(source: Section) -> list[str]:
    """The files that a source names; none where it is a dataset."""
    return getattr(source, "files", None) or []
