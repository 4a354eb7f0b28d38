"""Compare our CPU recipe with nanoGPT's own, on the same text, machine and hour.

    git clone https://github.com/karpathy/nanoGPT
    python benchmarks/against_nanogpt.py --nanogpt nanoGPT --text downloads/tinyshakespeare.txt

nanoGPT runs its README's CPU command in a copy of its folder: 4 layers, d 128, context 64, batch
12, 2,000 steps, 1,536,000 tokens. Ours runs configs/tinyshakespeare_cpu.yaml with as many tokens.
The two take turns (A B A B). Both losses cover the complete last tenth of the text in windows of
64, in nats per character. The text is ASCII, so that a byte is a character. The command prints a
Markdown table, and exits with 1 if our loss or size misses its limit.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import pickle
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
NANOGPT_FLAGS = [
    "--device=cpu",
    "--compile=False",
    "--eval_iters=20",
    "--log_interval=1",
    "--block_size=64",
    "--batch_size=12",
    "--n_layer=4",
    "--n_head=4",
    "--n_embd=128",
    "--max_iters=2000",
    "--lr_decay_iters=2000",
    "--dropout=0.0",
]
VALIDATION_PROGRAM = """
import sys, json, numpy as np, torch
from model import GPT, GPTConfig
saved = torch.load(sys.argv[1], map_location="cpu", weights_only=True)
model = GPT(GPTConfig(**saved["model_args"])); model.load_state_dict(saved["model"]); model.eval()
ids = torch.from_numpy(np.fromfile(sys.argv[2], dtype=np.uint16).astype(np.int64))
rows = [(ids[i : i + 64], ids[i + 1 : i + 65]) for i in range(0, len(ids) - 64, 64)]
with torch.no_grad():
    losses = [model(x[None], y[None])[1].item() for x, y in rows]
parameters = sum(p.numel() for p in model.parameters())
print(json.dumps({"loss": sum(losses) / len(losses), "parameters": parameters}))
"""


def main() -> None:
    """Run both in turn and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--nanogpt",
        type=Path,
        required=True,
        help="a clone of karpathy/nanoGPT; it is copied, not changed",
    )
    parser.add_argument("--text", type=Path, required=True, help="tinyshakespeare's input.txt")
    parser.add_argument("--repeat", type=int, default=2)
    arguments = parser.parse_args()
    results: dict[str, list[dict[str, float]]] = {"nanoGPT": [], "ours": []}
    with tempfile.TemporaryDirectory() as scratch:
        nanogpt = prepare_nanogpt(arguments.nanogpt, arguments.text, Path(scratch))
        for _ in range(arguments.repeat):
            results["nanoGPT"].append(run_nanogpt(nanogpt))
            results["ours"].append(run_ours(arguments.text, Path(scratch)))
            print(json.dumps({name: runs[-1] for name, runs in results.items()}), file=sys.stderr)
    print_table(results)
    passed = all(run["loss"] <= 1.72 and run["parameters"] <= 900_000 for run in results["ours"])
    sys.exit(0 if passed else "ours should reach 1.72 with at most 900,000 parameters")


def prepare_nanogpt(source: Path, text: Path, scratch: Path) -> Path:
    """Copy nanoGPT and write the text in its character-level format. Its own prepare.py would
    download the text.
    """
    target = scratch / "nanoGPT"
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(".git"))
    characters = text.read_text(encoding="utf-8")
    kinds = sorted(set(characters))
    numbers = {character: number for number, character in enumerate(kinds)}
    ids = np.array([numbers[character] for character in characters], dtype=np.uint16)
    folder = target / "data" / "shakespeare_char"
    folder.mkdir(parents=True, exist_ok=True)
    border = int(len(ids) * 0.9)
    ids[:border].tofile(folder / "train.bin")
    ids[border:].tofile(folder / "val.bin")
    meta = {"vocab_size": len(kinds), "itos": dict(enumerate(kinds)), "stoi": numbers}
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))
    return target


def run_nanogpt(folder: Path) -> dict[str, float]:
    """Run nanoGPT's training command, then evaluate it on the complete validation split."""
    started = time.perf_counter()
    output = run(
        [sys.executable, "train.py", "config/train_shakespeare_char.py", *NANOGPT_FLAGS], folder
    )
    wall = time.perf_counter() - started
    milliseconds = [
        float(time_ms)
        for time_ms in re.findall(r"^iter \d+: loss [\d.]+, time ([\d.]+)ms", output, re.MULTILINE)
    ]
    checkpoint, validation = (
        folder / "out-shakespeare-char" / "ckpt.pt",
        folder / "data" / "shakespeare_char" / "val.bin",
    )
    scored = json.loads(
        run(
            [sys.executable, "-c", VALIDATION_PROGRAM, str(checkpoint), str(validation)], folder
        ).splitlines()[-1]
    )
    return {
        "tokens_per_second": 12 * 64 / statistics.median(milliseconds) * 1e3,
        "wall": wall,
        **scored,
    }


def run_ours(text: Path, scratch: Path) -> dict[str, float]:
    """Run our training command, then eval_val.py."""
    config, folder = str(ROOT / "configs" / "tinyshakespeare_cpu.yaml"), scratch / "ours"
    shutil.rmtree(folder, ignore_errors=True)
    keys = [
        "--data.source.files",
        str(text.resolve()),
        "--checkpoint.directory",
        str(folder),
        "--data.cache_dir",
        str(scratch / "cache"),
    ]
    started = time.perf_counter()
    run([sys.executable, "train.py", "--config", config, *keys], ROOT)
    wall = time.perf_counter() - started
    with (folder / "metrics.csv").open() as file:
        speeds = [
            float(row["tokens_per_second"])
            for row in csv.DictReader(file)
            if row["tokens_per_second"]
        ]
    scored = json.loads(
        run(
            [
                sys.executable,
                "eval_val.py",
                "--ckpt",
                str(folder / "final.ckpt"),
                "--config",
                config,
                "--json",
                *keys,
            ],
            ROOT,
        )
    )
    parameters = json.loads((folder / "final.ckpt" / "meta.json").read_text())["n_parameters"]
    return {
        "tokens_per_second": statistics.median(speeds),
        "wall": wall,
        "loss": scored["loss"],
        "parameters": parameters,
    }


def run(command: list[str], folder: Path) -> str:
    """Run a command and return its stdout. Its stderr goes to ours."""
    return subprocess.run(
        command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True, env=os.environ
    ).stdout


def print_table(results: dict[str, list[dict[str, float]]]) -> None:
    """Print medians, and the ratio of each pair of runs."""
    print(
        "| | parameters | tokens/s | whole command, s | validation, nats per character"
        " |\n|---|---|---|---|---|"
    )
    for name, runs in results.items():
        median = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        speed, wall, loss = median["tokens_per_second"], median["wall"], median["loss"]
        print(f"| {name} | {median['parameters']:,.0f} | {speed:,.0f} | {wall:.0f} | {loss:.4f} |")
    for key in ("tokens_per_second", "wall"):
        ratios = [
            ours[key] / theirs[key]
            for ours, theirs in zip(results["ours"], results["nanoGPT"], strict=True)
        ]
        print(f"\n{key}, ours / nanoGPT by pair: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")


if __name__ == "__main__":
    main()
