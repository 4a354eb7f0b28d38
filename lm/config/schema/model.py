"""`model`: the decoder's shape. The default is Llama's; `qk_norm` makes it Qwen3's, and the last
four keys GPT-2's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, StrictBool

from lm.config.schema.section import Section


class ModelConfig(Section):
    """All that `model.Decoder` needs; every checkpoint stores it."""

    vocab_size: int | None = Field(
        None,
        ge=2,
        le=2**24,
        description=(
            "Rows of the embedding. null: the tokenizer's size. It may be larger: a multiple of 64"
            " is fast on GPUs."
        ),
    )
    context_length: int = Field(
        256,
        ge=2,
        le=2**24,
        description="The longest sequence of the model, in tokens.",
    )
    n_layers: int = Field(4, ge=1, le=1024, description="Number of blocks.")
    d_model: int = Field(128, ge=2, le=2**16, description="Width of the residual stream.")
    n_heads: int = Field(
        4, ge=1, description="Number of query heads; each is d_model / n_heads wide."
    )
    n_kv_heads: int | None = Field(
        None,
        ge=1,
        description="Key and value heads (grouped-query attention). null: n_heads.",
    )
    d_ff: int | None = Field(
        None,
        ge=1,
        le=2**20,
        description=(
            "Hidden width of the MLP. null: 8/3 d_model for swiglu, 4 d_model for gelu, rounded up"
            " to a multiple of 16."
        ),
    )
    qk_norm: StrictBool = Field(
        False, description="Normalise queries and keys per head, before RoPE (Qwen3)."
    )
    tie_embeddings: StrictBool = Field(
        True, description="The output head shares the embedding's weights."
    )
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Dropout on the embedding and on both residual branches of every block.",
    )
    rope_theta: float = Field(
        10_000.0, gt=1, description="Base of RoPE's frequencies; longer contexts need a larger one."
    )
    norm_eps: float = Field(1e-6, gt=0, lt=1, description="Added to the variance inside the norms.")
    init_std: float = Field(0.02, gt=0, description="Standard deviation of the initial weights.")
    residual_init: Literal["scaled", "zero"] = Field(
        "scaled",
        description=(
            "The two projections into the residual stream start with standard deviation init_std /"
            " sqrt(2 n_layers), or at zero."
        ),
    )
    gradient_checkpointing: StrictBool = Field(
        False,
        description=(
            "Recompute each block in the backward pass: less memory, about a third more time."
        ),
    )
    norm: Literal["rmsnorm", "layernorm"] = Field("rmsnorm", description="Kind of normalisation.")
    positions: Literal["rope", "learned"] = Field(
        "rope", description="Rotary positions, or a learned table of context_length rows."
    )
    mlp: Literal["swiglu", "gelu", "gelu_erf"] = Field(
        "swiglu",
        description="Gated SiLU, GPT-2's GELU (tanh form), or exact GELU, which is faster on CPUs.",
    )
    bias: StrictBool = Field(
        False, description="Biases in every linear layer but the head, and in layernorm."
    )

    kernels: Literal["auto", "fused"] = Field(
        "auto",
        description=(
            "auto: where that is faster or needs less memory, the loss makes its gradients in the"
            " forward pass, and a CPU has its own norms, rotations and bf16 attention; the last"
            " bits differ. fused: torch's functions, and the loss as in runs before this key."
        ),
    )

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the heads."""
        if self.d_model % self.n_heads:
            yield (
                f"d_model {self.d_model} is not divisible by n_heads {self.n_heads}; write a"
                f" multiple of {self.n_heads} for d_model"
            )
        elif self.positions == "rope" and self.head_dim % 2:
            yield (
                f"rope needs an even head width, and d_model {self.d_model} / n_heads"
                f" {self.n_heads} is {self.head_dim}; write a multiple of {2 * self.n_heads} for"
                " d_model"
            )
        if self.n_heads % self.kv_heads:
            yield (
                f"n_heads {self.n_heads} is not divisible by n_kv_heads {self.kv_heads}; write a"
                f" divisor of {self.n_heads} for n_kv_heads"
            )

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads

    @property
    def kv_heads(self) -> int:
        return self.n_kv_heads or self.n_heads

    @property
    def mlp_width(self) -> int:
        if self.d_ff:
            return self.d_ff
        width = 8 * self.d_model / 3 if self.mlp == "swiglu" else 4 * self.d_model
        return 16 * -int(-width // 16)
