"""Compare what a model has learnt after equal CPU time: ours and nanoGPT, on the same text.

    python benchmarks/learning.py --nanogpt nanoGPT --text downloads/tinyshakespeare.txt

nanoGPT trains on one core by its README's flags for a CPU (4 layers, d 128, context 64, 2,000
steps), and once more with a higher learning rate, which decays to 0. Ours is
configs/tinyshakespeare_cpu.yaml, with as many steps as fit the CPU seconds that nanoGPT's README
took. Then it trains again in a fraction of them, to find when its loss is nanoGPT's. CPU seconds
run from the first optimiser step to the last. nanoGPT always has the same seed. The losses cover
the last tenth of the text, in windows of 64 characters for all, in nats per character. The text is
ASCII, so a byte is a character.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.on_cpu.peers import (  # noqa: E402
    NANOGPT_README,
    copy_nanogpt,
    nanogpt_command,
    nanogpt_loss,
    write_characters,
)
from benchmarks.on_cpu.steps import run_steps  # noqa: E402
from lm.system.machine import hardware  # noqa: E402

CONFIG = ROOT / "configs" / "tinyshakespeare_cpu.yaml"
WINDOW = 64  # characters that are scored together
# The rate of our AdamW recipe, with its decay to 0.
TUNED = {"learning_rate": 4e-3, "min_lr": 0.0, "beta2": 0.99, "warmup_iters": 100}


def main() -> None:
    """Run all programs in turn, and print a table after each round."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nanogpt", type=Path, required=True, help="a clone of karpathy/nanoGPT")
    parser.add_argument("--text", type=Path, required=True, help="tinyshakespeare's input.txt")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--fraction", type=float, default=1 / 10, help="of nanoGPT's CPU seconds")
    arguments = parser.parse_args()
    print(hardware("cpu"))
    rounds: list[dict[str, tuple[float, float]]] = []
    for seed in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as folder:
            rounds.append(one_round(arguments, Path(folder), seed))
        print(json.dumps(rounds[-1]), file=sys.stderr, flush=True)
    print("| program | CPU seconds of training | nats per character |")
    print("|---|---|---|")
    for name in rounds[0]:
        cpu, loss = (statistics.median(measured[name][i] for measured in rounds) for i in range(2))
        lowest, highest = (f(measured[name][1] for measured in rounds) for f in (min, max))
        print(f"| {name} | {cpu:.1f} | {loss:.4f} ({lowest:.4f} to {highest:.4f}) |")


def one_round(
    arguments: argparse.Namespace, scratch: Path, seed: int
) -> dict[str, tuple[float, float]]:
    """Return CPU seconds of training and the validation loss of each program."""
    text = arguments.text.resolve()
    nanogpt = copy_nanogpt(arguments.nanogpt, scratch)
    write_characters(nanogpt, text)
    theirs = run_nanogpt(nanogpt, {})
    tuned = run_nanogpt(nanogpt, TUNED)
    first, last = 20, 60
    cpu = run_ours(text, scratch, seed, last + 20, last)
    step = (cpu[last - 1] - cpu[first - 1]) / (last - first)
    result = {"nanoGPT, as in its README": theirs, "nanoGPT, tuned": tuned}
    for name, share in (("ours", 1.0), (f"ours, {arguments.fraction:.3f}", arguments.fraction)):
        steps = round(share * theirs[0] / step)
        cpu = run_ours(text, scratch, seed, steps)
        result[name] = (cpu[steps - 1] - cpu[0], score_ours(text, scratch))
    return result


def run_nanogpt(folder: Path, changes: dict[str, object]) -> tuple[float, float]:
    """Train nanoGPT, and return its CPU seconds and its loss on the whole validation split."""
    flags = NANOGPT_README | {"eval_interval": 2000, "log_interval": 10} | changes
    cpu = run_steps(nanogpt_command(flags), folder, cores=1).cpu
    return cpu[1999] - cpu[0], nanogpt_loss(folder, "shakespeare_char", WINDOW)


def run_ours(text: Path, scratch: Path, seed: int, steps: int, last: int = 0) -> list[float]:
    """Train ours, and return the CPU time at the end of each step."""
    shutil.rmtree(scratch / "run", ignore_errors=True)
    keys = {
        **places(text, scratch),
        "checkpoint.directory": scratch / "run",
        "checkpoint.save_every": 10**6,
        "trainer.seed": seed,
        "trainer.max_steps": steps,
        "trainer.validate_every": 10**6,
    }
    words = [f"--{key}={value}" for key, value in keys.items()]
    return run_steps(["train.py", "--config", str(CONFIG), *words], ROOT, 1, last).cpu


def score_ours(text: Path, scratch: Path) -> float:
    """Return the loss of the run's last weights on the whole validation split."""
    keys = {**places(text, scratch), "data.sequence_length": WINDOW}
    words = [f"--{key}={value}" for key, value in keys.items()]
    command = [sys.executable, "eval_val.py", "--ckpt", str(scratch / "run" / "final.ckpt")]
    scored = output([*command, "--config", str(CONFIG), "--json", *words], ROOT)
    loss: float = json.loads(scored)["loss"]
    return loss


def places(text: Path, scratch: Path) -> dict[str, object]:
    """Return the keys that name the text and the cache of its tokens."""
    return {"data.source.files": text, "data.cache_dir": scratch / "cache"}


def output(command: list[str], folder: Path) -> str:
    """Return what a command prints."""
    return subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main()
