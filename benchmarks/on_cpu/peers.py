"""nanoGPT and transformers.Trainer, prepared for the comparisons: same bytes, same shapes."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

BYTE_IDS = 260  # the byte tokenizer's: 256 bytes and 4 special tokens
# nanoGPT's README names these for a CPU.
NANOGPT_README = {
    "eval_iters": 20,
    "log_interval": 1,
    "block_size": 64,
    "batch_size": 12,
    "n_layer": 4,
    "n_head": 4,
    "n_embd": 128,
    "max_iters": 2000,
    "lr_decay_iters": 2000,
    "dropout": 0.0,
}
SCORE = """
import sys, json, numpy as np, torch
from model import GPT, GPTConfig
saved = torch.load(sys.argv[1], map_location="cpu", weights_only=True)
model = GPT(GPTConfig(**saved["model_args"])); model.load_state_dict(saved["model"]); model.eval()
ids, n = torch.from_numpy(np.fromfile(sys.argv[2], np.uint16).astype(np.int64)), int(sys.argv[3])
rows = [(ids[i : i + n], ids[i + 1 : i + n + 1]) for i in range(0, len(ids) - n, n)]
with torch.no_grad():
    losses = [model(x[None], y[None])[1].item() for x, y in rows]
print(json.dumps(sum(losses) / len(losses)))
"""
# transformers has no script that trains on a file of ids.
TRAINER = """
import json, sys, numpy as np, torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
given = json.loads(sys.argv[1])
length = given["config"]["max_position_embeddings"]
ids = torch.from_numpy(np.fromfile(given["ids"], np.uint16).astype(np.int64))
rows = [{"input_ids": row, "labels": row} for row in ids.split(length) if len(row) == length]
model = LlamaForCausalLM(LlamaConfig(use_cache=False, tie_word_embeddings=True, **given["config"]))
arguments = TrainingArguments(
    use_cpu=True, report_to="none", save_strategy="no", logging_steps=10, disable_tqdm=True,
    **given["arguments"])
Trainer(model, arguments, train_dataset=rows).train()
"""


def copy_nanogpt(source: Path, scratch: Path) -> Path:
    """Return a copy of nanoGPT's folder, which may be written to."""
    target = scratch / "nanoGPT"
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(".git"))
    return target


def write_ids(nanogpt: Path, name: str, parts: Sequence[np.ndarray], kinds: list[str]) -> Path:
    """Write training and validation ids as nanoGPT reads them; return their folder.

    Args:
        nanogpt: a copy of nanoGPT.
        name: of the data set, for `--dataset`.
        parts: the ids of both sides.
        kinds: the text of each id.
    """
    folder = nanogpt / "data" / name
    folder.mkdir(parents=True, exist_ok=True)
    for split, ids in zip(("train", "val"), parts, strict=True):
        ids.astype(np.uint16).tofile(folder / f"{split}.bin")
    numbers = {kind: number for number, kind in enumerate(kinds)}
    meta = {"vocab_size": len(kinds), "itos": dict(enumerate(kinds)), "stoi": numbers}
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))
    return folder


def write_characters(nanogpt: Path, text: Path) -> Path:
    """Write a text as nanoGPT's shakespeare_char, without its download."""
    characters = text.read_text(encoding="utf-8")
    kinds = sorted(set(characters))
    numbers = {kind: number for number, kind in enumerate(kinds)}
    ids = np.array([numbers[character] for character in characters])
    border = int(len(ids) * 0.9)
    return write_ids(nanogpt, "shakespeare_char", (ids[:border], ids[border:]), kinds)


def write_bytes(nanogpt: Path, text: Path) -> Path:
    """Write a text in the ids of our byte tokenizer, so that the head is as wide as ours."""
    ids = np.frombuffer(text.read_bytes(), np.uint8)
    border = int(len(ids) * 0.9)
    kinds = [chr(i) for i in range(BYTE_IDS)]
    return write_ids(nanogpt, "bytes", (ids[:border], ids[border:]), kinds)


def nanogpt_command(flags: dict[str, object]) -> list[str]:
    """Return the command that trains nanoGPT on a CPU, in its folder."""
    words = [f"--{name}={value}" for name, value in flags.items()]
    script = ["train.py", "config/train_shakespeare_char.py"]
    return [*script, "--device=cpu", "--compile=False", *words]


def trainer_command(
    script: Path, ids: Path, config: dict[str, object], arguments: dict[str, object]
) -> list[str]:
    """Write the script that trains a Llama with transformers.Trainer; return its command."""
    script.write_text(TRAINER)
    given = {"ids": str(ids), "config": config, "arguments": arguments}
    return [str(script), json.dumps(given)]


def nanogpt_loss(folder: Path, data: str, window: int) -> float:
    """Return the loss of nanoGPT's last checkpoint on all of a data set's validation ids, in nats.

    They are scored in windows of `window` ids.
    """
    files = ["out-shakespeare-char/ckpt.pt", f"data/{data}/val.bin"]
    command = [sys.executable, "-c", SCORE, *files, str(window)]
    done = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True)
    loss: float = json.loads(done.stdout.splitlines()[-1])  # it prints its size first
    return loss
