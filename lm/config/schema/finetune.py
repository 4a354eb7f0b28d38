"""`finetune`: how a base checkpoint is trained further."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from lm.config.schema.section import PathText, Section

Pattern = Annotated[str, Field(min_length=1)]


class LoraConfig(Section):
    """Low-rank adapters (Hu et al. 2021): W + alpha / rank * B A; only A and B are trained."""

    rank: int = Field(8, ge=1, le=2**12, description="Rows of A and columns of B.")
    alpha: float = Field(
        16.0, gt=0, le=2**16, description="The adapters are scaled by alpha / rank."
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the input of the adapters.")
    targets: list[Pattern] = Field(
        ["layers.*"],
        min_length=1,
        description=(
            "The layers with adapters, by patterns of their names, such as '*.q_proj',"
            " 'layers.*.mlp.*' or embed_tokens. The output head has only those of an embedding that"
            " it shares."
        ),
    )


class FinetuneConfig(Section):
    """How `finetune.py` trains; model and tokenizer are the base's."""

    base: PathText = Field(
        description="The checkpoint to start from, such as checkpoints/best.ckpt."
    )
    method: Literal["full", "lora", "qlora"] = Field(
        "full",
        description=(
            "Train all weights (full), or low-rank adapters on frozen weights (lora), in 4 bits"
            " (qlora)."
        ),
    )
    objective: Literal["sft", "dpo"] = Field(
        "sft",
        description=(
            "Learn the answers (sft), or which of two answers is preferred (dpo, Rafailov et al."
            " 2023)."
        ),
    )
    dpo_beta: float = Field(
        0.1, gt=0, le=100, description="dpo: how strongly the model is held near its base."
    )
    replay: float = Field(
        0.0,
        ge=0,
        le=0.9,
        description=(
            "The fraction of rows from the text that the base was trained on, so that the model"
            " forgets less."
        ),
    )
    lora: LoraConfig = Field(
        default_factory=LoraConfig, description="The adapters of lora and qlora."
    )
    choices: list[Pattern] = Field(
        [],
        description=(
            "Answers that the final report lets the model choose from by likelihood, such as"
            " [ham, spam]."
        ),
    )
    report_prompts: int = Field(
        200,
        ge=0,
        description="Held-out prompts that the final report answers. 0: no report.",
    )
    report_tokens: int = Field(
        128, ge=1, description="The longest answer in the report, in tokens."
    )

    def problems(self) -> Iterator[str]:
        """Yield the keys that this method and objective do not use."""
        if self.method == "full" and self.lora != LoraConfig():
            yield (
                "lora is for method lora and qlora, and method is full; write method: lora, or"
                " remove it"
            )
        if self.objective == "sft" and self.dpo_beta != type(self).model_fields["dpo_beta"].default:
            yield (
                "dpo_beta is for objective dpo, and objective is sft; write objective: dpo, or"
                " remove it"
            )
        if len(self.choices) == 1:
            yield "choices has one answer, which leaves no choice; write several, or remove it"
