"""What every section of the configuration has in common."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Immutable, closed to unknown keys, finite numbers only. Not pydantic's strict mode: PyYAML
    reads `3e-5` as a string.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
