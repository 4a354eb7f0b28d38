"""Make small training runs for tests: a text, a configuration, and a run in this process or in
several.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tests.support import forked, slow

if TYPE_CHECKING:
    from lm.tokenizer.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")
TEXT = (
    "the model reads a token and looks back at every earlier token to guess what comes next in the"
    " text it has seen"
)
WORDS = TEXT.split()


def corpus(folder: Path, documents: int = 20) -> Path:
    """Write a file of short paragraphs, the same every time."""
    chance = random.Random(0)
    paragraphs = [
        " ".join(chance.choices(WORDS, k=chance.randint(3, 25))) + "." for _ in range(documents)
    ]
    path = folder / "corpus.txt"
    path.write_text("\n\n".join(paragraphs) + "\n", encoding="utf-8")
    return path


def config_file(folder: Path, **sections: dict[str, object]) -> Path:
    """Write the configuration of a run of 12 steps that takes a second; `sections` change keys."""
    values: dict[str, dict[str, object]] = {
        "data": {
            "source": {"format": "txt", "files": str(corpus(folder))},
            "val_fraction": 0.3,
            "cache_dir": str(folder / "cache"),
        },
        "model": {
            "context_length": 16,
            "n_layers": 2,
            "d_model": 32,
            "n_heads": 2,
            "dropout": 0.1,
            "init_std": 0.1,
        },
        "optimizer": {"lr": 3e-3, "warmup_steps": 2, "ema_decay": 0.8},
        "trainer": {
            "max_steps": 12,
            "batch_size": 8,
            "micro_batch_size": 4,
            "validate_every": 4,
            "device": "cpu",
            "precision": "fp32",
        },
        "checkpoint": {"directory": str(folder / "run"), "save_every": 3, "keep": 20},
        "logging": {"every": 1, "sample_tokens": 8, "tensorboard": False},
    }
    for section, changes in sections.items():
        values[section] = {**values.get(section, {}), **changes}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def large_state(folder: Path, steps: int, run: Path | None = None) -> Path:
    """Write the configuration of a run that saves some megabytes at every step, so that writing
    takes much of its time.
    """
    return config_file(
        folder,
        model={"context_length": 16, "n_layers": 3, "d_model": 128, "n_heads": 2, "dropout": 0.1},
        trainer={
            "max_steps": steps,
            "batch_size": 8,
            "micro_batch_size": 4,
            "validate_every": 5,
            "device": "cpu",
            "precision": "fp32",
        },
        checkpoint={"directory": str(run or folder / "run"), "save_every": 1, "keep": 2},
    )


def train(
    config: Path, *overrides: str, resume: str | None = None, init_from: str | None = None
) -> None:
    """Do what `python train.py` does after it has read its arguments."""
    from lm.commands import load_config
    from train import assemble
    from train import train as train_run

    slow.refuse("trains")
    train_run(load_config(config, list(overrides)), assemble, resume, init_from)


def train_once(folder: Path) -> Path:
    """Train `config_file(folder)` if no other process has done so, and return the folder."""
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "trained").exists():
            train(config_file(folder))
            (folder / "trained").touch()
    return folder


def without(common: Sequence[object], words: Sequence[str]) -> list[str]:
    """Return pairs of a flag and its value without those whose flag `words` give, too."""
    pairs = zip(common[::2], common[1::2], strict=True)
    return [str(part) for pair in pairs if pair[0] not in words for part in pair]


def launched(
    processes: int, module: str, *arguments: str, succeeds: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run `python -m module` in several processes by torchrun, and wait for its end."""
    command = [*TORCHRUN, "--standalone", f"--nproc-per-node={processes}", "-m", module, *arguments]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert (done.returncode == 0) == succeeds, (
        f"exit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    )
    return done


def slurm_tasks(
    folder: Path, fault: str, *arguments: str, count: int = 2
) -> tuple[list[int], list[str]]:
    """Run processes of tests.support.witnessed with the environment of srun. Return their exit
    codes and their output. They are forked from one process that has imported everything, and no
    launcher ends them.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    slurm = {
        "SLURM_NTASKS": f"{count}",
        "SLURM_NTASKS_PER_NODE": f"{count}",
        "SLURM_STEP_NUM_TASKS": f"{count}",
        "SLURM_NNODES": "1",
    }
    slurm |= {
        "SLURM_NODELIST": "127.0.0.1",
        "SLURM_JOB_ID": "77",
        "SLURM_NODEID": "0",
        "MASTER_PORT": port,
    }
    tasks = []
    for rank in map(str, range(count)):
        environment = slurm | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank}
        tasks.append(
            forked.Forked(
                folder / f"task-{rank}", _task, environment, [str(folder), fault, *arguments]
            )
        )
    codes = [task.wait() for task in tasks]
    return codes, [task.out + task.err for task in tasks]


def _task(environment: dict[str, str], arguments: list[str]) -> None:
    from lm.system import errors
    from tests.support import witnessed

    os.environ.update(environment)
    sys.argv = ["witnessed", *arguments]
    errors.run(witnessed.main)


def write_trained(
    folder: Path, decoder: Any, tokenizer: Tokenizer, config: dict[str, object], step: int = 150
) -> Path:
    """Write a checkpoint of a decoder that a test has trained; it cannot be resumed."""
    import torch

    from lm.checkpoints.weights import write_weights
    from lm.checkpoints.write import write_checkpoint, write_json

    meta = {
        "format": 1,
        "step": step,
        "model": decoder.config.model_dump(),
        "tokenizer": {
            key: getattr(tokenizer, key)
            for key in ("name", "sha256", "vocab_size", "eos_id", "pad_id")
        },
        "config": config,
    }
    path = folder / f"step-{step:08d}.ckpt"
    write_checkpoint(
        path,
        {
            "model.safetensors": lambda file: write_weights(file, dict(decoder.named_parameters())),
            "train_state.pt": lambda file: torch.save({}, file),
            "tokenizer.json": lambda file: write_json(file, json.loads(tokenizer.definition)),
            "meta.json": lambda file: write_json(file, meta),
        },
    )
    return path
