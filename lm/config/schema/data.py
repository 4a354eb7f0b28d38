"""`data`: where the text comes from and how it becomes rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, StrictBool

from lm.config.schema.chat import ChatSource
from lm.config.schema.section import DEFAULT_IN_WORDS, PathText, Section
from lm.config.schema.source import MixtureSource, Part, SingleSource, Source, is_streamed


def _has_conversations(source: Source | None, validation: SingleSource | None) -> bool:
    """Return whether a part of the text is conversations; None is a section with mistakes."""
    parts = (
        [part.source for part in source.parts] if isinstance(source, MixtureSource) else [source]
    )
    return any(isinstance(part, ChatSource) for part in (*parts, validation))


class DataConfig(Section):
    """The text, its split, and its rows."""

    source: Source = Field(description="The text to learn from.")
    validation: SingleSource | None = Field(
        None,
        description="Text to validate on. null: hold out a part of `source`, by `split`.",
    )
    split: Literal["hash", "tail"] = Field(
        "hash",
        description=(
            "Hold out documents by the hash of their text, or the last `val_fraction` of all"
            " characters."
        ),
    )
    val_fraction: float = Field(
        0.05, gt=0, lt=1, description="The fraction held out for validation."
    )
    test_fraction: float = Field(
        0.0,
        ge=0,
        lt=1,
        description=(
            "Conversations only: the fraction held out from both training and validation, for"
            " finetune.py's final report."
        ),
    )
    sequence_length: int | None = Field(
        None, ge=2, description="Tokens in a row. null: model.context_length."
    )
    rows: Literal["packed", "document"] = Field(
        "packed",
        description=(
            "Cut rows from the stream of all documents (packed), or start a row with each"
            " document and pad it."
        ),
    )
    stride: int | None = Field(
        None,
        ge=1,
        description=(
            "Tokens between the starts of two packed rows in training. null: the row's length, so"
            " that rows do not overlap."
        ),
    )
    document_mask: StrictBool = Field(
        default_factory=lambda data: _has_conversations(data.get("source"), data.get("validation")),
        description=(
            "Tokens attend only to their own document, and positions start at 0 in each. false:"
            " a row is one stream of text."
        ),
        json_schema_extra={DEFAULT_IN_WORDS: "true for conversations, else false"},
    )
    on_bad_row: Literal["stop", "skip"] = Field(
        "stop", description="If a row cannot be read: stop and name it, or skip and count it."
    )
    cache_dir: PathText = Field(
        ".cache/tokens",
        description="The folder of token shards, by fingerprint of text and tokenizer.",
    )
    workers: int = Field(
        0,
        ge=0,
        le=64,
        description=(
            "Processes that load batches. 0 is best for memory-mapped shards on one machine."
        ),
    )

    @property
    def parts(self) -> list[tuple[str, Part]]:
        """The sources with their keys: all parts of a mixture, or the only source."""
        if isinstance(self.source, MixtureSource):
            return [
                (f"data.source.parts[{i}].source", part) for i, part in enumerate(self.source.parts)
            ]
        return [("data.source", Part(weight=1, source=self.source))]

    @property
    def conversations(self) -> list[tuple[str, ChatSource]]:
        """The sources that are conversations, with their keys; `validation` too."""
        sources: list[tuple[str, Source | None]] = [
            *((key, part.source) for key, part in self.parts),
            ("data.validation", self.validation),
        ]
        return [(key, source) for key, source in sources if isinstance(source, ChatSource)]

    @property
    def chat(self) -> ChatSource | None:
        """The conversations to train on, the first of several; None if there are none."""
        return next(
            (part.source for _, part in self.parts if isinstance(part.source, ChatSource)), None
        )

    @property
    def streams(self) -> bool:
        """Whether a source is read over the network during training."""
        return any(is_streamed(part.source) for _, part in self.parts)

    @property
    def steps_ahead(self) -> int:
        """How many steps the loader may ask a stream for before the first of them is trained on."""
        return 2 * self.workers + 2

    def problems(self) -> Iterator[str]:
        """Yield what is wrong between text, split and rows."""
        yield from self._validation_problems()
        yield from self._split_problems()
        yield from self._conversation_problems()
        yield from self._row_problems()

    def _validation_problems(self) -> Iterator[str]:
        fields = type(self).model_fields
        changed = [
            key for key in ("split", "val_fraction") if getattr(self, key) != fields[key].default
        ]
        if self.validation is not None and changed:
            yield (
                f"{' and '.join(changed)} would hold out a part of `source`, but `validation` names"
                " text of its own; remove one of the two"
            )

    def _split_problems(self) -> Iterator[str]:
        sources = [part.source for _, part in self.parts]
        if self.split == "tail" and self.streams:
            yield (
                "split tail needs to know where the text ends, and a streamed one has no end; write"
                " split: hash"
            )
        if self.split == "tail" and any(source.filter.max_tokens for source in sources):
            yield (
                "split tail measures the text in characters before it is tokenised, and max_tokens"
                " in tokens; write split: hash"
            )
        if self.validation is not None and is_streamed(self.validation):
            yield (
                "validation is scored as a whole, and a streamed text has no end; write streaming:"
                " false and filter.max_documents"
            )

    def _conversation_problems(self) -> Iterator[str]:
        chats = [chat for _, chat in self.conversations]
        learnt = self.chat is not None
        if chats and not self.document_mask:
            yield (
                "document_mask false would let conversations in one row see each other; write"
                " document_mask: true"
            )
        if learnt and self.stride is not None:
            yield ("stride is for text, and conversations are kept whole; remove it")
        if learnt and self.split == "tail":
            yield ("split tail would cut a conversation in two; write split: hash")
        if self.test_fraction and not learnt:
            yield (
                "test_fraction is for conversations (format: chat), and there are none; remove it"
            )
        if self.test_fraction + self.val_fraction >= 1:
            yield (
                f"test_fraction {self.test_fraction} and val_fraction {self.val_fraction} leave"
                " nothing to train on; write fractions whose sum is below 1"
            )
        if len({chat.layout == "preferences" for chat in chats}) > 1:
            yield (
                "source mixes conversations with preferences, which are learnt in different ways;"
                " take one of the two"
            )
        if len(templates := {chat.template for chat in chats} - {"base"}) > 1:
            yield (
                f"source has conversations in the templates {' and '.join(sorted(templates))}; a"
                " model speaks in one: name it"
            )

    def _row_problems(self) -> Iterator[str]:
        if self.rows == "document" and self.stride is not None:
            yield (
                "stride is for rows: packed; with rows: document every row begins where a document"
                " does"
            )
        if self.streams and (self.rows == "document" or self.stride is not None):
            key = "rows: document" if self.rows == "document" else "stride"
            yield (
                f"{key} needs text that is stored, and a stream's rows are packed, one after the"
                " other; remove it"
            )
