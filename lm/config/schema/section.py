"""The base class of every section, and the values of nested sections by their dotted keys."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, model_validator

# In a key's JSON schema: a default that depends on other keys.
DEFAULT_IN_WORDS = "x-default"


class Section(BaseModel):
    """An immutable section, closed to unknown keys, with finite numbers only."""

    # Without pydantic's strict mode: a stored configuration has lists where the schema has tuples.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def problems(self) -> Iterator[str]:
        """Yield what is wrong between the section's keys, one line each."""
        yield from ()

    @model_validator(mode="after")
    def _have_no_problems(self) -> Self:
        if problems := list(self.problems()):  # pydantic takes one error from a validator
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
