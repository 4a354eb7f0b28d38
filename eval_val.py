"""Score a checkpoint on the whole validation split of a configuration.

python eval_val.py --ckpt checkpoints/best.ckpt --config config_smoke.yaml
python eval_val.py --ckpt checkpoints/best.ckpt --config config_smoke.yaml --json
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time

from lm.checkpoints.folder import open_checkpoint
from lm.checkpoints.meta import read_meta
from lm.commands import add_flag, command_parser, load_config
from lm.system import errors
from lm.system.errors import ConfigError


def main() -> None:
    """Refuse what cannot work, then load what is heavy and score."""
    arguments, overrides = parser().parse_known_args()
    config = load_config(arguments.config, overrides).config
    if config.finetune is not None and config.finetune.objective == "dpo":
        raise ConfigError(
            f"{arguments.config}: finetune.objective dpo compares two answers, and no token has a"
            " loss of its own; its results are in evaluations.jsonl and report.md of the run's"
            " folder"
        )
    checkpoint = open_checkpoint(arguments.ckpt)
    context_length = read_meta(checkpoint).model.context_length
    if config.row_length > context_length:
        raise ConfigError(
            f"{arguments.config}: rows of {config.row_length} tokens are longer than the"
            f" checkpoint's context of {context_length}; write --data.sequence_length"
            f" {context_length}"
        )

    from data import PackedDataModule
    from lm import load
    from lm.display.html import visible
    from lm.display.tables import terminal_table
    from lm.evaluation.validation import evaluate
    from lm.system.device import autocast, choose_device, choose_precision
    from lm.tokenizer.tokenizer import resolve

    device = choose_device(arguments.device, "--device")
    precision = choose_precision(config.trainer.precision, device)
    decoder, stored, _ = load(checkpoint, device)
    tokenizer = resolve(arguments.tokenizer, stored)
    # of a stream, what the run validates on is the whole split
    if not (config.data.streams and config.data.validation is None):
        config = config.model_copy(
            update={"trainer": config.trainer.model_copy(update={"validation_rows": None})}
        )
    data = PackedDataModule(config, tokenizer, say=lambda line: print(line, file=sys.stderr))
    started = time.perf_counter()
    with autocast(device, precision):
        batches, reserved, sources = (
            data.val_dataloader(),
            tokenizer.reserved_ids,
            data.validation_sources,
        )
        result = evaluate(decoder, batches, reserved, data.text_bytes_per_token, sources=sources)
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
    } | ({"sources": result.figures_by_source} if result.sources else {})
    if arguments.json:
        finite = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in report.items()
        }
        print(json.dumps(finite, indent=1))  # JSON has no NaN
    else:
        print(
            f"{arguments.ckpt} (step {checkpoint.step:,}) on the validation split of"
            f" {arguments.config},"
            f" {result.tokens:,} tokens:"
        )
        print(
            f"loss {result.loss:.4f} nats per token, perplexity {result.perplexity:.2f},"
            f" {result.bits_per_byte:.4f} bits per byte"
        )
        if result.sources:
            table = [["source", "tokens", "loss", "perplexity", "bits per byte"]] + [
                [
                    visible(name),
                    f"{each.tokens:,}",
                    f"{each.loss:.4f}",
                    f"{each.perplexity:.2f}",
                    f"{each.bits_per_byte:.4f}",
                ]
                for name, each in result.sources.items()
            ]
            print(f"\n{terminal_table(table)}")


def parser() -> argparse.ArgumentParser:
    """The flags; any key of the configuration is one more."""
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
    result.add_argument(
        "--tokenizer",
        default="auto",
        metavar="auto|NAME",
        help="auto takes the checkpoint's own; any other must be the same",
    )
    add_flag(result, "--device")
    add_flag(result, "--json")
    return result


if __name__ == "__main__":
    errors.run(main)
