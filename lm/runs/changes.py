"""The changes that a run may make when it continues from a checkpoint, and those it may not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from lm.checkpoints.meta import Meta
from lm.config.schema.config import Config
from lm.config.schema.section import flattened, without_indices
from lm.system.errors import ConfigError, printable

# These keys may change without changing the result: where a run writes, how long it may take, what
# it measures.
HARMLESS = (
    "checkpoint",
    "logging",
    "data.cache_dir",
    "data.workers",
    "data.on_bad_row",  # it decides whether a run stops at a bad row; the other rows are the same
    # files may have moved: the text itself is compared, by its hash (machine_changes)
    "data.source.files",
    "data.source.parts[].source.files",
    "data.validation.files",
    "finetune.base",  # it may have moved: finetune.py compares its hash
    "finetune.choices",
    "finetune.report_prompts",
    "finetune.report_tokens",
    "model.gradient_checkpointing",
    "trainer.max_minutes",
    "trainer.validate_every",
    "trainer.early_stopping",
    "trainer.on_nonfinite",
    "trainer.nonfinite_limit",
)
# Each of them, if it is not null, makes a group of weights, and checkpoints number the groups.
RATES_OF_GROUPS = ("optimizer.embedding_lr", "optimizer.head_lr")
# These keys may change too, but they change the result, if only in the last bits. A key in neither
# list makes it a different run.
INEXACT = (
    "model.kernels",
    "optimizer.lr",
    *RATES_OF_GROUPS,
    "optimizer.muon_lr",
    "optimizer.muon_momentum",
    "optimizer.muon_momentum_warmup",
    "optimizer.schedule",
    "optimizer.schedule_by",
    "optimizer.warmup_steps",
    "optimizer.final_lr_fraction",
    "optimizer.decay_fraction",
    "optimizer.weight_decay",
    "optimizer.cautious_decay",
    "optimizer.betas",
    "optimizer.eps",
    "optimizer.grad_clip",
    "optimizer.ema_decay",
    "trainer.max_steps",
    "trainer.max_tokens",
    "trainer.max_epochs",
    "trainer.micro_batch_size",
    "trainer.validation_rows",
    "trainer.device",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.deterministic",
    "trainer.compile",
    "trainer.threads",
)
# The values that these stand for are known only on the machine: `machine_changes` compares them.
SETTLED_LATER = ("trainer.device", "trainer.threads")
END_OF_EXACTNESS = " (from here on the weights are not bit for bit those of an unchanged run)"


def changes(config: Config, meta: Meta) -> Iterator[str]:
    """Compare the configuration with a checkpoint's; yield a line for each allowed change.

    Raises:
        ConfigError: keys differ that must not; one line for each of them.
        CheckpointError: this version cannot read the checkpoint's configuration.
    """
    checkpoint = meta.folder
    old = flattened(meta.config.model_dump(mode="json"))
    new = flattened(config.model_dump(mode="json"))
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


def machine_changes(checkpoint: Meta, now: Mapping[str, Any]) -> Iterator[str]:
    """Compare text, machine and versions, which only a started session knows, with a checkpoint.

    Args:
        checkpoint: the meta.json of the checkpoint that the session resumes.
        now: the part of the session's own meta.json that stays the same.

    Yields:
        A line for each change after which the run is not bit for bit the same.

    Raises:
        ConfigError: the precision or the text is different.
    """
    before = {**now, **checkpoint.values}
    if before["precision"] != now["precision"]:
        raise ConfigError(
            f"trainer.precision: the run to resume computes in {before['precision']}, this session"
            f" would in {now['precision']}; write --trainer.precision {before['precision']}"
        )
    if before["data_sha256"] != now["data_sha256"]:
        raise ConfigError(
            f"data.source: the text is not the one that {checkpoint.folder} was trained on,"
            " although its name is; bring the old text back, or start a new run from its weights in"
            " another checkpoint.directory"
        )
    for key in ("device", "threads"):
        if before[key] != now[key]:
            yield printable(
                f"changed since {checkpoint.folder.name}: {key} {before[key]} ->"
                f" {now[key]}{END_OF_EXACTNESS}"
            )
    old, new = checkpoint.session.versions.torch, now["versions"]["torch"]
    if old not in ("", new):  # "": it is not recorded
        yield printable(
            f"changed since {checkpoint.folder.name}: torch {old} -> {new}{END_OF_EXACTNESS}"
        )


def start_flag(config: Config) -> str:
    """Return the flag that names a new run's first checkpoint; finetune.py has a key instead."""
    return "--init-from" if config.finetune is None else "--finetune.base"


def is_harmless(key: str) -> bool:
    """Return whether a key, as `flattened` names it, has no influence on what a run computes."""
    return _is_among(key, HARMLESS)


def _may_change(key: str, old: Any, new: Any) -> bool:
    # the value that auto stands for is known only with torch: `machine_changes` compares it
    if key == "trainer.precision":
        return "auto" in (old, new)
    if key in RATES_OF_GROUPS and None in (old, new):
        return False
    return _is_among(key, HARMLESS + INEXACT)


def _is_among(key: str, names: tuple[str, ...]) -> bool:
    key = without_indices(key)
    return any(key == name or key.startswith(name + ".") for name in names)


def _shown(values: dict[str, Any], key: str) -> str:
    """Return a value much as YAML would write it, or "nothing" for a key that is missing."""
    return json.dumps(values[key], ensure_ascii=False) if key in values else "nothing"
