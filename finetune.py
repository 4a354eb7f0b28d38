"""Teach a base checkpoint to follow instructions.

python finetune.py --config config_finetune.yaml
python finetune.py --config config_finetune.yaml --finetune.base checkpoints/best.ckpt --finetune.method lora
python finetune.py --config config_finetune.yaml --resume auto
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm.checkpoints.base import Base, open_base, tokenizer_of
from lm.checkpoints.folder import pointed, read_meta
from lm.checkpoints.meta import check_session, read_tokenizer
from lm.commands import load_config
from lm.config.reader import Loaded
from lm.config.schema.config import Config
from lm.runs.folder import RunFolder
from lm.runs.origin import Origin
from lm.system import errors
from lm.system.errors import CheckpointError, ConfigError, UserError
from lm.system.signals import StopSignals
from lm.training.command import run_command, training_parser
from lm.training.processes import is_first

if TYPE_CHECKING:
    from lm.optim.objectives import Objective
    from lm.training.record import Session
    from model import Decoder


def main() -> None:
    """Read the command line; refuse or answer what needs no model; train; then say what it was good
    for.
    """
    arguments, overrides = training_parser(
        "finetune.py", __doc__, init_from=False
    ).parse_known_args()
    loaded = load_config(arguments.config, overrides)
    if loaded.config.finetune is None:
        raise ConfigError(
            f"{arguments.config}: finetune: missing; write the section, with at least base, or run"
            " train.py"
        )
    # one process answers
    if run_command(arguments, loaded, build_session, loaded.config.finetune.base) and is_first():
        report(loaded.config)


def build_session(
    loaded: Loaded,
    origin: Origin,
    run: RunFolder | None,
    signals: StopSignals,
    say: Callable[[str], None],
) -> Session:
    """Everything heavy: torch and Lightning take seconds to import, and nothing before needs them."""
    from data import PackedDataModule
    from lm.training.record import Session

    config, base = loaded.config, open_base(loaded.config)
    require_same(base, origin.parent)
    tokenizer = tokenizer_of(config)
    make_decoder = functools.partial(start, config, base)
    data = PackedDataModule(config, tokenizer, say, origin.revisions)
    return Session(
        config,
        tokenizer,
        data,
        make_decoder,
        origin,
        run,
        signals,
        make_objective(config, make_decoder),
    )


def require_same(base: Base, parent: dict[str, Any] | None) -> None:
    """A name such as best.ckpt may mean another checkpoint by now. Raises CheckpointError."""
    if parent is not None and parent["manifest_sha256"] != base.sha256:
        raise CheckpointError(
            f"finetune.base: {base.folder} is not the checkpoint that the run started from; name"
            " that one"
        )


def start(config: Config, base: Base) -> Decoder:
    """The base's decoder, with whatever is to be trained beside its weights."""
    from lm.checkpoints.adapters import load_whole
    from lm.surgery.lora import add_adapters
    from model import Decoder

    assert config.finetune is not None
    decoder = Decoder(config.model, initialise=False)
    load_whole(decoder, base.folder)
    if config.finetune.method != "full":
        add_adapters(decoder, config.finetune.lora, four_bits=config.finetune.method == "qlora")
    return decoder


def make_objective(config: Config, make_decoder: Callable[[], Decoder]) -> Objective:
    """What the configuration wants to be learnt."""
    from lm.optim.objectives import NEXT_TOKEN, Preference, kept
    from lm.surgery.lora import adapters_off

    assert config.finetune is not None
    if config.finetune.objective == "sft":
        return NEXT_TOKEN
    # A frozen base is its own reference.
    reference = kept(make_decoder()) if config.finetune.method == "full" else adapters_off
    return Preference(config.finetune.dpo_beta, reference)


def report(config: Config) -> None:
    """Hold the best checkpoint of a finished run against its base, unless that is done already."""
    folder = Path(config.checkpoint.directory)
    final, written = folder / "final.ckpt", folder / "answers.json"
    assert config.finetune is not None
    if not final.exists() or not config.finetune.report_prompts or config.data.chat is None:
        return
    if written.exists() and written.stat().st_mtime >= final.lstat().st_mtime:
        return

    from lm import load
    from lm.evaluation.answers import measure
    from lm.reports.finetune import report as compare
    from lm.system.device import choose_device
    from lm.tokens.corpus import held_out_conversations

    device = choose_device(config.trainer.device)
    tuned = pointed(folder, "best.ckpt") or final
    base = open_base(config)
    require_same(base, read_meta(tuned).get("parent"))
    chat, conversations = held_out_conversations(config, tokenizer_of(config))
    print(
        f"report: {base.folder.name} of the base and {tuned.name} on {len(conversations):,}"
        " held-out conversations",
        flush=True,
    )
    decoders = load(base.folder, device).decoder, load(tuned, device).decoder
    before, after = (measure(decoder, chat, conversations, config.finetune) for decoder in decoders)
    compare(
        folder,
        print,
        conversations,
        before,
        after,
        config.finetune,
        losses_on_base_text(base, *decoders),
    )


def losses_on_base_text(base: Base, before: Decoder, after: Decoder) -> tuple[float, float] | None:
    """In nats per token, on what the base was validated on; None where that text is not there."""
    from data import PackedDataModule
    from lm.evaluation.validation import evaluate

    tokenizer = read_tokenizer(base.folder, base.meta)
    try:
        check_session(base.folder, base.meta)
        data = PackedDataModule(
            base.config, tokenizer, lambda line: None, base.meta.get("revisions", {})
        )
        batches = data.val_dataloader()
    except UserError as error:
        print(f"what was forgotten is not measured: {error}")
        return None
    results = [
        evaluate(decoder, batches, tokenizer.reserved_ids, data.text_bytes_per_token)
        for decoder in (before, after)
    ]
    return results[0].loss, results[1].loss


if __name__ == "__main__":
    errors.run(main)
