"""`checkpoint`: what is saved, where, and for how long."""

from pydantic import Field

from lm.config.schema.section import Section


class CheckpointConfig(Section):
    """One run, one folder."""

    directory: str = Field(
        "checkpoints",
        min_length=1,
        description="The run's folder: checkpoints, metrics, curves, samples.",
    )
    save_every: int = Field(500, ge=1, description="Steps between saves.")
    keep: int = Field(
        3,
        ge=1,
        description=(
            "How many of the newest checkpoints to keep; what best, last and final point to is"
            " never deleted."
        ),
    )
