"""A run from its folder's lock to its end: one training session, or several where a non-finite step
sends the run back to a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lm.checkpoints.folder import point, pointed, step_directories
from lm.config.schema.config import Config
from lm.runs.folder import RunFolder
from lm.runs.incidents import GoBack
from lm.runs.origin import Origin, find_origin, is_finished
from lm.system.errors import NonFiniteError, keep_tracebacks_in
from lm.system.signals import StopSignals
from lm.training.processes import check_launcher, first_decides, is_first

TrainFrom = Callable[[Origin, RunFolder | None, StopSignals], None]


def launch(
    config: Config, resume: str | None, init_from: str | None, train_from: TrainFrom
) -> None:
    """Claim the run's folder and train in it, again from its newest checkpoint where
    `trainer.on_nonfinite` says so.

    Args:
        config: the run's configuration.
        resume: None, "auto" or a checkpoint's path.
        init_from: None or a checkpoint's path.
        train_from: one session; its RunFolder is None on all processes but the first.

    Raises:
        UserError: what stands against the run.
        Stopped: a signal ended it; everything is saved.
    """
    folder = Path(config.checkpoint.directory)
    check_launcher(config.trainer)
    keep_tracebacks_in(folder)
    run: RunFolder | None = None

    def claim() -> Origin | None:
        nonlocal run
        run = run or RunFolder(folder)
        return where_to_start(config, folder, resume, init_from)

    try:
        with StopSignals(speaks=is_first()) as signals:
            while (origin := first_decides(claim, config.trainer)) is not None:
                try:
                    return train_from(origin, run, signals)
                except GoBack as back:
                    if not step_directories(folder):
                        raise NonFiniteError(
                            f"{back}; but it has none yet: checkpoint.save_every is"
                            f" {config.checkpoint.save_every}"
                        ) from None
                    if run is not None:
                        print(back, flush=True)
                    resume, init_from = "auto", None
    finally:
        if run is not None:
            run.close()


def where_to_start(
    config: Config, folder: Path, resume: str | None, init_from: str | None
) -> Origin | None:
    """Where the weights come from; None for a run that has reached its end already. Says what was
    decided.
    """
    origin = find_origin(config, folder, resume, init_from, print)
    if origin.resume is None or not is_finished(config, folder, origin.step):
        return origin
    if pointed(folder, "final.ckpt") != origin.resume:  # where the budget was lowered
        point(folder, "final.ckpt", origin.resume)
    more = (
        "a larger budget (trainer.max_steps, max_tokens) or patience (early_stopping) lets it go on"
    )
    print(f"{folder} has finished its {origin.step:,} steps; {more}")
    return None
