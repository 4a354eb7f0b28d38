"""Where a run's first weights come from: nothing, its own last checkpoint, or another run's.

Decided before anything heavy is imported, so that a run which must not start is refused at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm.checkpoint import open_checkpoint, read_manifest, read_meta, verify
from lm.errors import ConfigError
from lm.run import RunFolder, find_checkpoint, read_evaluations, validations_without_progress
from lm.schema import Config

# What may change when a run goes on: its length, its learning, where it runs, what it writes down. Anything else makes it another run.
CHANGEABLE = (
    "optimizer",
    "checkpoint",
    "logging",
    "data.cache_dir",
    "data.workers",
    "data.on_bad_row",
    "model.gradient_checkpointing",
    *(f"trainer.{key}" for key in ("max_steps", "max_tokens", "max_minutes", "validate_every", "validation_rows", "early_stopping")),
    *(f"trainer.{key}" for key in ("device", "devices", "micro_batch_size", "deterministic", "compile", "threads")),
)
# Of these, the ones that change the result, if only in the last bits.
INEXACT = (
    "optimizer",
    "trainer.max_steps",
    "trainer.max_tokens",
    *(f"trainer.{key}" for key in ("device", "devices", "micro_batch_size", "compile", "threads")),
)


@dataclass(frozen=True)
class Origin:
    """Where the weights come from. At most one of the two paths is set; `meta` is that checkpoint's."""

    resume: Path | None = None
    init_from: Path | None = None
    meta: dict[str, Any] | None = None

    @property
    def path(self) -> Path | None:
        """The checkpoint that the weights come from, if any."""
        return self.resume or self.init_from

    @property
    def step(self) -> int:
        """Updates that the run has behind it."""
        return self.meta["step"] if self.resume is not None and self.meta is not None else 0

    @property
    def parent(self) -> dict[str, Any] | None:
        """What the run's checkpoints record as the one they descend from."""
        if self.meta is None:
            return None
        if self.init_from is None:
            return self.meta.get("parent")
        return {"path": str(self.init_from), "step": self.meta["step"], "manifest_sha256": read_manifest(self.init_from)["sha256"]}


def find_origin(
    config: Config, folder: Path, resume: str | None, init_from: str | None, run: RunFolder | None, say: Callable[[str], None]
) -> Origin:
    """Decide, say what was decided, and make room in the run's folder.

    Args:
        config: the run's configuration.
        folder: the run's folder.
        resume: None, "auto" or a checkpoint's path.
        init_from: None or a checkpoint's path.
        run: the locked folder; None on all processes but the first, which only look.

    Raises:
        CheckpointError: a checkpoint is missing or damaged.
        ConfigError: the configuration is not the one of the run that should go on.
    """
    if init_from is not None:
        parent = open_checkpoint(init_from)
        verify(parent)
        origin = Origin(init_from=parent, meta=read_meta(parent))
        say(f"starting from the weights of {init_from} (step {origin.meta['step']:,})" if origin.meta else "")
    elif resume is not None and (found := find_checkpoint(folder, resume, say)) is not None:
        origin = Origin(resume=found, meta=read_meta(found))
        for line in changes(config, read_meta(found)["config"], found):
            say(line)
    else:
        if resume == "auto":
            say(f"{folder} holds no checkpoint to resume: starting from step 0")
        origin = Origin()
    if run is not None:
        moved = run.rewind(origin.step) if origin.resume is not None else run.start_fresh()
        if moved:
            say(moved)
    return origin


def changes(config: Config, stored: dict[str, Any], checkpoint: Path) -> Iterator[str]:
    """Hold the configuration against the one that a run was started with; yields what is worth saying.

    Raises:
        ConfigError: something differs that may not.
    """
    old, new = dict(_leaves(stored)), dict(_leaves(config.model_dump(mode="json")))
    differing = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    refused = [key for key in differing if not _is_among(key, CHANGEABLE)]
    if refused:
        lines = [f"{key}: this run was started with {_shown(old, key)}, got {_shown(new, key)}" for key in refused]
        advice = f"write the old values to resume it, or --init-from {checkpoint} to start a new run from its weights"
        raise ConfigError("\n".join([*lines, advice]))
    for key in differing:
        if _is_among(key, INEXACT):
            yield f"changed since this run was started: {key} {_shown(old, key)} -> {_shown(new, key)}; from here on it is another run, to the bit"


def is_finished(config: Config, folder: Path, step: int) -> bool:
    """Nothing is left to do for a run that stands at `step`: its budget or patience is used up, and the last weights were scored."""
    evaluations = read_evaluations(folder)
    if not any(line.step == step for line in evaluations):
        return False
    patience = config.trainer.early_stopping
    return step >= config.max_steps or (patience is not None and validations_without_progress(evaluations) >= patience)


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _is_among(key: str, names: tuple[str, ...]) -> bool:
    return any(key == name or key.startswith(name + ".") for name in names)


def _shown(values: dict[str, Any], key: str) -> str:
    value = values.get(key)
    return "nothing" if value is None else repr(value) if isinstance(value, str) else str(value)
