"""Score a checkpoint on the whole validation split of a configuration.

python eval_val.py --ckpt checkpoints/best.ckpt --config config_smoke.yaml
python eval_val.py --ckpt checkpoints/best.ckpt --config config_smoke.yaml --json
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import time
from typing import TYPE_CHECKING

from lm.checkpoints.folder import Checkpoint, open_checkpoint
from lm.checkpoints.meta import read_meta
from lm.commands import add_flag, command_parser, load_config
from lm.system import errors
from lm.system.errors import ConfigError
from lm.system.json_values import finite

if TYPE_CHECKING:
    from lm.config.schema.config import Config
    from lm.evaluation.validation import Evaluation


def main() -> None:
    """Refuse what cannot work, then load what is heavy and score."""
    arguments, overrides = parser().parse_known_args()
    config = load_config(arguments.config, overrides, trains=False).config
    checkpoint = open_checkpoint(arguments.ckpt)
    check(config, arguments.config, checkpoint)

    from data import PackedDataModule
    from lm import load
    from lm.evaluation.validation import evaluate
    from lm.system.device import autocast, choose_device, choose_precision
    from lm.tokenizer.tokenizer import resolve

    device = choose_device(arguments.device, "--device")
    precision = choose_precision(config.trainer.precision, device)
    decoder, stored, _ = load(checkpoint, device)
    tokenizer = resolve(arguments.tokenizer, stored)
    config = config.with_validation_rows(None)
    data = PackedDataModule(config, tokenizer, say=lambda line: print(line, file=sys.stderr))
    started = time.perf_counter()
    with autocast(device, precision):
        result = evaluate(
            decoder,
            data.val_dataloader(),
            data.text_bytes,
            sources=data.validation_sources,
        )
    if not arguments.json:
        print_scores(f"{arguments.ckpt} (step {checkpoint.step:,})", arguments.config, result)
        prompt = shlex.quote(config.logging.sample_prompt)
        print(f"next: python infer.py --ckpt {shlex.quote(arguments.ckpt)} --prompt {prompt}")
        if config.finetune is None:
            base = f" --finetune.base {shlex.quote(arguments.ckpt)}"
            base = "" if arguments.ckpt == "checkpoints/best.ckpt" else base
            print(f"  or: python finetune.py --config config_finetune.yaml{base}")
        return
    report = {
        "checkpoint": arguments.ckpt,
        "step": checkpoint.step,
        "config": arguments.config,
        "loss": result.loss,
        "perplexity": result.perplexity,
        "bits_per_byte": result.bits_per_byte,
        "tokens": result.tokens,
        "device": device,
        "precision": precision,
        "seconds": round(time.perf_counter() - started, 3),
    }
    if result.sources:
        report["sources"] = result.figures_by_source
    print(json.dumps(finite(report), indent=1))


def check(config: Config, file: str, checkpoint: Checkpoint) -> None:
    """Refuse a configuration whose validation split the checkpoint cannot be scored on.

    Raises:
        ConfigError: the objective has no loss per token, or the rows are longer than the context.
    """
    if config.finetune is not None and config.finetune.objective == "dpo":
        raise ConfigError(
            f"{file}: finetune.objective dpo compares two answers, and no token has a loss of its"
            " own; its results are in evaluations.jsonl and report.md of the run's folder"
        )
    context_length = read_meta(checkpoint).model.context_length
    if config.row_length > context_length:
        raise ConfigError(
            f"{file}: rows of {config.row_length} tokens are longer than the checkpoint's context"
            f" of {context_length}; write --data.sequence_length {context_length}"
        )


def print_scores(checkpoint: str, file: str, result: Evaluation) -> None:
    """Print the scores in words, and a table of the sources if there are several."""
    from lm.display.html import visible
    from lm.display.tables import terminal_table

    print(f"{checkpoint} on the validation split of {file}, {result.tokens:,} tokens:")
    bits = (
        "no bits per byte: the tokenizer loses a part of the text"
        if result.tokens and math.isnan(result.bits_per_byte) and not math.isnan(result.loss)
        else f"{result.bits_per_byte:.4f} bits per byte"
    )
    print(f"loss {result.loss:.4f} nats per token, perplexity {result.perplexity:.2f}, {bits}")
    if result.sources:
        heading = ["source", "tokens", "loss", "perplexity", "bits per byte"]
        rows = [
            [
                visible(name),
                f"{each.tokens:,}",
                f"{each.loss:.4f}",
                f"{each.perplexity:.2f}",
                f"{each.bits_per_byte:.4f}",
            ]
            for name, each in result.sources.items()
        ]
        print(f"\n{terminal_table([heading, *rows])}")


def parser() -> argparse.ArgumentParser:
    """Return the parser; any key of the configuration is one more flag."""
    result = command_parser("eval_val.py", __doc__)
    add_flag(result, "--ckpt")
    add_flag(
        result,
        "--config",
        help=(
            "the YAML file whose validation split is scored; its keys can be changed, as in"
            " train.py"
        ),
    )
    add_flag(result, "--tokenizer")
    add_flag(result, "--device")
    add_flag(result, "--json")
    return result


if __name__ == "__main__":
    errors.run(main)
