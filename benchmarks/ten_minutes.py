"""Compare what ten minutes on one core teach: ours and nanoGPT, on the same tokens.

    python benchmarks/ten_minutes.py --nanogpt nanoGPT --reviews reviews.jsonl --wikitext FOLDER

The text is film reviews and WikiText-2. Ours learns a vocabulary of 4,000 tokens from it, and the
tokens are exported for nanoGPT. Both have 6 layers, d 256, context 256 and 16 rows a step, and as
many steps as fit the seconds, start-up excluded. nanoGPT has its README's flags for small networks
(learning rate 1e-3, cosine to 1e-4), without dropout. Ours has the recipe of
configs/wikitext_reviews.yaml. Each runs on a core of its own, at the same time. A loss is that of
all validation tokens, in windows of 256; ends of documents count as tokens.
"""

from __future__ import annotations

import argparse
import json
import math
import pickle
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.on_cpu.peers import copy_nanogpt, nanogpt_command, nanogpt_loss  # noqa: E402
from benchmarks.on_cpu.steps import run_steps  # noqa: E402
from lm.config.yaml_reader import read_file  # noqa: E402
from lm.system.machine import hardware  # noqa: E402

RECIPE = ROOT / "configs" / "wikitext_reviews.yaml"
WINDOW, ROWS, VOCABULARY = 256, 16, 4000
SHAPE = {"n_layer": 6, "n_head": 4, "n_embd": 256, "block_size": WINDOW, "batch_size": ROWS}


def main() -> None:
    """Train both for the same time and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nanogpt", type=Path, required=True, help="a clone of karpathy/nanoGPT")
    parser.add_argument("--reviews", type=Path, required=True, help='lines of {"text": ...}')
    parser.add_argument("--wikitext", type=Path, required=True, help="a folder of *.txt")
    parser.add_argument("--seconds", type=float, default=600)
    arguments = parser.parse_args()
    print(hardware("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        config = prepare(arguments.reviews, arguments.wikitext, scratch)
        nanogpt = copy_nanogpt(arguments.nanogpt, scratch)
        side = export(config, nanogpt / "data" / "ours")
        with ThreadPoolExecutor(2) as both:
            ours = both.submit(train_ours, config, arguments.seconds)
            theirs = both.submit(train_nanogpt, nanogpt, arguments.seconds)
            results = {"nanoGPT": theirs.result(), "ours": ours.result()}
        losses = {
            "nanoGPT": nanogpt_loss(nanogpt, "ours", WINDOW),
            "ours": score_ours(config, scratch),
        }
    print("\n| program | steps | CPU s | nats per token | bits per byte |\n|---|---|---|---|---|")
    for name, (steps, cpu) in results.items():
        bits = losses[name] * side["tokens"] / math.log(2) / side["text_bytes"]
        print(f"| {name} | {steps:,} | {cpu:.0f} | {losses[name]:.4f} | {bits:.4f} |")
    print(f"\nours / nanoGPT: {losses['ours'] / losses['nanoGPT']:.3f}")


def prepare(reviews: Path, wikitext: Path, scratch: Path) -> Path:
    """Write the text, and the configuration of our run; return the latter."""
    articles = re.compile(r"^(?= = [^=])", re.MULTILINE)
    with (scratch / "text.jsonl").open("w") as file:
        for row in reviews.read_text().splitlines():
            file.write(json.dumps({"text": json.loads(row)["text"]}) + "\n")
        for path in sorted(wikitext.glob("*.txt")):
            for article in articles.split(path.read_text()):
                file.write(json.dumps({"text": article}) + "\n")
    config: dict[str, Any] = read_file(RECIPE).value
    config["tokenizer"] = {"name": "bpe", "vocab_size": VOCABULARY}
    config["data"] = {
        "source": {"format": "jsonl", "files": str(scratch / "text.jsonl")},
        "val_fraction": 0.02,
        "cache_dir": str(scratch / "cache"),
    }
    config["trainer"] |= {"validate_every": 10**6, "validation_rows": ROWS}
    config["checkpoint"] = {"directory": str(scratch / "run"), "save_every": 10**6}
    config["logging"] = {"sample_tokens": 0}
    path = scratch / "config.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    return path


def export(config: Path, folder: Path) -> dict[str, int]:
    """Write the tokens for nanoGPT; return what the export says of the validation side."""
    run(
        [
            sys.executable,
            "-m",
            "tools.export_tokens",
            "--config",
            str(config),
            "--out",
            str(folder),
        ],
        ROOT,
    )
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": meta["vocab_size"]}))
    side: dict[str, int] = meta["splits"]["val"]
    return side


def train_ours(config: Path, seconds: float) -> tuple[int, float]:
    """Train for as many steps as fit the time; return their number and CPU seconds."""

    def command(steps: int, *more: str) -> list[str]:
        return ["train.py", "--config", str(config), "--trainer.max_steps", str(steps), *more]

    trial = str(config.parent / "trial")
    cpu = run_steps(command(1000, "--checkpoint.directory", trial), ROOT, 1, last=30).cpu
    steps = round(seconds / ((cpu[29] - cpu[9]) / 20))
    cpu = run_steps(command(steps), ROOT, 1).cpu
    return steps, cpu[steps - 1] - cpu[0]


def train_nanogpt(folder: Path, seconds: float) -> tuple[int, float]:
    """Do the same with nanoGPT, on the second core."""

    def command(steps: int) -> list[str]:
        lengths = {"max_iters": steps, "lr_decay_iters": steps, "eval_interval": steps}
        fixed = {"dataset": "ours", "dropout": 0.0, "eval_iters": 1, "log_interval": 10}
        return nanogpt_command(SHAPE | lengths | fixed)

    cpu = run_steps(command(1000), folder, 1, last=15, skip=1).cpu
    steps = round(seconds / ((cpu[14] - cpu[4]) / 10))
    cpu = run_steps(command(steps), folder, 1, skip=1).cpu
    return steps, cpu[steps - 1] - cpu[0]


def score_ours(config: Path, scratch: Path) -> float:
    """Return our loss in nats per token."""
    command = [sys.executable, "eval_val.py", "--ckpt", str(scratch / "run" / "final.ckpt")]
    loss: float = json.loads(run([*command, "--config", str(config), "--json"], ROOT))["loss"]
    return loss


def run(command: list[str], folder: Path) -> str:
    """Run a command and return what it prints."""
    return subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main()
