"""How a value of another program is written here.

Each function here is, or returns, the translation of some rows in `lm.config.other_names`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any

# All values of the configuration by the last part of their keys: some need another one beside them.
Given = Mapping[str, Any]
# The keys here with their values, or words where the value cannot be known.
Writing = dict[str, Any] | str
Translate = Callable[[Any, Given], Writing]

DEFAULT_LR = 1e-3
DEFAULT_BETAS = [0.9, 0.95]
DEFAULT_ROW = 256
ADAPTERS = ("lora", "qlora")
FORMATS = {
    ".txt": "txt", ".md": "txt", ".jsonl": "jsonl", ".json": "instruction", ".csv": "csv",
    ".tsv": "csv", ".parquet": "parquet", ".bin": "bin",
}  # fmt: skip
PACKINGS = (".gz", ".bz2", ".xz", ".zst")
TRAINED_ROWS = ("per_device_train_batch_size", "device_batch_size", "micro_batch_size")
ACCUMULATED = (
    "gradient_accumulation_steps", "accumulate_grad_batches", "accumulation_steps",
    "grad_accum_steps", "gradient_accumulation",
)  # fmt: skip
STEPS = (
    "max_iters", "num_iterations", "max_train_steps", "num_train_steps", "total_steps",
    "train_steps", "training_steps", "num_steps", "n_steps", "iterations", "train_iters",
)  # fmt: skip
LEARNING_RATES = ("learning_rate", "max_lr", "base_lr", "peak_lr", "init_lr")


def _first(given: Given, names: tuple[str, ...], otherwise: Any = None) -> Any:
    """Return the first value among `names` that is a number, else `otherwise`."""
    return next((value for name in names if is_number(value := given.get(name))), otherwise)


def is_number(value: object) -> bool:
    """Return whether a value is a number to calculate with: no bool, no text, not huge."""
    return type(value) in (int, float) and abs(value) < 2**53  # type: ignore[arg-type]


def same(key: str) -> Translate:
    """Write the value as it is."""
    return lambda value, given: {key: value}


def words(text: str) -> Translate:
    """Write a sentence."""
    return lambda value, given: text


def choice(key: str, choices: Mapping[str, str]) -> Translate:
    """Write the choice that has the value among its names."""

    def translate(value: Any, given: Given) -> Writing:
        name = str(value).lower()
        fitting = (choice for choice, names in choices.items() if name in names.split())
        return {key: next(fitting, value)}

    return translate


def switch(key: str, on: Any, off: Any) -> Translate:
    """Write one of two values for true and false, and any other value as it is."""

    def translate(value: Any, given: Given) -> Writing:
        return {key: {"true": on, "1": on, "false": off, "0": off}.get(str(value).lower(), value)}

    return translate


def adapter(key: str) -> Translate:
    """Write a key of the adapters; they belong to a method that is not the default."""

    def translate(value: Any, given: Given) -> Writing:
        values = value
        if key == "finetune.lora.targets":
            names = [value] if isinstance(value, str) else value
            if names in (["all"], ["all-linear"]):
                names = ["layers.*"]
            elif isinstance(names, list):
                names = [name if "*" in str(name) else f"*.{name}" for name in names]
            values = names
        method = {} if given.get("method") in ADAPTERS else {"finetune.method": "lora"}
        return method | {key: values}

    return translate


def row_length(value: Any, given: Given) -> Writing:
    """Write the length of a row: a new model's context, or the rows of a fine-tuning."""
    if "base" in given:  # the base decides the context
        return {"data.sequence_length": value}
    return {"model.context_length": value}


def micro_batch(value: Any, given: Given) -> Writing:
    """Rows of one forward pass: the batch is what several of them make together."""
    accumulated = _first(given, ACCUMULATED, 1)
    devices = _first(given, ("devices",), 1) * _first(given, ("num_nodes",), 1)
    if not is_number(value):
        return {"trainer.micro_batch_size": value}
    return {
        "trainer.batch_size": value * accumulated * devices,
        "trainer.micro_batch_size": value,
    }


def accumulation(value: Any, given: Given) -> Writing:
    """Write the batch that so many passes over the given rows make."""
    rows = _first(given, (*TRAINED_ROWS, "batch_size"))
    if rows is None or not is_number(value):
        return (
            f"write trainer.micro_batch_size, the rows of one forward pass, and"
            f" trainer.batch_size: {value} x as many"
        )
    return micro_batch(rows, {**given, "gradient_accumulation_steps": value})


def batch_in_tokens(value: Any, given: Given) -> Writing:
    """Write the rows that hold so many tokens."""
    length = _first(given, ("sequence_length", "context_length", "max_seq_len"), DEFAULT_ROW)
    if not is_number(value) or not 1 <= length <= value:
        return {"trainer.batch_size": value}
    return {"trainer.batch_size": int(value // length)}


def warmup_ratio(value: Any, given: Given) -> Writing:
    """Write the steps of a warmup that is a share of the run."""
    steps = _first(given, ("max_steps", *STEPS))
    if not is_number(value) or not 0 <= value < 1:  # a number of steps
        return {"optimizer.warmup_steps": value}
    if steps is None:
        return f"write optimizer.warmup_steps: {value} x the steps of the run"
    return {"optimizer.warmup_steps": int(value * steps)}


def final_rate(value: Any, given: Given) -> Writing:
    """Write the last learning rate as a fraction of the highest."""
    highest = _first(given, (*LEARNING_RATES, "lr"), DEFAULT_LR)
    if not is_number(value) or not highest:
        return {"optimizer.final_lr_fraction": value}
    return {"optimizer.final_lr_fraction": float(f"{value / highest:.6g}")}


def beta(index: int) -> Translate:
    """Write one of the two betas beside the other."""

    def translate(value: Any, given: Given) -> Writing:
        names = [(f"beta{i}", f"adam_beta{i}", f"beta_{i}") for i in (1, 2)]
        betas = [_first(given, names[i], DEFAULT_BETAS[i]) for i in (0, 1)]
        betas[index] = value
        return {"optimizer.betas": betas}

    return translate


def sharding(value: Any, given: Given) -> Writing:
    """Write the strategy for FSDP's modes ("full_shard auto_wrap"), settings, or a switch."""
    off = value in (False, None, "", 0) or str(value).lower() in ("false", "no", "no_shard")
    return {"trainer.strategy": "auto" if off else "fsdp"}


def preference(value: Any, given: Given) -> Writing:
    """Write DPO's beta with the objective that it belongs to."""
    return {"finetune.objective": "dpo", "finetune.dpo_beta": value}


def files(section: str) -> Translate:
    """Write a source of text by the ending of its files, in front of that of their packing."""

    def translate(value: Any, given: Given) -> Writing:
        name = value[0] if isinstance(value, list) and value else value
        if isinstance(name, str):
            path = PurePath(name)
            plain = path.with_suffix("") if path.suffix in PACKINGS else path
            if known := FORMATS.get(plain.suffix):
                return {section: {"format": known, "files": value}}
        return f"write {section}: a section with format and files"

    return translate


def dataset(section: str) -> Translate:
    """Write a source of text: files by their ending, a dataset of the hub by the slash in it."""

    def translate(value: Any, given: Given) -> Writing:
        writing = files(section)(value, given)
        if isinstance(writing, dict):
            return writing
        name = value[0] if isinstance(value, list) and value else value
        if isinstance(name, str) and name.count("/") == 1 and not name.startswith(("/", ".", "~")):
            return {section: {"format": "hub", "dataset": name}}
        return f"{writing}, or with format: hub and dataset"

    return translate


def held_out(value: Any, given: Given) -> Writing:
    """Write the share of the validation text; from 1 it is a percentage."""
    if is_number(value) and 1 <= value < 100:
        return {"data.val_fraction": value / 100}
    return {"data.val_fraction": value}


def dataset_split(value: Any, given: Given) -> Writing:
    """Write the split of a dataset, or the way to hold text out: both are called so."""
    key = "data.split" if value in ("hash", "tail") else "data.source.dataset_split"
    return {key: value}


def validation_rows(value: Any, given: Given) -> Writing:
    """Write the rows of so many batches."""
    rows = _first(given, ("batch_size", *TRAINED_ROWS), 32)
    return {"trainer.validation_rows": value * rows if is_number(value) else value}
