"""The base class of every section, the type of every path, and the values of nested sections by
their dotted keys.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, model_validator

from lm.system.paths import expand

# The context of a configuration that a user has just written; others were stored by a run. The
# second is for a command that does not train.
WRITTEN_NOW, WRITTEN_FOR_DATA = object(), object()
# In a key's JSON schema: a default that depends on other keys.
DEFAULT_IN_WORDS = "x-default"


def _expanded(text: str, info: ValidationInfo) -> str:
    """Replace `~` and `$VARIABLES`. A stored configuration may name those of another machine."""
    try:
        return expand(text)
    except ValueError:
        if info.context in (WRITTEN_NOW, WRITTEN_FOR_DATA):
            raise
        return text


PathText = Annotated[str, Field(min_length=1), AfterValidator(_expanded)]


class Section(BaseModel):
    """An immutable section, closed to unknown keys, with finite numbers only."""

    # Without pydantic's strict mode: a stored configuration has lists where the schema has tuples.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def problems(self) -> Iterator[str]:
        """Yield what is wrong between the section's keys, one line each."""
        yield from ()

    def training_problems(self) -> Iterator[str]:
        """Yield what is wrong only for a command that trains."""
        yield from ()

    @model_validator(mode="after")
    def _have_no_problems(self, info: ValidationInfo) -> Self:
        problems = list(self.problems())
        if info.context is not WRITTEN_FOR_DATA:
            problems += self.training_problems()
        if problems:  # pydantic takes one error from a validator
            raise ValueError("\n".join(problems))
        return self


def without_indices(key: str) -> str:
    """Return a dotted key of `flattened` as the schema has it, for all sections of a list at once:
    data.source.parts[0].weight -> data.source.parts[].weight.
    """
    return re.sub(r"\[\d+\]", "[]", key)


def flattened(sections: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of dumped sections by dotted key, such as `optimizer.betas`.

    Sections in a list have their index: `data.source.parts[0].weight`.
    """
    values: dict[str, Any] = {}

    def collect(value: Any, name: str) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                collect(inner, f"{name}.{key}".lstrip("."))
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            for index, item in enumerate(value):
                collect(item, f"{name}[{index}]")
        else:
            values[name] = value

    collect(sections, "")
    return values
