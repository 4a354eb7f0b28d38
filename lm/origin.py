"""Where a run's first weights come from: nothing, its own last checkpoint, or another run's.

Decided before anything heavy is imported, so that a run which must not start is refused at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm.checkpoint import newest_whole, open_checkpoint, pointed, read_manifest, read_meta, step_name, verify
from lm.errors import CheckpointError, ConfigError, printable
from lm.run import RunFolder, parent_of_start, read_evaluations, validations_without_progress
from lm.schema import Config
from lm.stored import check_session, read_config

# What may change when a run goes on without changing what it computes: where it writes, how long it may take, what it measures.
HARMLESS = (
    "checkpoint",
    "logging",
    "data.cache_dir",
    "data.workers",
    "data.on_bad_row",
    "data.source.files",  # wherever they lie: the text itself is compared, by its hash (machine_changes)
    "data.source.parts[].source.files",
    "data.validation.files",
    "model.gradient_checkpointing",
    *(f"trainer.{key}" for key in ("max_epochs", "max_minutes", "validate_every", "early_stopping", "on_nonfinite", "nonfinite_limit")),
)
# What may change and changes the result, if only in the last bits. Anything that is in neither list makes it another run.
INEXACT = (
    *(f"optimizer.{key}" for key in ("lr", "schedule", "warmup_steps", "final_lr_fraction", "decay_fraction", "weight_decay")),
    *(f"optimizer.{key}" for key in ("betas", "eps", "grad_clip", "ema_decay")),
    *(f"trainer.{key}" for key in ("max_steps", "max_tokens", "micro_batch_size", "validation_rows")),
    *(f"trainer.{key}" for key in ("device", "devices", "num_nodes", "strategy", "deterministic", "compile", "threads")),
)
# What these come to is known only on the machine: `machine_changes` sees to them.
SETTLED_LATER = ("trainer.device", "trainer.threads")
END_OF_EXACTNESS = " (from here on the weights are not bit for bit those of an unchanged run)"


@dataclass(frozen=True)
class Origin:
    """Where the weights come from. At most one of the two paths is set; `meta` is that checkpoint's.

    `again`: there is no checkpoint to resume, and what was logged on the way to the first one may be the same run's.
    """

    resume: Path | None = None
    init_from: Path | None = None
    meta: dict[str, Any] | None = None
    again: bool = False

    @property
    def path(self) -> Path | None:
        """The checkpoint that the weights come from, if any."""
        return self.resume or self.init_from

    @property
    def step(self) -> int:
        """Updates that the run has behind it."""
        return self.meta["step"] if self.resume is not None and self.meta is not None else 0

    @property
    def seconds(self) -> float:
        """Training time that the run has behind it."""
        return self.meta.get("seconds", 0.0) if self.resume is not None and self.meta is not None else 0.0

    @property
    def parent(self) -> dict[str, Any] | None:
        """What the run's checkpoints record as the one they descend from."""
        if self.meta is None:
            return None
        if self.init_from is None:
            return self.meta.get("parent")
        return {"path": str(self.init_from), "step": self.meta["step"], "manifest_sha256": read_manifest(self.init_from)["sha256"]}


def find_origin(config: Config, folder: Path, resume: str | None, init_from: str | None, say: Callable[[str], None]) -> Origin:
    """Decide, and say what was decided. Nothing is changed yet: `make_room` does that when nothing stands against the run any more.

    Args:
        config: the run's configuration.
        folder: the run's folder.
        resume: None, "auto" or a checkpoint's path.
        init_from: None or a checkpoint's path.
        say: shows a line to the user.

    Raises:
        CheckpointError: a checkpoint is missing or damaged.
        ConfigError: the configuration is not the one of the run that should go on, or the parent lies where the new run is to write.
    """
    if resume is not None and (found := find_checkpoint(folder, resume, say)) is not None:
        meta = read_meta(found)
        check_session(found, meta)
        for line in changes(config, meta["config"], found):
            say(printable(line))
        return Origin(resume=found, meta=meta)
    if resume is not None:
        say(f"{folder} holds no checkpoint to resume: starting from step 0")
        init_from = parent_of_start(folder)  # else a start that was killed early would begin again from random weights
    if init_from is None:
        return Origin(again=resume is not None)
    parent = _parent_checkpoint(init_from, folder)
    meta = read_meta(parent)
    say(f"starting from the weights of {init_from} (step {meta['step']:,})")
    return Origin(init_from=parent, meta=meta, again=resume is not None)


def make_room(run: RunFolder, origin: Origin, config: Config) -> str | None:
    """Prepare the run's folder for what `origin` decided; return what was moved aside for it, or None. Raises CheckpointError."""
    from lm.config_text import to_yaml  # brings the YAML parser, which deciding does without

    if origin.resume is not None:
        return run.rewind(origin.step)
    first_save = min(config.checkpoint.save_every, config.trainer.validate_every, config.max_steps)
    return (run.begin_again(to_yaml(config), first_save) if origin.again else None) or run.start_fresh()


def find_checkpoint(folder: Path, resume: str, say: Callable[[str], None]) -> Path | None:
    """The checkpoint to continue from: for `auto` the newest whole one (None: nothing to resume), else the one that is named.

    Raises:
        CheckpointError: `auto` found checkpoints, all of them damaged; or the named one is missing or damaged.
        ConfigError: the named one lies in another folder than this run's.
    """
    if resume == "auto":
        found, problems = newest_whole(folder)
        for problem in problems:
            say(f"passed over: {problem}")
        if found is None and problems:
            count = f"its {len(problems)} checkpoints are" if len(problems) > 1 else "its one checkpoint is"
            raise CheckpointError(f"{folder}: {count} damaged; train again without --resume (what is there is kept, in a folder beside it)")
        return found
    found = open_checkpoint(resume)
    if found.parent != folder.resolve():
        raise ConfigError(
            f"command line: --resume {resume}: that run is in {found.parent}, but checkpoint.directory is {folder}; "
            f"write --checkpoint.directory {found.parent} to continue it, or --init-from {resume} to start a new run from its weights"
        )
    verify(found)
    return folder / found.name


def changes(config: Config, stored: Mapping[str, Any], checkpoint: Path) -> Iterator[str]:
    """Hold the configuration against the one that a checkpoint was saved with; yields a line for each change that is allowed.

    Raises:
        ConfigError: something differs that may not; one line for each such key.
        CheckpointError: the stored configuration cannot be understood.
    """
    before = read_config(checkpoint, stored)
    old, new = dict(_leaves(before.model_dump(mode="json"))), dict(_leaves(config.model_dump(mode="json")))
    differing = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    if refused := [key for key in differing if not _may_change(key, old.get(key), new.get(key))]:
        lines = [f"{key}: the run to resume has {_shown(old, key)}, got {_shown(new, key)}" for key in refused]
        lines.append(f"write what it has to resume it, {_start_again(checkpoint)}")
        raise ConfigError("\n".join(lines))
    for key in (key for key in differing if key not in SETTLED_LATER):
        end = END_OF_EXACTNESS if _is_among(key, INEXACT) else ""
        yield f"changed since {checkpoint.name}: {key} {_shown(old, key)} -> {_shown(new, key)}{end}"


def machine_changes(before: Mapping[str, Any], now: Mapping[str, Any], checkpoint: Path) -> Iterator[str]:
    """Hold what only a started session knows (text, machine, versions) against the meta.json of the checkpoint that it resumes.

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
            f"trainer.precision: the run to resume computes in {before['precision']}, this session would in {now['precision']}; "
            f"write --trainer.precision {before['precision']}"
        )
    if before["data_sha256"] != now["data_sha256"]:
        raise ConfigError(
            f"data.source: the text is not the one that {checkpoint} was trained on, although its name is; bring the old text back, "
            + _start_again(checkpoint)
        )
    for key in ("device", "threads"):
        if before[key] != now[key]:
            yield printable(f"changed since {checkpoint.name}: {key} {before[key]} -> {now[key]}{END_OF_EXACTNESS}")
    if (old := before["versions"]["torch"]) != (new := now["versions"]["torch"]):
        yield printable(f"changed since {checkpoint.name}: torch {old} -> {new}{END_OF_EXACTNESS}")


def is_finished(config: Config, folder: Path, step: int) -> bool:
    """Nothing is left to do for a run that stands at `step`: its budget or patience is used up, the last weights were scored, and
    final.ckpt is set, which comes last.
    """
    if step > config.max_steps:
        return True
    evaluations = [line for line in read_evaluations(folder) if line.step <= step]
    if pointed(folder, "final.ckpt") != folder / step_name(step) or not any(line.step == step for line in evaluations):
        return False
    patience = config.trainer.early_stopping
    return step == config.max_steps or (patience is not None and validations_without_progress(evaluations) >= patience)


def _parent_checkpoint(init_from: str, folder: Path) -> Path:
    parent = open_checkpoint(init_from)
    if parent.is_relative_to(folder.resolve()):
        raise ConfigError(
            f"command line: --init-from {init_from} lies in checkpoint.directory ({folder}), which the new run would move aside; "
            f"write --checkpoint.directory with a new folder, or --resume {init_from} to continue that run"
        )
    verify(parent)
    return parent


def _start_again(checkpoint: Path) -> str:
    return f"or --init-from {checkpoint} --checkpoint.directory NEW to start a new run from its weights"


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Keys with their values, those in sections and in lists of sections too."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}".lstrip("."))
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for i, item in enumerate(value):
            yield from _leaves(item, f"{name}[{i}]")
    else:
        yield name, value


def _may_change(key: str, old: Any, new: Any) -> bool:
    if key == "trainer.precision":  # what auto comes to is known only with torch: `machine_changes` sees to it
        return "auto" in (old, new)
    return _is_among(key, HARMLESS + INEXACT)


def _is_among(key: str, names: tuple[str, ...]) -> bool:
    key = re.sub(r"\[\d+\]", "[]", key)
    return any(key == name or key.startswith(name + ".") for name in names)


def _shown(values: dict[str, Any], key: str) -> str:
    """As it is written in YAML, near enough; "nothing" for a key that the other side does not have."""
    return json.dumps(values[key], ensure_ascii=False) if key in values else "nothing"
