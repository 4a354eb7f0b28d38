"""What a resumed run computes is what it began with, also where nobody wrote it down.

A key that neither the file nor a flag sets has its default, and the default of a later version may
be another. A resumed run keeps the value in its checkpoint instead. Keys about the machine, and
those that change nothing that is computed, are today's.
"""

from __future__ import annotations

import dataclasses
import json
import re
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from lm.checkpoints.meta import Meta
from lm.config.schema.config import Config
from lm.config.schema.section import flattened, without_indices
from lm.runs.changes import is_harmless

if TYPE_CHECKING:
    from lm.config.reader import Loaded  # imports the YAML parser, which deciding does not need

OF_THE_MACHINE = (
    *("trainer.device", "trainer.devices", "trainer.num_nodes", "trainer.strategy"),
    *("trainer.threads", "trainer.compile", "trainer.deterministic"),
)


def keep_recorded(loaded: Loaded, meta: Meta) -> tuple[Loaded, list[str]]:
    """Return the configuration of a run that goes on from a checkpoint, and a line for each key
    that is not as it would be in a new run.

    Raises:
        CheckpointError: this version cannot read the checkpoint's configuration.
    """
    now = loaded.config.model_dump(mode="json")
    today = flattened(now)
    kept = {
        key: value
        for key, value in flattened(meta.config.model_dump(mode="json")).items()
        if loaded.origins.get(key) == "default" and value != today[key] and not _is_todays(key)
    }
    for key, value in kept.items():
        _set(now, key, value)
    try:
        config = Config.model_validate(now)
    except ValidationError:  # with what is written; `changes` says what differs
        return loaded, []
    origins = loaded.origins | dict.fromkeys(kept, meta.folder.name)
    lines = [
        f"kept from {meta.folder.name}: {key} {json.dumps(value)} (a new run would have"
        f" {json.dumps(today[key])})"
        for key, value in kept.items()
    ]
    return dataclasses.replace(loaded, config=config, origins=origins), lines


def _is_todays(key: str) -> bool:
    return is_harmless(key) or without_indices(key) in OF_THE_MACHINE


def _set(values: Any, key: str, value: Any) -> None:
    *sections, last = re.findall(r"[^.\[\]]+", key)
    for section in sections:
        values = values[int(section) if section.isdigit() else section]
    values[last] = value
