"""`checkpoint`: where and how often a run is saved, and what is kept."""

from pydantic import Field

from lm.config.schema.section import PathText, Section


class CheckpointConfig(Section):
    """The run's folder and its checkpoints."""

    directory: PathText = Field(
        "checkpoints",
        description="The run's folder: checkpoints, metrics, curves, samples. One run, one folder.",
    )
    save_every: int = Field(500, ge=1, description="Steps between saves.")
    keep: int = Field(
        3,
        ge=1,
        description=(
            "How many of the newest checkpoints to keep. The targets of best, last and final are"
            " never deleted."
        ),
    )
