"""Speed and memory at the shape of GPT-2 with 124M parameters, T = 1,024, bf16, compiled.

All three programs read the same tokens and take steps of four micro-batches. Tokens a second are
medians after the warm-up: ours and nanoGPT's as they print them, the Trainer's between its steps.
"""

from __future__ import annotations

import itertools
import re
import shutil
import statistics
import sys
import time
from typing import Any

from benchmarks.on_gpu.runs import (
    GPT2,
    LLAMA,
    MissingError,
    Options,
    config,
    metrics,
    pair_tokenizer,
    run,
    token_ids,
    train,
)

STEPS, WARM_UP, ACCUMULATION = 40, 10, 4


def ours_gpt2(options: Options) -> dict[str, Any]:
    """Our train.py, GPT-2's shape."""
    return ours(options, GPT2)


def ours_llama(options: Options) -> dict[str, Any]:
    """Our train.py, Llama's shape."""
    return ours(options, LLAMA)


def ours(options: Options, shape: dict[str, Any]) -> dict[str, Any]:
    """Train by train.py and read its metrics."""
    trainer = {
        "max_steps": STEPS,
        "batch_size": options.rows * ACCUMULATION,
        "micro_batch_size": options.rows,
        "precision": "bf16",
        "compile": "off" if options.rehearse else "on",
        "validation_rows": options.rows,
    }
    file = config(
        options,
        options.scratch,
        tokenizer={"name": str(pair_tokenizer(options.scratch))},
        model=options.large | shape,
        trainer=trainer,
        logging={"every": 5},
    )
    output = train(file)
    assert "torch.compile failed" not in output, output.splitlines()[-1]
    speeds = metrics(options.scratch, "tokens_per_second")[WARM_UP // 5 - 1 :]
    return {
        "tokens_per_second": statistics.median(speeds),
        "slowest": min(speeds),
        "fastest": max(speeds),
        "peak_memory_mb": max(metrics(options.scratch, "peak_memory_mb")),
        "mfu": statistics.median(metrics(options.scratch, "mfu") or [0.0]),
    }


def nanogpt(options: Options) -> dict[str, Any]:
    """nanoGPT's train.py, its GPT-2."""
    if options.nanogpt is None:
        raise MissingError("--nanogpt names no folder")
    import numpy as np

    folder, size = options.scratch / "nanoGPT", options.large
    shutil.copytree(options.nanogpt, folder, ignore=shutil.ignore_patterns(".git"))
    data = folder / "data" / "pairs"
    data.mkdir(parents=True)
    ids = np.array(token_ids(options), np.uint16)
    for split in ("train", "val"):
        ids.tofile(data / f"{split}.bin")
    flags = {
        "dataset": "pairs",
        "device": options.device,
        "compile": not options.rehearse,
        "dtype": "bfloat16",
        "batch_size": options.rows,
        "block_size": size["context_length"],
        "gradient_accumulation_steps": ACCUMULATION,
        "n_layer": size["n_layers"],
        "n_head": size["n_heads"],
        "n_embd": size["d_model"],
        "max_iters": STEPS,
        "lr_decay_iters": STEPS,
        "warmup_iters": 2,
        "eval_iters": 1,
        "eval_interval": 10**6,
        "log_interval": 1,
    }
    words = [f"--{name}={value}" for name, value in flags.items()]
    output = run([sys.executable, "train.py", *words], folder)
    times = [float(ms) / 1000 for ms in re.findall(r"^iter \d+:.* time ([\d.]+)ms", output, re.M)]
    return in_tokens(options, times[WARM_UP:])


def transformers_trainer(options: Options) -> dict[str, Any]:
    """transformers.Trainer with GPT2LMHeadModel."""
    import importlib.util

    if importlib.util.find_spec("accelerate") is None:
        raise MissingError("transformers.Trainer needs accelerate")
    import torch
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    size, length = options.large, options.large["context_length"]
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=size["vocab_size"], n_positions=length, n_layer=size["n_layers"],
            n_embd=size["d_model"], n_head=size["n_heads"], use_cache=False,
            attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0,
        )
    )  # fmt: skip
    ids = torch.tensor(token_ids(options))
    rows = [{"input_ids": row, "labels": row} for row in ids.split(length) if len(row) == length]
    steps, times = STEPS // 2, list[float]()

    class Clock(TrainerCallback):
        """Notes the time after each step."""

        def on_step_end(self, *_: Any, **__: Any) -> None:
            torch.get_device_module(options.device).synchronize()
            times.append(time.perf_counter())

    arguments = TrainingArguments(
        str(options.scratch / "trainer"), per_device_train_batch_size=options.rows, bf16=True,
        gradient_accumulation_steps=ACCUMULATION, max_steps=steps, report_to="none",
        torch_compile=not options.rehearse, use_cpu=options.rehearse, save_strategy="no",
        logging_strategy="no", disable_tqdm=True, dataloader_drop_last=True,
    )  # fmt: skip
    repeated = rows * (1 + options.rows * ACCUMULATION * steps // len(rows))
    Trainer(model, arguments, train_dataset=repeated, callbacks=[Clock()]).train()
    seconds = [b - a for a, b in itertools.pairwise(times)]
    return in_tokens(options, seconds[WARM_UP // 2 :])


def memory_of_a_step(options: Options) -> dict[str, Any]:
    """The memory that the loss of 2,048 tokens and a vocabulary of 50,304 adds, and a whole step.

    Peak MB of forward and backward pass above weights and gradients. `plain` makes all logits.
    """
    options.needs_gpu()
    import torch
    from torch.nn import functional as F

    from lm.config.schema.model import ModelConfig
    from lm.optim.early_gradients import summed_loss
    from lm.system.device import autocast
    from model import Decoder

    def plain(hidden: Any, head: Any, labels: Any) -> Any:
        logits = F.linear(hidden.flatten(0, 1), head).float()
        return F.cross_entropy(logits, labels.flatten(), reduction="sum")

    vocabulary, width = options.large["vocab_size"], options.large["d_model"]
    labels = torch.randint(0, vocabulary, (2, 1024), device="cuda")
    hidden = torch.randn(2, 1024, width, device="cuda", requires_grad=True)
    head = torch.randn(vocabulary, width, device="cuda", requires_grad=True)
    decoder = Decoder(ModelConfig(**options.large, **GPT2)).to("cuda")
    losses = {
        "loss, ours": lambda: summed_loss(hidden, head, labels),
        "loss, plain": lambda: plain(hidden, head, labels),
        "step of the GPT-2": lambda: decoder(labels, labels, total=True),
    }
    figures = {}
    for name, loss in losses.items():
        for _ in range(2):  # the first makes the gradients
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            with autocast("cuda", "bf16"):
                loss().backward()
            torch.cuda.synchronize()
            figures[f"{name}, MB"] = (torch.cuda.max_memory_allocated() - before) / 1e6
    return figures


def in_tokens(options: Options, seconds: list[float]) -> dict[str, Any]:
    """Turn the seconds of steps into tokens a second."""
    tokens = options.rows * ACCUMULATION * options.large["context_length"]
    speeds = [tokens / each for each in seconds]
    return {
        "tokens_per_second": statistics.median(speeds),
        "slowest": min(speeds),
        "fastest": max(speeds),
    }
