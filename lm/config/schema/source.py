"""Sources of text: one section for each format, and mixtures of several."""

from __future__ import annotations

from typing import Annotated, Literal, Self, TypeGuard

from pydantic import Field, StrictBool, model_validator

from lm.config.schema.chat import ChatSource
from lm.config.schema.files_and_filter import (
    FILES,
    FORMAT,
    Encoding,
    Escape,
    Files,
    Filter,
    Quoting,
    Separator,
    SomeTexts,
    check_escape,
    dataset_config_field,
    dataset_split_field,
    delimiter_field,
    encoding_field,
    escape_field,
    filter_field,
    names_field,
    quoting_field,
    revision_field,
    text_key_field,
)
from lm.config.schema.section import Section


class TextSource(Section):
    """Plain text files."""

    format: Literal["txt"] = Field(description=FORMAT)
    files: Files = Field(description=FILES)
    unit: Literal["line", "paragraph", "file"] = Field(
        "paragraph",
        description=("A document is a line, a paragraph (up to a blank line), or the whole file."),
    )
    encoding: Encoding = encoding_field()
    filter: Filter = filter_field()


class JsonlSource(Section):
    """One JSON object in each line."""

    format: Literal["jsonl"] = Field(description=FORMAT)
    files: Files = Field(description=FILES)
    text_key: str = text_key_field()
    encoding: Encoding = encoding_field()
    filter: Filter = filter_field()


class CsvSource(Section):
    """Comma-separated values with a line of column names."""

    format: Literal["csv"] = Field(description=FORMAT)
    files: Files = Field(description=FILES)
    text_key: str = text_key_field()
    delimiter: Separator = delimiter_field()
    quoting: Quoting | None = quoting_field()
    escape: Escape | None = escape_field()
    names: SomeTexts | None = names_field()
    encoding: Encoding = encoding_field()
    filter: Filter = filter_field()

    @model_validator(mode="after")
    def _two_characters(self) -> Self:
        check_escape(self.delimiter, self.escape)
        return self


class ParquetSource(Section):
    """Parquet files."""

    format: Literal["parquet"] = Field(description=FORMAT)
    files: Files = Field(description="A path, a glob, or a list of them.")
    text_key: str = text_key_field()
    filter: Filter = filter_field()


class SmsSource(Section):
    """The SMS Spam Collection, each message rewritten as an instruction with its answer."""

    format: Literal["sms"] = Field(description=FORMAT)
    files: Files = Field(description=FILES)
    encoding: Encoding = encoding_field()
    filter: Filter = filter_field()


class InstructionSource(Section):
    """Instructions, inputs and outputs as JSON, each rewritten as one text."""

    format: Literal["instruction"] = Field(description=FORMAT)
    files: Files = Field(description=FILES)
    encoding: Encoding = encoding_field()
    filter: Filter = filter_field()


class BinSource(Section):
    """Token ids without a header, such as nanoGPT's train.bin, with EOS between documents."""

    format: Literal["bin"] = Field(description=FORMAT)
    files: Files = Field(description="A path, a glob, or a list of them.")
    dtype: Literal["uint16", "uint32"] | None = Field(
        None,
        description=(
            "The type of the ids, lowest byte first. null: uint16, or uint32 if the tokenizer has"
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
    """A Hugging Face dataset, downloaded once into the hub's cache, or streamed during the run."""

    format: Literal["hub"] = Field(description=FORMAT)
    dataset: str = Field(
        min_length=1, description="The dataset's id, such as roneneldan/TinyStories."
    )
    config: str | None = dataset_config_field()
    dataset_split: str = dataset_split_field()
    revision: str | None = revision_field()
    text_key: str = text_key_field()
    streaming: StrictBool = Field(
        False,
        description="Read it over the network during training instead of downloading it first.",
    )
    window_tokens: int = Field(
        2**24,
        ge=2**10,
        description=(
            "With streaming: tokens that are shuffled together. The disk holds at most three such"
            " windows."
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


AnySingle = (
    TextSource
    | JsonlSource
    | CsvSource
    | ParquetSource
    | SmsSource
    | InstructionSource
    | BinSource
    | HubSource
    | ChatSource
)
SingleSource = Annotated[AnySingle, Field(discriminator="format")]


class Part(Section):
    """One source of a mixture."""

    weight: int = Field(
        ge=1,
        le=1000,
        description="The source's share of the rows, relative to the other weights: 4, 4 and 2.",
    )
    source: SingleSource = Field(description="The source's text.")


class MixtureSource(Section):
    """Several sources with fixed shares of the rows."""

    format: Literal["mixture"] = Field(description=FORMAT)
    parts: list[Part] = Field(
        min_length=1, max_length=100, description="The sources and their weights."
    )
    when_one_ends: Literal["stop", "repeat", "go_on"] = Field(
        "repeat",
        description=(
            "If a source runs out: refuse runs that need more of it (stop), shuffle it again"
            " (repeat), or continue with the others until all run out (go_on)."
        ),
    )

    @model_validator(mode="after")
    def _streams_have_no_end(self) -> Self:
        if self.when_one_ends != "repeat" and any(is_streamed(part.source) for part in self.parts):
            raise ValueError(
                f"when_one_ends {self.when_one_ends} needs to know how long each source is, and a"
                " streamed one has no end; write repeat"
            )
        return self


Source = Annotated[AnySingle | MixtureSource, Field(discriminator="format")]


def dataset_of(source: SingleSource) -> str | None:
    """Return the id of a source's dataset on the Hugging Face hub; None for files."""
    return source.dataset if isinstance(source, HubSource | ChatSource) else None


def is_streamed(source: SingleSource) -> TypeGuard[HubSource]:
    """Return whether a source is read over the network during training."""
    return isinstance(source, HubSource) and source.streaming


def files_of(source: SingleSource) -> list[str]:
    """Return the paths and globs that a source names; none for a dataset."""
    return [] if isinstance(source, HubSource) else source.files or []


def added_keys(source: SingleSource) -> set[str]:
    """Return the keys that sources did not always have, if they have no effect here.

    A fingerprint leaves them out, so what was made before such a key existed stays valid.
    """
    later = ("encoding", "quoting", "escape", "names", "columns")
    unset = {key for key in later if getattr(source, key, None) is None}
    is_chat = isinstance(source, ChatSource) and source.delimiter == ","
    return unset | {"delimiter"} if is_chat else unset
