"""What may change when a run goes on from a checkpoint, and what then is said or refused."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lm.checkpoints.meta import read_config
from lm.config.schema.config import Config
from lm.config.schema.section import flattened
from lm.system.errors import ConfigError, printable

# What may change when a run goes on without changing what it computes: where it writes, how long it
# may take, what it measures.
HARMLESS = (
    "checkpoint",
    "logging",
    "data.cache_dir",
    "data.workers",
    "data.on_bad_row",  # it lets a run go on past a bad row or not; the others are the same
    # wherever they lie: the text itself is compared, by its hash (machine_changes)
    "data.source.files",
    "data.source.parts[].source.files",
    "data.validation.files",
    "finetune.base",  # wherever it lies: finetune.py compares its hash
    *(f"finetune.{key}" for key in ("choices", "report_prompts", "report_tokens")),
    "model.gradient_checkpointing",
    *(
        f"trainer.{key}"
        for key in (
            "max_epochs",
            "max_minutes",
            "validate_every",
            "early_stopping",
            "on_nonfinite",
            "nonfinite_limit",
        )
    ),
)
# What may change and changes the result, if only in the last bits. Anything that is in neither list
# makes it another run.
INEXACT = (
    *(
        f"optimizer.{key}"
        for key in (
            "lr",
            "schedule",
            "warmup_steps",
            "final_lr_fraction",
            "decay_fraction",
            "weight_decay",
        )
    ),
    *(f"optimizer.{key}" for key in ("betas", "eps", "grad_clip", "ema_decay")),
    *(
        f"trainer.{key}"
        for key in ("max_steps", "max_tokens", "micro_batch_size", "validation_rows")
    ),
    *(
        f"trainer.{key}"
        for key in (
            "device",
            "devices",
            "num_nodes",
            "strategy",
            "deterministic",
            "compile",
            "threads",
        )
    ),
)
# What these come to is known only on the machine: `machine_changes` sees to them.
SETTLED_LATER = ("trainer.device", "trainer.threads")
END_OF_EXACTNESS = " (from here on the weights are not bit for bit those of an unchanged run)"


def changes(config: Config, stored: Mapping[str, Any], checkpoint: Path) -> Iterator[str]:
    """Hold the configuration against the one that a checkpoint was saved with; yields a line for
    each change that is allowed.

    Raises:
        ConfigError: something differs that may not; one line for each such key.
        CheckpointError: the stored configuration cannot be understood.
    """
    before = read_config(checkpoint, stored)
    old, new = (
        flattened(before.model_dump(mode="json")),
        flattened(config.model_dump(mode="json")),
    )
    differing = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    if refused := [key for key in differing if not _may_change(key, old.get(key), new.get(key))]:
        lines = [
            f"{key}: the run to resume has {_shown(old, key)}, got {_shown(new, key)}"
            for key in refused
        ]
        again = f"{start_flag(config)} {checkpoint} --checkpoint.directory NEW"
        lines.append(
            f"write what it has to resume it, or {again} to start a new run from its weights"
        )
        raise ConfigError("\n".join(lines))
    for key in (key for key in differing if key not in SETTLED_LATER):
        end = END_OF_EXACTNESS if _is_among(key, INEXACT) else ""
        yield (
            f"changed since {checkpoint.name}: {key} {_shown(old, key)} -> {_shown(new, key)}{end}"
        )


def machine_changes(
    before: Mapping[str, Any], now: Mapping[str, Any], checkpoint: Path
) -> Iterator[str]:
    """Hold what only a started session knows (text, machine, versions) against the meta.json of the
    checkpoint that it resumes.

    Args:
        before: that meta.json.
        now: the part of the session's own meta.json that stays the same.
        checkpoint: where `before` was read.

    Yields:
        A line for each change after which the run is not bit for bit the same.

    Raises:
        ConfigError: the precision or the text is another.
    """
    before = {**now, **before}
    if before["precision"] != now["precision"]:
        raise ConfigError(
            f"trainer.precision: the run to resume computes in {before['precision']}, this session"
            f" would in {now['precision']}; write --trainer.precision {before['precision']}"
        )
    if before["data_sha256"] != now["data_sha256"]:
        raise ConfigError(
            f"data.source: the text is not the one that {checkpoint} was trained on, although its"
            " name is; bring the old text back, or start a new run from its weights in another"
            " checkpoint.directory"
        )
    for key in ("device", "threads"):
        if before[key] != now[key]:
            yield printable(
                f"changed since {checkpoint.name}: {key} {before[key]} ->"
                f" {now[key]}{END_OF_EXACTNESS}"
            )
    if (old := before["versions"]["torch"]) != (new := now["versions"]["torch"]):
        yield printable(f"changed since {checkpoint.name}: torch {old} -> {new}{END_OF_EXACTNESS}")


def start_flag(config: Config) -> str:
    """What names the checkpoint that a new run starts from: finetune.py has a key for it."""
    return "--init-from" if config.finetune is None else "--finetune.base"


def is_harmless(key: str) -> bool:
    """Whether a key, as `flattened` names it, says nothing about what a run computes."""
    return _is_among(key, HARMLESS)


def _may_change(key: str, old: Any, new: Any) -> bool:
    # what auto comes to is known only with torch: `machine_changes` sees to it
    if key == "trainer.precision":
        return "auto" in (old, new)
    return _is_among(key, HARMLESS + INEXACT)


def _is_among(key: str, names: tuple[str, ...]) -> bool:
    key = re.sub(r"\[\d+\]", "[]", key)
    return any(key == name or key.startswith(name + ".") for name in names)


def _shown(values: dict[str, Any], key: str) -> str:
    """As it is written in YAML, near enough; "nothing" for a key that the other side does not have."""
    return json.dumps(values[key], ensure_ascii=False) if key in values else "nothing"
