"""Pretrain a decoder on text.

python train.py --config config_smoke.yaml
python train.py --config config_smoke.yaml --optimizer.lr 1e-3 --trainer.max_steps 200
python train.py --config config_smoke.yaml --resume auto
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from lm.commands import Assemble, answer_without_training, load_config, training_parser
from lm.config.reader import Loaded
from lm.runs.incidents import GoBack
from lm.runs.origin import Origin
from lm.system import errors
from lm.system.errors import ConfigError
from lm.training.launch import Run

if TYPE_CHECKING:
    from lm.training.parts import Parts
    from model import Decoder


def main() -> None:
    """Parse the command line, check the configuration, and train."""
    arguments, overrides = training_parser("train.py", __doc__, init_from=True).parse_known_args()
    loaded = load_config(arguments.config, overrides)
    if loaded.config.finetune is not None:
        raise ConfigError(
            f"{arguments.config}: finetune: this configuration is for finetune.py; run it with"
            " that, or remove the section"
        )
    if not answer_without_training(arguments, loaded, assemble):
        train(loaded, assemble, arguments.resume, arguments.init_from)


def train(loaded: Loaded, assemble: Assemble, resume: str | None, init_from: str | None) -> None:
    """Train a run to its end: in one session, or in several where it goes back to a checkpoint.

    Raises:
        UserError: the run cannot start, or cannot go on.
        Stopped: a signal ended it; everything is saved.
    """
    with Run(loaded, resume, init_from) as run:  # holds the folder, answers signals
        while (start := run.next_start()) is not None:  # None: nothing is left to do
            try:
                fit(assemble(run.loaded, start, run.say), start, run)
                return
            except GoBack as back:  # trainer.on_nonfinite: rollback
                run.go_back(back)


def assemble(loaded: Loaded, start: Origin, say: Callable[[str], None]) -> Parts:
    """Make the parts of a session. Torch and Lightning are imported here: they take seconds."""
    from data import PackedDataModule
    from lm.checkpoints.adapters import load_whole
    from lm.training.parts import Parts
    from model import Decoder

    config = loaded.config
    if start.init_from and start.meta and loaded.origins["tokenizer.name"] == "default":
        config = config.with_tokenizer(start.meta.tokenizer.section)
    tokenizer = start.make_tokenizer(config, say)

    def make_decoder() -> Decoder:
        decoder = Decoder(config.with_vocabulary(tokenizer.vocab_size).model)
        if start.checkpoint is not None and start.session is None:
            load_whole(decoder, start.checkpoint)
        return decoder

    data = PackedDataModule(config, tokenizer, say, start.revisions, start.moving_rows)
    return Parts(data.sized_config, tokenizer, data, make_decoder)


def fit(parts: Parts, start: Origin, run: Run) -> None:
    """Train one session, until the run ends, stops, or goes back to a checkpoint (GoBack)."""
    from lm.training import callbacks
    from lm.training.module import LanguageModel
    from lm.training.trainer import make_trainer, prepare_torch

    prepare_torch(parts)
    run.begin(parts, start)
    module = LanguageModel(parts, run.incidents(parts.tokenizer), start.resume)
    module.deadline = run.deadline
    module.configure_model()
    run.open_record(parts, start, module.decoder)
    after_each_step = [  # in this order
        callbacks.ChooseRows(run, parts, start),
        callbacks.Compile(run, parts, start),
        callbacks.DecideStop(run),
        callbacks.LogMetrics(run),
        callbacks.SaveCheckpoint(run),
        callbacks.Validate(run, parts),
        callbacks.EarlyStopping(run),
        callbacks.EndStep(run),
    ]
    trainer = make_trainer(parts, after_each_step, run.logger)
    parts.data.start_step = start.step
    try:
        trainer.fit(module, datamodule=parts.data)
    finally:
        parts.data.teardown("fit")  # Lightning calls it only if nothing was raised
    run.finish(module.step)


if __name__ == "__main__":
    errors.run(main)
