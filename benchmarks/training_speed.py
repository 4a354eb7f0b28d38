"""Compare training speed with nanoGPT's loop and transformers.Trainer, at equal shapes.

    python benchmarks/training_speed.py --nanogpt nanoGPT [--cores 1] [--rounds 5] [--shapes llama]

Each program trains as its own command does, on the same bytes and with AdamW. The programs of a
shape take turns, each in its own process on the same cores. The clock runs between optimiser steps,
so the loop, loader and logging count, start-up and validation do not. A ratio compares the two of
one round by their median step; the table shows the median over the rounds. The shapes:

    small   GPT-2's, 4 layers, d 128, 12 rows of 64 bytes: nanoGPT's README for a CPU
    medium  GPT-2's, 6 layers, d 384, 12 rows of 256 bytes: nanoGPT's README for a GPU, fewer rows
    llama   Llama's, 6 layers, d 384, 12 rows of 256 bytes, against transformers.Trainer
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.on_cpu.peers import (  # noqa: E402
    BYTE_IDS,
    copy_nanogpt,
    nanogpt_command,
    trainer_command,
    write_bytes,
)
from benchmarks.on_cpu.steps import run_steps  # noqa: E402
from lm.system.machine import hardware  # noqa: E402

GPT2 = {"norm": "layernorm", "positions": "learned", "mlp": "gelu_erf"}


@dataclass(frozen=True)
class Shape:
    """A model's size, and the steps that are timed."""

    n_layers: int
    d_model: int
    n_heads: int
    context_length: int
    first: int
    last: int
    rows: int = 12

    def ours(self) -> dict[str, int]:
        """The size in our keys."""
        names = ("n_layers", "d_model", "n_heads", "context_length")
        return {name: getattr(self, name) for name in names}


SHAPES = {
    "small": Shape(4, 128, 4, 64, first=50, last=350),
    "medium": Shape(6, 384, 6, 256, first=3, last=11),
    "llama": Shape(6, 384, 6, 256, first=3, last=11),
}
Times = tuple[float, float]  # wall and CPU seconds of the median step


def main() -> None:
    """Measure the shapes one after another; print a row for each of our precisions."""
    arguments = parser().parse_args()
    print(
        f"{hardware('cpu')}\n{arguments.cores} cores used, medians of {arguments.rounds} rounds\n"
    )
    print("| shape | ours | ms a step | peer, ms | speed, wall | speed, CPU | lowest, highest |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        nanogpt = copy_nanogpt(arguments.nanogpt, scratch)
        ids = write_bytes(nanogpt, arguments.text)
        for name in arguments.shapes:
            commands = subjects(name, arguments.text, scratch, nanogpt, ids)
            rounds = []
            for _ in range(arguments.rounds):
                rounds.append({
                    subject: measure(*command, SHAPES[name], arguments.cores)
                    for subject, command in commands.items()
                })  # fmt: skip
                for folder in scratch.glob("run_*"):
                    shutil.rmtree(folder)
            show(name, rounds)


def subjects(
    name: str, text: Path, scratch: Path, nanogpt: Path, ids: Path
) -> dict[str, tuple[list[str], Path]]:
    """Return the commands that take turns, and their folders. The peers come first."""
    shape = SHAPES[name]
    found = {}
    if name == "llama":
        config = {
            "vocab_size": BYTE_IDS, "hidden_size": shape.d_model, "intermediate_size": 1024,
            "num_hidden_layers": shape.n_layers, "num_attention_heads": shape.n_heads,
            "max_position_embeddings": shape.context_length,
        }  # fmt: skip
        for precision in ("fp32", "bf16"):
            keys = {
                "output_dir": str(scratch / "trainer"), "max_steps": 10**4,
                "per_device_train_batch_size": shape.rows, "bf16": precision == "bf16",
            }  # fmt: skip
            script = scratch / f"trainer_{precision}.py"
            command = trainer_command(script, ids / "train.bin", config, keys)
            found[f"Trainer {precision}"] = (command, scratch)
    else:
        flags: dict[str, object] = {
            "dataset": "bytes", "batch_size": shape.rows, "block_size": shape.context_length,
            "n_layer": shape.n_layers, "n_head": shape.n_heads, "n_embd": shape.d_model,
            "dropout": 0.0, "eval_interval": 10**6, "eval_iters": 1, "log_interval": 10,
        }  # fmt: skip
        found["nanoGPT fp32"] = (nanogpt_command(flags), nanogpt)
    for precision in ("fp32", "auto"):
        path = scratch / f"{name}_{precision}.yaml"
        path.write_text(json.dumps(our_config(name, text, scratch, precision)))  # JSON is YAML
        found[precision] = (["train.py", "--config", str(path)], ROOT)
    return found


def our_config(name: str, text: Path, scratch: Path, precision: str) -> dict[str, object]:
    """Return the configuration of our run."""
    shape = SHAPES[name]
    return {
        "data": {
            "source": {"format": "txt", "files": str(text.resolve()), "unit": "file"},
            "split": "tail",
            "cache_dir": str(scratch / "cache"),
        },
        "model": shape.ours() | ({} if name == "llama" else GPT2),
        "trainer": {
            "max_steps": 10**4,
            "batch_size": shape.rows,
            "precision": precision,
            "device": "cpu",
            "compile": "off",  # the others do not compile either
            "validate_every": 10**6,
            "validation_rows": shape.rows,
        },
        "checkpoint": {"directory": str(scratch / f"run_{precision}"), "save_every": 10**6},
        "logging": {"sample_tokens": 0},
    }


def measure(command: list[str], folder: Path, shape: Shape, cores: int) -> Times:
    """Return wall and CPU seconds of the median step of one process."""
    wall, cpu = (
        statistics.median(b - a for a, b in itertools.pairwise(times[shape.first :]))
        for times in run_steps(command, folder, cores, shape.last)
    )
    return wall, cpu


def show(name: str, rounds: list[dict[str, Times]]) -> None:
    """Print the table's rows of a shape: each of our precisions against each peer."""
    peers = [subject for subject in rounds[0] if " " in subject]
    for ours in (subject for subject in rounds[0] if " " not in subject):
        for peer in peers:
            wall, cpu = (
                [measured[peer][i] / measured[ours][i] for measured in rounds] for i in range(2)
            )
            ms = [1e3 * statistics.median(m[s][0] for m in rounds) for s in (ours, peer)]
            print(
                f"| {name} | {ours} | {ms[0]:.1f} | {peer}: {ms[1]:.1f}"
                f" | {statistics.median(wall):.2f} | {statistics.median(cpu):.2f}"
                f" | {min(wall):.2f}, {max(wall):.2f} |",
                flush=True,
            )


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    result = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--nanogpt", type=Path, required=True, help="a clone of karpathy/nanoGPT")
    result.add_argument("--text", type=Path, default=ROOT / "data" / "tiny_corpus.txt")
    result.add_argument("--cores", type=int, default=1)
    result.add_argument("--rounds", type=int, default=5)
    result.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    return result


if __name__ == "__main__":
    main()
