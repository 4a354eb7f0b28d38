"""`logging`: what is logged during the run."""

from __future__ import annotations

from pydantic import Field, StrictBool

from lm.config.schema.section import Section


class LoggingConfig(Section):
    """Rows of metrics, TensorBoard and samples. metrics.csv and curves.png are always written."""

    every: int = Field(10, ge=1, description="Steps between rows of metrics.csv.")
    tensorboard: StrictBool = Field(True, description="Write TensorBoard event files too.")
    sample_prompt: str = Field(
        "",
        description=(
            "Text that the model continues at every validation. Empty: it starts a new text."
        ),
    )
    sample_tokens: int = Field(100, ge=0, description="Tokens in that sample. 0: no samples.")
    sample_temperature: float = Field(
        0.8, ge=0, le=10, description="Temperature of that sample. 0: greedy."
    )
