"""The origin of a run's first weights: nothing, its own last checkpoint, or another run's.

It is decided before anything heavy is imported, so that a run which must not start is refused at
once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm.checkpoints.folder import (
    Checkpoint,
    checkpoints_in,
    newest_whole,
    open_checkpoint,
    pointed,
    step_name,
)
from lm.checkpoints.meta import Meta, Session, read_meta
from lm.config.schema.config import Config
from lm.runs.changes import changes, start_flag
from lm.runs.folder import RunFolder, parent_of_start
from lm.runs.lines import left_out
from lm.runs.recorded import keep_recorded
from lm.runs.results import FILE as RESULTS
from lm.runs.results import read_validations, validations_without_progress
from lm.system.errors import CheckpointError, ConfigError, printable

if TYPE_CHECKING:
    from lm.config.reader import Loaded
    from lm.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Origin:
    """The origin of a run's first weights.

    Attributes:
        checkpoint: the checkpoint that the weights come from; None: they are drawn.
        session: the session that wrote the checkpoint, if the run continues it; None for a new run.
        again: the folder may hold the logs of this run's own start, which a kill ended before its
            first checkpoint.
    """

    checkpoint: Checkpoint | None = None
    session: Session | None = None
    again: bool = False

    @property
    def resume(self) -> Path | None:
        """The path of the checkpoint that the run continues from, if any."""
        return self.path if self.session is not None else None

    @property
    def init_from(self) -> Path | None:
        """The path of the checkpoint whose weights a new run starts from, if any."""
        return self.path if self.session is None else None

    @property
    def path(self) -> Path | None:
        """The path of the checkpoint that the weights come from, if any."""
        return self.checkpoint.path if self.checkpoint is not None else None

    @property
    def meta(self) -> Meta | None:
        """The meta.json of that checkpoint."""
        return read_meta(self.checkpoint) if self.checkpoint is not None else None

    @property
    def step(self) -> int:
        """The number of updates that the run has made so far."""
        return (
            self.checkpoint.step if self.checkpoint is not None and self.session is not None else 0
        )

    @property
    def seconds(self) -> float:
        """The training time of the run so far."""
        return self.session.seconds if self.session is not None else 0.0

    @property
    def revisions(self) -> dict[str, str]:
        """The commits of the datasets that the run streams, by their keys."""
        return self.session.revisions if self.session is not None else {}

    @property
    def moving_rows(self) -> bool:
        """Whether each epoch of the run cuts packed rows elsewhere, as new runs do."""
        return self.session is None or self.session.moving_rows

    @property
    def parent(self) -> dict[str, Any] | None:
        """The `parent` that the run's checkpoints record, as it stands in meta.json: where the run
        started from.
        """
        if self.checkpoint is None:
            return None
        if self.session is not None:
            return self.checkpoint.meta.get("parent")
        return {
            "path": str(self.checkpoint.path),
            "step": self.checkpoint.step,
            "manifest_sha256": self.checkpoint.sha256,
        }

    @property
    def parent_sha256(self) -> str | None:
        """The hash of the manifest of the checkpoint that the run started from, if any."""
        if self.session is None:
            return self.checkpoint.sha256 if self.checkpoint is not None else None
        return self.session.parent.manifest_sha256 if self.session.parent is not None else None

    def make_tokenizer(self, config: Config, say: Callable[[str], None]) -> Tokenizer:
        """Return the configured tokenizer. A checkpoint brings its own, so that neither network nor
        text is needed.

        Raises:
            CheckpointError: the checkpoint's tokenizer is damaged.
            UserError: the configured one is another, or cannot be had.
        """
        from lm.tokenizer.tokenizer import require_same
        from lm.tokens.vocabulary import make_tokenizer

        if (meta := self.meta) is None:
            return make_tokenizer(config, say)
        name = config.tokenizer.name
        if problems := list(meta.other_vocabulary(config.tokenizer)):  # before any is learnt
            raise ConfigError("\n".join(problems))
        stored = meta.load_tokenizer()
        # not `meta.config`: a new run may start from a checkpoint of a later version
        configured = meta.values["config"].get("tokenizer")
        asked_for = configured.get("name") if isinstance(configured, dict) else None
        if name not in (meta.tokenizer.name, asked_for):
            require_same(make_tokenizer(config, say), stored)
        return stored


def resuming(checkpoint: Checkpoint) -> Origin:
    """Return the origin of a run that continues from a checkpoint. Raises CheckpointError."""
    return Origin(checkpoint, read_meta(checkpoint).session)


def find_origin(
    loaded: Loaded,
    folder: Path,
    resume: str | None,
    init_from: str | None,
    say: Callable[[str], None],
) -> Origin:
    """Decide where the weights come from, and print the decision.

    Nothing is changed yet. `make_room` changes the folder when nothing prevents the run any more.

    Args:
        loaded: the run's configuration as it is written now.
        folder: the run's folder.
        resume: None, "auto" or a checkpoint's path.
        init_from: None or a checkpoint's path.
        say: prints a line.

    Raises:
        CheckpointError: a checkpoint is missing or damaged.
        ConfigError: the configuration is not the one of the run that should go on, or the parent
            lies in the new run's folder.
    """
    if resume is not None:
        checkpoint = find_checkpoint(folder, resume, say, start_flag(loaded.config))
        if checkpoint is not None:
            origin, meta = resuming(checkpoint), read_meta(checkpoint)
            kept, lines = keep_recorded(loaded, meta)
            for line in (*lines, *changes(kept.config, meta)):
                say(printable(line))
            for message in left_out(folder / RESULTS, read_validations(folder)[1]):
                say(message)
            return origin
        say(f"{folder} holds no checkpoint to resume: starting from step 0")
        # otherwise a start that was killed early would begin again from random weights
        init_from = parent_of_start(folder) or init_from
    if init_from is None:
        return Origin(again=resume is not None)
    parent = _parent_checkpoint(loaded.config, init_from, folder)
    say(f"starting from the weights of {init_from} (step {parent.step:,})")
    return Origin(parent, again=resume is not None)


def make_room(run: RunFolder, origin: Origin, config: Config) -> str | None:
    """Prepare the run's folder for its origin; return a message about what was moved aside, if any.

    Raises:
        CheckpointError: the disk refused.
    """
    from lm.config.describe import to_yaml  # imports the YAML parser, which deciding does not need

    if origin.resume is not None:
        return run.rewind(origin.step)
    first_save = min(config.checkpoint.save_every, config.trainer.validate_every, config.max_steps)
    moved = run.begin_again(to_yaml(config), first_save) if origin.again else None
    return moved or run.start_fresh()


def find_checkpoint(
    folder: Path, resume: str, say: Callable[[str], None], start: str = "--init-from"
) -> Checkpoint | None:
    """Return the checkpoint to continue from: for `auto` the newest whole one, else the named one.

    None means that `auto` found no checkpoint.

    Args:
        folder: the run's folder.
        resume: "auto" or a checkpoint's path.
        say: prints a line.
        start: the flag with which the user would start a new run, for advice.

    Raises:
        CheckpointError: `auto` found damaged checkpoints alone; or the named one is missing,
            damaged or merged.
        ConfigError: the named one lies in another folder than this run's.
    """
    if resume == "auto":
        newest, problems = newest_whole(folder)
        for problem in problems:
            say(f"passed over: {problem}")
        if newest is not None:
            _check_resumable(newest)
        elif problems:
            count = (
                f"its {len(problems)} checkpoints are"
                if len(problems) > 1
                else "its one checkpoint is"
            )
            raise CheckpointError(
                f"{folder}: {count} damaged; train again without --resume (what is there is kept,"
                " in a folder beside it)"
            )
        return newest
    with contextlib.suppress(CheckpointError):
        if checkpoints_in(resume):  # to go on from its best one would undo the later ones
            raise ConfigError(
                f"command line: --resume {resume}: this is a run's folder; write --resume auto"
                f" --checkpoint.directory {resume} to continue it, or name one of its checkpoints"
            )
    named = open_checkpoint(resume)
    parent = named.path.parent
    if parent != folder.resolve():
        raise ConfigError(
            f"command line: --resume {resume}: that run is in {parent}, but"
            f" checkpoint.directory is {folder}; write --checkpoint.directory {parent} to"
            f" continue it, or {start} {resume} to start a new run from its weights"
        )
    named.verify()
    _check_resumable(named)
    return Checkpoint(folder / named.path.name)


def is_finished(config: Config, folder: Path, step: int, ended: bool = False) -> bool:
    """Return whether nothing is left to do for a run that stands at `step`.

    Its budget or patience is used up, the last weights were validated, and final.ckpt, which is
    written last, points to them.

    Args:
        ended: the deadline of a run whose schedule follows the clock was reached.
    """
    steps = config.most_steps
    if steps is not None and step > steps:
        return True
    validations = [line for line in read_validations(folder)[0] if line.step <= step]
    if pointed(folder, "final.ckpt") != folder / step_name(step) or not any(
        line.step == step for line in validations
    ):
        return False
    patience = config.trainer.early_stopping
    return (
        ended
        or step == steps
        or (patience is not None and validations_without_progress(validations) >= patience)
    )


def _check_resumable(checkpoint: Checkpoint) -> None:
    if not {"train_state.pt", "train_state.json"} & checkpoint.files.keys():
        raise CheckpointError(
            f"{checkpoint.path} was merged (python -m tools.merge_lora) and holds weights alone: no"
            " run can go on from it; start a new one from it, with finetune.base or --init-from"
        )


def _parent_checkpoint(config: Config, init_from: str, folder: Path) -> Checkpoint:
    parent = open_checkpoint(init_from)
    if parent.path.is_relative_to(folder.resolve()):
        raise ConfigError(
            f"command line: {start_flag(config)} {init_from} lies in checkpoint.directory"
            f" ({folder}), which the new run would move aside; write --checkpoint.directory with a"
            f" new folder, or --resume {init_from} to continue that run"
        )
    parent.verify()
    return parent
