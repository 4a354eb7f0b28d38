"""Teach a base checkpoint to follow instructions.

python finetune.py --config config_finetune.yaml
python finetune.py --config config_finetune.yaml --finetune.method lora
python finetune.py --config config_finetune.yaml --resume auto
"""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from lm.checkpoints.base import Base, open_base, tokenizer_of
from lm.checkpoints.folder import Checkpoint, open_checkpoint, pointed
from lm.commands import answer_without_training, load_config, training_parser
from lm.config.reader import Loaded
from lm.config.schema.config import Config
from lm.runs.origin import Origin, resuming
from lm.system import errors
from lm.system.environment import is_first
from lm.system.errors import CheckpointError, ConfigError, UserError
from train import train

if TYPE_CHECKING:
    from lm.optim.objectives import Objective
    from lm.training.parts import Parts
    from model import Decoder


def main() -> None:
    """Parse the command line, check the configuration, train, and write the report."""
    arguments, overrides = training_parser(
        "finetune.py", __doc__, init_from=False
    ).parse_known_args()
    loaded = load_config(arguments.config, overrides)
    if loaded.config.finetune is None:
        raise ConfigError(
            f"{arguments.config}: finetune: missing; write the section, with at least base, or run"
            " train.py"
        )
    if not answer_without_training(arguments, loaded, assemble):
        train(loaded, assemble, arguments.resume, loaded.config.finetune.base)
        if is_first():  # one process answers the prompts
            report(loaded.config)
            best = Path(loaded.config.checkpoint.directory, "best.ckpt")
            if best.exists() and loaded.config.data.chat is not None:
                print(f"next: python infer.py --ckpt {shlex.quote(str(best))} --chat")


def assemble(loaded: Loaded, start: Origin, say: Callable[[str], None]) -> Parts:
    """Make the parts of a session. Torch and Lightning are imported here: they take seconds."""
    from data import PackedDataModule
    from lm.training.parts import Parts

    config, base = loaded.config, open_base(loaded.config)
    require_same_base(base, start.parent_sha256)
    tokenizer = tokenizer_of(config)
    make_decoder = functools.partial(decoder_of_base, config, base)
    data = PackedDataModule(config, tokenizer, say, start.revisions, start.moving_rows)
    objective = make_objective(config, make_decoder)
    return Parts(data.sized_config, tokenizer, data, make_decoder, objective)


def require_same_base(base: Base, parent_sha256: str | None) -> None:
    """Raise CheckpointError if the run started from another base: best.ckpt moves on."""
    if parent_sha256 not in (None, base.checkpoint.sha256):
        raise CheckpointError(
            f"finetune.base: {base.checkpoint.path} is not the checkpoint that the run started"
            " from; name that one"
        )


def decoder_of_base(config: Config, base: Base) -> Decoder:
    """Return the base's decoder, with the adapters that `finetune.method` asks for."""
    from torch import nn

    from lm.checkpoints.adapters import load_whole
    from lm.surgery.lora import add_adapters
    from model import Decoder

    assert config.finetune is not None
    decoder = Decoder(config.model, initialise=False)
    for layer in decoder.modules():
        # torch's own draws, though the base's weights replace them: the adapters' first weights
        # come from the same random state, and so are the same, as in earlier versions.
        if isinstance(layer, nn.Linear | nn.Embedding):
            layer.reset_parameters()
    load_whole(decoder, base.checkpoint)
    if config.finetune.method != "full":
        add_adapters(decoder, config.finetune.lora, four_bits=config.finetune.method == "qlora")
    return decoder


def make_objective(config: Config, make_decoder: Callable[[], Decoder]) -> Objective:
    """Return the loss that `finetune.objective` names."""
    from lm.optim.objectives import NEXT_TOKEN, Preference, frozen_reference
    from lm.surgery.lora import adapters_off

    assert config.finetune is not None
    if config.finetune.objective == "sft":
        return NEXT_TOKEN
    # A frozen base is its own reference.
    reference = (
        frozen_reference(make_decoder()) if config.finetune.method == "full" else adapters_off
    )
    return Preference(config.finetune.dpo_beta, reference)


def report(config: Config) -> None:
    """Compare the best checkpoint of a finished run with its base, unless the report exists."""
    folder = Path(config.checkpoint.directory)
    final = folder / "final.ckpt"
    written = folder / "answers.json"
    assert config.finetune is not None
    if not final.exists() or not config.finetune.report_prompts or config.data.chat is None:
        return
    if written.exists() and written.stat().st_mtime >= final.lstat().st_mtime:
        return

    from lm import load
    from lm.evaluation.answers import measure_answers
    from lm.reports.finetune import write_report
    from lm.system.device import choose_device
    from lm.tokens.sources import held_out_conversations

    device = choose_device(config.trainer.device)
    tuned = open_checkpoint(pointed(folder, "best.ckpt") or final).path
    base = open_base(config)
    require_same_base(base, resuming(Checkpoint(tuned)).parent_sha256)
    chat, conversations = held_out_conversations(config, tokenizer_of(config))
    print(
        f"report: {base.checkpoint.path.name} of the base and {tuned.name} on"
        f" {len(conversations):,} held-out conversations",
        flush=True,
    )
    before = load(base.checkpoint, device).decoder
    after = load(tuned, device).decoder
    write_report(
        folder,
        say=print,
        conversations=conversations,
        before=measure_answers(before, chat, conversations, config.finetune),
        after=measure_answers(after, chat, conversations, config.finetune),
        finetune=config.finetune,
        base_loss=losses_on_base_text(base, before, after),
    )


def losses_on_base_text(base: Base, before: Decoder, after: Decoder) -> tuple[float, float] | None:
    """Return both losses on the base's validation text, in nats per token; None without it."""
    from data import PackedDataModule
    from lm.evaluation.validation import evaluate

    tokenizer = base.meta.load_tokenizer()
    try:
        revisions = base.meta.session.revisions
        data = PackedDataModule(base.config, tokenizer, lambda line: None, revisions)
        batches = data.val_dataloader()
    except UserError as error:
        print(f"forgetting is not measured: {error}")
        return None
    results = [evaluate(decoder, batches, data.text_bytes) for decoder in (before, after)]
    return results[0].loss, results[1].loss


if __name__ == "__main__":
    errors.run(main)
