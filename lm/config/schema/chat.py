"""Conversations to learn from: where they are, how they are written down, and how they become
tokens.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, StrictBool, model_validator

from lm.config.schema.files_and_filter import FORMAT, Files, Filter, filter_field
from lm.config.schema.section import Section

Layout = Literal["auto", "alpaca", "messages", "prompt_completion", "preferences", "sms"]
TemplateName = Literal["alpaca", "instruction-output", "chatml", "base"]


class ChatSource(Section):
    """Prompts with their answers, as `finetune.py` learns them: only what an assistant says is a
    label.
    """

    format: Literal["chat"] = Field(description=FORMAT)
    files: Files | None = Field(
        None,
        description=(
            "JSON lists or JSON lines: a path, a glob, or a list of them; what gzip has packed is"
            " unpacked."
        ),
    )
    dataset: str | None = Field(
        None, min_length=1, description="A dataset of the Hugging Face hub, instead of files."
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
    layout: Layout = Field(
        "auto",
        description=(
            "What a row has: instruction, input, output (alpaca); messages; prompt, completion;"
            " prompt, chosen, rejected (preferences); a label, a tab, a message (sms). auto:"
            " whichever of the first three its keys are."
        ),
    )
    template: TemplateName = Field(
        "alpaca",
        description=(
            "How turns become one text (lm/documents/templates.py). base: as the base checkpoint's."
        ),
    )
    system: str | None = Field(
        None, description="The system's words where a conversation has none. null: the template's."
    )
    mask_prompt: StrictBool = Field(
        True, description="Only answers are labels. false: the whole conversation is."
    )
    too_long: Literal["drop", "cut"] = Field(
        "drop",
        description=(
            "A conversation longer than a row: leave it out, or keep its beginning, whose answer"
            " then has no end."
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
            if self.files is not None and key in self.model_fields_set
        ]
        if unused and any(
            getattr(self, key) != type(self).model_fields[key].default for key in unused
        ):
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
        if self.layout == "preferences" and self.too_long == "cut":
            raise ValueError("of two answers to compare neither can be cut; write too_long: drop")
        return self
