"""Conversations to learn from: their place, their layout, and their way to tokens."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, StrictBool, model_validator

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
    Text,
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
)
from lm.config.schema.section import Section

Layout = Literal["auto", "alpaca", "messages", "prompt_completion", "preferences", "sms"]
TemplateName = Literal["alpaca", "instruction-output", "chatml", "base"]


class Columns(Section):
    """The rows' own names for the keys of a layout. null: the usual names."""

    messages: Text | None = Field(None, description="The list of messages.")
    instruction: Text | None = Field(None, description="The instruction of layout alpaca.")
    output: Text | None = Field(None, description="The answer to an instruction.")
    prompt: Text | None = Field(None, description="The question, as text or messages.")
    completion: Text | None = Field(None, description="The answer to a prompt.")
    chosen: Text | None = Field(None, description="The answer that is preferred.")
    rejected: Text | None = Field(None, description="The answer that is not.")
    input: Text | None = Field(None, description="The text that a question is about.")
    system: Text | None = Field(None, description="The system message.")
    history: Text | None = Field(None, description="Earlier turns, as pairs or messages.")

    @property
    def given(self) -> dict[str, str]:
        """The names that are given, by the layout's key."""
        return self.model_dump(exclude_none=True)

    @model_validator(mode="before")
    @classmethod
    def _layouts_keys_first(cls, columns: Any) -> Any:
        unknown = []
        if isinstance(columns, dict):
            unknown = sorted(columns.keys() - cls.model_fields.keys())
        if unknown:
            raise ValueError(
                f"a layout has no key {' and '.join(map(str, unknown))}; write the layout's key"
                f" first, then the row's: {{prompt: {unknown[0]}}}"
            )
        return columns

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        names = list(self.given.values())
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{' and '.join(twice)} is named twice; write one key for each column")
        return self


class ChatSource(Section):
    """Prompts with their answers. Only the assistant's answers are labels."""

    format: Literal["chat"] = Field(description=FORMAT)
    files: Files | None = Field(
        None,
        description=f"JSON lists, JSON lines, CSV, TSV or Parquet: {FILES[0].lower()}{FILES[1:]}",
    )
    dataset: str | None = Field(
        None, min_length=1, description="A dataset of the Hugging Face hub, instead of files."
    )
    config: str | None = dataset_config_field()
    dataset_split: str = dataset_split_field()
    revision: str | None = revision_field()
    layout: Layout = Field(
        "auto",
        description=(
            "The keys of a row: instruction, input, output (alpaca); messages; prompt, completion;"
            " prompt, chosen, rejected (preferences); or a line of label, tab, message (sms). auto:"
            " one of the first three, by the row's keys."
        ),
    )
    columns: Columns | None = Field(
        None, description="The rows' own names for the layout's keys, where they have others."
    )
    delimiter: Separator = delimiter_field()
    quoting: Quoting | None = quoting_field()
    escape: Escape | None = escape_field()
    names: SomeTexts | None = names_field()
    encoding: Encoding = encoding_field()
    template: TemplateName = Field(
        "alpaca",
        description=(
            "How turns become one text (lm/documents/templates.py). base: the base checkpoint's."
        ),
    )
    system: str | None = Field(
        None, description="The system message of conversations without one. null: the template's."
    )
    mask_prompt: StrictBool = Field(
        True, description="Only answers are labels. false: every token is a label."
    )
    too_long: Literal["drop", "cut"] = Field(
        "drop",
        description=(
            "A conversation longer than a row: drop it, or cut it, so that its last answer has no"
            " end."
        ),
    )
    filter: Filter = filter_field()

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.files is None) == (self.dataset is None):
            raise ValueError("write either files or dataset, which say where the conversations are")
        unused = [
            key
            for key in ("config", "dataset_split", "revision")
            if self.files is not None and getattr(self, key) != type(self).model_fields[key].default
        ]
        if unused:
            raise ValueError(
                f"{' and '.join(unused)} belong to a dataset, and these are files; remove them"
            )
        return self

    @model_validator(mode="after")
    def _as_they_are(self) -> Self:
        if self.filter.ascii_only:
            raise ValueError("filter.ascii_only would change answers; remove it")
        if self.filter.min_length:
            raise ValueError(
                "filter.min_length counts the characters of a text, and a conversation is several;"
                " remove it"
            )
        if self.layout == "sms" and self.files is None:
            raise ValueError("layout sms is that of a file; name it with files")
        if self.layout == "sms" and self.columns is not None:
            raise ValueError(
                "columns are for rows with keys, and lines of sms have none; remove it"
            )
        if self.layout == "preferences" and self.too_long == "cut":
            raise ValueError("of two answers to compare neither can be cut; write too_long: drop")
        check_escape(self.delimiter, self.escape)
        return self
