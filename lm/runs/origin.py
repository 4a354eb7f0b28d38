"""Where a run's first weights come from: nothing, its own last checkpoint, or another run's.

Decided before anything heavy is imported, so that a run which must not start is refused at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm.checkpoints.folder import (
    newest_whole,
    open_checkpoint,
    pointed,
    read_manifest,
    read_meta,
    step_name,
    verify,
)
from lm.checkpoints.meta import check_session, read_tokenizer
from lm.config.schema.config import Config
from lm.runs.changes import changes, start_flag
from lm.runs.folder import RunFolder, parent_of_start
from lm.runs.results import read_validations, validations_without_progress
from lm.system.errors import CheckpointError, ConfigError, printable

if TYPE_CHECKING:
    from lm.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Origin:
    """Where the weights come from. At most one of the two paths is set; `meta` is that
    checkpoint's.

    `again`: there is no checkpoint to resume, and what was logged on the way to the first one may
    be the same run's.
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
        return (
            self.meta.get("seconds", 0.0)
            if self.resume is not None and self.meta is not None
            else 0.0
        )

    @property
    def revisions(self) -> dict[str, str]:
        """The commits of the datasets that the run streams, by their keys."""
        return (
            self.meta.get("revisions", {})
            if self.resume is not None and self.meta is not None
            else {}
        )

    @property
    def parent(self) -> dict[str, Any] | None:
        """What the run's checkpoints record as the one they descend from."""
        if self.meta is None:
            return None
        if self.init_from is None:
            return self.meta.get("parent")
        return {
            "path": str(self.init_from),
            "step": self.meta["step"],
            "manifest_sha256": read_manifest(self.init_from)["sha256"],
        }

    def load_tokenizer(self, name: str) -> Tokenizer:
        """Return the tokenizer `name`. A checkpoint brings its own, so that no network is needed.

        Raises:
            ConfigError: `name` is not the checkpoint's, and means another tokenizer.
        """
        from lm.tokenizer.tokenizer import load_tokenizer, require_same

        if self.path is None or self.meta is None:
            return load_tokenizer(name)
        stored = read_tokenizer(self.path, self.meta)
        configured = self.meta["config"].get("tokenizer")
        names = {self.meta["tokenizer"]["name"]}
        if isinstance(configured, dict):
            names.add(configured.get("name"))
        if name not in names:
            require_same(load_tokenizer(name), stored)
        return stored


def find_origin(
    config: Config,
    folder: Path,
    resume: str | None,
    init_from: str | None,
    say: Callable[[str], None],
) -> Origin:
    """Decide, and say what was decided. Nothing is changed yet: `make_room` does that when nothing
    stands against the run any more.

    Args:
        config: the run's configuration.
        folder: the run's folder.
        resume: None, "auto" or a checkpoint's path.
        init_from: None or a checkpoint's path.
        say: shows a line to the user.

    Raises:
        CheckpointError: a checkpoint is missing or damaged.
        ConfigError: the configuration is not the one of the run that should go on, or the parent
            lies where the new run is to write.
    """
    if (
        resume is not None
        and (found := find_checkpoint(folder, resume, say, start_flag(config))) is not None
    ):
        meta = read_meta(found)
        check_session(found, meta)
        for line in changes(config, meta["config"], found):
            say(printable(line))
        return Origin(resume=found, meta=meta)
    if resume is not None:
        say(f"{folder} holds no checkpoint to resume: starting from step 0")
        # else a start that was killed early would begin again from random weights
        init_from = parent_of_start(folder) or init_from
    if init_from is None:
        return Origin(again=resume is not None)
    parent = _parent_checkpoint(config, init_from, folder)
    meta = read_meta(parent)
    say(f"starting from the weights of {init_from} (step {meta['step']:,})")
    return Origin(init_from=parent, meta=meta, again=resume is not None)


def make_room(run: RunFolder, origin: Origin, config: Config) -> str | None:
    """Prepare the run's folder for what `origin` decided; return what was moved aside for it, or
    None. Raises CheckpointError.
    """
    from lm.config.describe import to_yaml  # brings the YAML parser, which deciding does without

    if origin.resume is not None:
        return run.rewind(origin.step)
    first_save = min(config.checkpoint.save_every, config.trainer.validate_every, config.max_steps)
    return (
        run.begin_again(to_yaml(config), first_save) if origin.again else None
    ) or run.start_fresh()


def find_checkpoint(
    folder: Path, resume: str, say: Callable[[str], None], start: str = "--init-from"
) -> Path | None:
    """The checkpoint to continue from: for `auto` the newest whole one (None: nothing to resume),
    else the one that is named.

    `start` is the flag that advice names for a new run.

    Raises:
        CheckpointError: `auto` found checkpoints, all of them damaged; or the named one is missing
            or damaged, or was merged.
        ConfigError: the named one lies in another folder than this run's.
    """
    if resume == "auto":
        found, problems = newest_whole(folder)
        for problem in problems:
            say(f"passed over: {problem}")
        if found is not None:
            _check_resumable(found)
        if found is None and problems:
            count = (
                f"its {len(problems)} checkpoints are"
                if len(problems) > 1
                else "its one checkpoint is"
            )
            raise CheckpointError(
                f"{folder}: {count} damaged; train again without --resume (what is there is kept,"
                " in a folder beside it)"
            )
        return found
    found = open_checkpoint(resume)
    if found.parent != folder.resolve():
        raise ConfigError(
            f"command line: --resume {resume}: that run is in {found.parent}, but"
            f" checkpoint.directory is {folder}; write --checkpoint.directory {found.parent} to"
            f" continue it, or {start} {resume} to start a new run from its weights"
        )
    verify(found)
    _check_resumable(found)
    return folder / found.name


def is_finished(config: Config, folder: Path, step: int) -> bool:
    """Nothing is left to do for a run that stands at `step`: its budget or patience is used up, the
    last weights were scored, and final.ckpt is set, which comes last.
    """
    if step > config.max_steps:
        return True
    validations = [line for line in read_validations(folder)[0] if line.step <= step]
    if pointed(folder, "final.ckpt") != folder / step_name(step) or not any(
        line.step == step for line in validations
    ):
        return False
    patience = config.trainer.early_stopping
    return step == config.max_steps or (
        patience is not None and validations_without_progress(validations) >= patience
    )


def _check_resumable(checkpoint: Path) -> None:
    if not {"train_state.pt", "train_state.json"} & read_manifest(checkpoint)["files"].keys():
        raise CheckpointError(
            f"{checkpoint} was merged (python -m tools.merge_lora) and holds weights alone: no run"
            " can go on from it; start a new one from it, with finetune.base or --init-from"
        )


def _parent_checkpoint(config: Config, init_from: str, folder: Path) -> Path:
    parent = open_checkpoint(init_from)
    if parent.is_relative_to(folder.resolve()):
        raise ConfigError(
            f"command line: {start_flag(config)} {init_from} lies in checkpoint.directory"
            f" ({folder}), which the new run would move aside; write --checkpoint.directory with a"
            f" new folder, or --resume {init_from} to continue that run"
        )
    verify(parent)
    return parent
