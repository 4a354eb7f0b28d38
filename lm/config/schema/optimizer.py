"""`optimizer`: AdamW or Muon, and the learning rate over the run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StrictBool

from lm.config.schema.section import Section

Beta = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0, le=10)]


class OptimizerConfig(Section):
    """The optimiser and its learning rate, a function of the step, or of the time."""

    name: Literal["adamw", "muon"] = Field(
        "adamw",
        description=(
            "adamw, or muon: Muon for the matrices inside the layers, AdamW for embeddings, head,"
            " norms and biases."
        ),
    )
    lr: float = Field(1e-3, gt=0, le=10, description="AdamW's highest learning rate.")
    embedding_lr: Rate | None = Field(
        None,
        description=(
            "The embeddings' highest learning rate, also where the head shares their matrix. null:"
            " lr. The schedule scales all rates alike."
        ),
    )
    head_lr: Rate | None = Field(
        None, description="The highest learning rate of a head with its own matrix. null: lr."
    )
    muon_lr: float = Field(
        0.02,
        gt=0,
        le=10,
        description=(
            "Muon's highest learning rate. An update's largest singular value is about muon_lr,"
            " times the root of rows / columns for a tall matrix."
        ),
    )
    muon_momentum: Beta = Field(0.95, description="Muon's share of the momentum that is kept.")
    muon_momentum_warmup: int = Field(
        300, ge=0, description="Steps in which Muon's momentum rises from 0.85 to muon_momentum."
    )
    schedule: Literal["cosine", "linear", "wsd", "constant"] = Field(
        "cosine",
        description=(
            "The learning rate after the warm-up: a cosine or linear decay to the end,"
            " stable-then-decay (wsd), or constant."
        ),
    )
    schedule_by: Literal["steps", "time"] = Field(
        "steps",
        description=(
            "time: the decay ends at trainer.max_minutes, which then suffices as the run's length."
            " Start-up, validations and saves count; a resumed run is not bit for bit the same."
        ),
    )
    warmup_steps: int = Field(100, ge=0, description="Steps of linear warm-up from 0 to lr.")
    final_lr_fraction: float = Field(
        0.1, ge=0, le=1, description="The last step's learning rate, as a fraction of lr."
    )
    decay_fraction: float = Field(
        0.3,
        gt=0,
        le=1,
        description="wsd: the fraction of the run in which the learning rate decays.",
    )
    weight_decay: float = Field(
        0.1,
        ge=0,
        lt=10,
        description=(
            "Decoupled weight decay, on matrices only: never on norms and biases. Each step takes"
            " this times the matrix's learning rate."
        ),
    )
    cautious_decay: StrictBool = Field(
        False,
        description="Decay only the numbers of a matrix that the step moves towards zero.",
    )
    betas: tuple[Beta, Beta] = Field(
        (0.9, 0.95), description="AdamW's decay rates of the two moments."
    )
    eps: float = Field(1e-8, gt=0, lt=1, description="AdamW's term that keeps the divisor above 0.")
    grad_clip: float = Field(
        1.0,
        ge=0,
        description=(
            "Largest global gradient norm. With muon, that of AdamW's weights: Muon's steps do not"
            " depend on it. 0: no clipping."
        ),
    )
    ema_decay: float = Field(
        0.0,
        ge=0,
        lt=1,
        description=(
            "Keep an exponential moving average of the weights and validate with it. 0: off."
        ),
    )
