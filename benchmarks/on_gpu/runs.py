"""What the checks and measurements share: their options, shapes, and training runs."""

from __future__ import annotations

import csv
import itertools
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parents[2]
VOCABULARY = 50_304  # GPT-2's 50,257, rounded up to a multiple of 64
END = "<|endoftext|>"
MOST_TEXT = 900_000  # characters; more would be encoded by tiktoken, which may be absent
LLAMA: dict[str, Any] = {}
GPT2: dict[str, Any] = {"norm": "layernorm", "positions": "learned", "mlp": "gelu"}


class MissingError(Exception):
    """A check cannot run here; it neither passed nor failed."""


@dataclass(frozen=True)
class Options:
    """What a check is given.

    Attributes:
        text: the text to train on.
        nanogpt: a clone of nanoGPT, or None.
        rows: rows of 1,024 tokens in a micro-batch of the speed rows.
        rehearse: use the CPU and tiny shapes.
        scratch: an empty folder.
    """

    text: Path
    nanogpt: Path | None
    rows: int
    rehearse: bool
    scratch: Path

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """The device of all tensors."""
        return "cpu" if self.rehearse else "cuda"

    @property
    def large(self) -> dict[str, Any]:
        """The size of a model of 124M parameters."""
        if self.rehearse:
            tiny = {"context_length": 64, "n_layers": 2, "d_model": 64, "n_heads": 4}
            return {"vocab_size": VOCABULARY, **tiny}
        real = {"context_length": 1024, "n_layers": 12, "d_model": 768, "n_heads": 12}
        return {"vocab_size": VOCABULARY, **real}

    @property
    def small(self) -> dict[str, Any]:
        """The size of a model that trains for seconds, with heads of a usual width."""
        return {"context_length": 64 if self.rehearse else 512, "n_layers": 2, "d_model": 256}

    def needs_gpu(self) -> None:
        """Raise MissingError in a rehearsal."""
        if self.rehearse:
            raise MissingError("nothing of it can be rehearsed without a GPU")


def config(options: Options, folder: Path, **sections: dict[str, Any]) -> Path:
    """Write the configuration of a short run in `folder`; `sections` change its keys."""
    folder.mkdir(parents=True, exist_ok=True)
    text = folder / "text.txt"
    text.write_text(beginning(options.text), encoding="utf-8")
    values: dict[str, dict[str, Any]] = {
        "tokenizer": {},
        "data": {
            "source": {"format": "txt", "files": str(text)},
            "cache_dir": str(options.scratch / "cache"),
        },
        "model": options.small,
        "optimizer": {"warmup_steps": 2},
        "trainer": {
            "max_steps": 12,
            "batch_size": 8,
            "micro_batch_size": 4,
            "device": options.device,
            "validate_every": 10**6,
            "validation_rows": 4,
            "compile": "off",
        },
        "checkpoint": {"directory": str(folder / "run"), "save_every": 10**6},
        "logging": {"every": 1, "sample_tokens": 0, "tensorboard": False},
    }
    for section, changes in sections.items():
        values[section] = values[section] | changes
    path = folder / "config.yaml"
    path.write_text(json.dumps(values), encoding="utf-8")  # JSON is YAML
    return path


def beginning(text: Path) -> str:
    """Return the first characters of a text file."""
    return text.read_text(encoding="utf-8", errors="replace")[:MOST_TEXT]


def pair_tokenizer(folder: Path) -> Path:
    """Write a tokenizer.json of as many ids as GPT-2's, which no network is needed for.

    Its tokens are the bytes, nearly all pairs of two bytes, and the end of a text.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = list(itertools.islice(itertools.product(symbols, symbols), 50_000))
    tokens = [*symbols, *("".join(pair) for pair in pairs)]
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, pairs))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(END, normalized=False, special=True)])
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def token_ids(options: Options) -> list[int]:
    """Return the text in the ids of `pair_tokenizer`."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(pair_tokenizer(options.scratch)))
    ids: list[int] = tokenizer.encode(beginning(options.text)).ids
    return ids


def train(path: Path, *launcher: str, **environment: str) -> str:
    """Run train.py on a configuration, and return its output."""
    return run([sys.executable, *launcher, "train.py", "--config", str(path)], ROOT, **environment)


def train_here(path: Path) -> None:
    """Do what train.py does, in this process."""
    from lm.commands import load_config
    from train import assemble
    from train import train as train_run

    train_run(load_config(str(path)), assemble, None, None)


def run(command: list[str], folder: Path, **environment: str) -> str:
    """Run a command and return its output. Raises RuntimeError with its last lines if it fails."""
    done = subprocess.run(
        command, cwd=folder, env=os.environ | environment, text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if done.returncode:
        last = " | ".join(done.stdout.splitlines()[-8:])
        raise RuntimeError(f"exit code {done.returncode} of {' '.join(command[1:4])}: {last}")
    return done.stdout


def metrics(folder: Path, name: str) -> list[float]:
    """Return a column of the training rows of a run's metrics.csv, without its empty cells."""
    with (folder / "run" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "train"]
    return [float(row[name]) for row in rows if row[name]]


def incidents(folder: Path, kind: str) -> list[dict[str, Any]]:
    """Return the incidents of a kind that a run has noted."""
    path = folder / "run" / "incidents.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [record for line in lines if (record := json.loads(line))["kind"] == kind]
