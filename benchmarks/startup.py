"""Measure what a run takes besides its arithmetic: the start, and the overhead of a step.

    python benchmarks/startup.py
    python benchmarks/startup.py --nanogpt nanoGPT --before ../an-older-checkout

The subjects take turns, each in its own process with one thread, and medians of --repeat rounds
count. CPU time says more than wall time on a machine that does other work. Ours and nanoGPT train
GPT-2's shape with 4 layers, d 128, context 64 and batch 12 in fp32 on the bundled text. Their
tokens are on disk, and each scores a batch or two before the first step.

Outside means outside the forward pass with its loss, the backward pass and AdamW's kernel.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.on_cpu.peers import (  # noqa: E402
    NANOGPT_README,
    copy_nanogpt,
    nanogpt_command,
    write_characters,
)
from lm.system.machine import hardware  # noqa: E402

TEXT = ROOT / "data" / "tiny_corpus.txt"
FIRST, LAST = 20, 80  # the steps that count: no warm-up, and done in a few seconds
# Runs a training script as its own command would. Both repositories have their model in model.py.
PROGRAM = """
import json, os, runpy, sys, time
since, first, last, script, *sys.argv[1:] = sys.argv[1:]
sys.argv[0] = script
sys.path.insert(0, os.getcwd())
import torch, torch.optim.adam as adam, torch.optim.optimizer as optimizer
clock, spent, steps, result = time.process_time, [0.0], [0], {}

def timed(owner, name):
    inner = getattr(owner, name)
    def outer(*args, **keys):
        begun = clock()
        try:
            return inner(*args, **keys)
        finally:
            spent[0] += clock() - begun
    setattr(owner, name, outer)

def after_step(*_):
    steps[0] += 1
    if steps[0] == 1:
        result.update(cpu=clock(), wall=time.time() - float(since))
        import model
        timed(getattr(model, "Decoder", None) or model.GPT, "forward")
        timed(torch.autograd, "backward")
        timed(adam, "adam")
    if steps[0] == int(first):
        result.update(begun=clock(), spent=spent[0])
    if steps[0] == int(last):
        total, inside = clock() - result.pop("begun"), spent[0] - result.pop("spent")
        n = int(last) - int(first)
        result.update(step=1e3 * total / n, outside=1e3 * (total - inside) / n)
        print("RESULT", json.dumps(result), flush=True)
        os._exit(0)

optimizer.register_optimizer_step_post_hook(after_step)
runpy.run_path(script, run_name="__main__")
"""
CONFIG = """
data: {source: {format: txt, files: data/tiny_corpus.txt, unit: paragraph}}
model:
  {context_length: 64, n_layers: 4, d_model: 128, n_heads: 4, norm: layernorm, positions: learned,
  mlp: gelu}
trainer:
  {max_steps: 400, batch_size: 12, precision: fp32, device: cpu, validate_every: 100000,
  validation_rows: 12}
checkpoint: {save_every: 100000}
logging: {sample_tokens: 0}
"""
# the last ones count: little is scored, and a line is printed every ten steps
QUICK_FLAGS = NANOGPT_README | {"eval_iters": 1, "log_interval": 10}
Result = dict[str, float]


def main() -> None:
    """Measure all subjects in turn and print two tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nanogpt", type=Path, help="a clone of karpathy/nanoGPT")
    parser.add_argument("--before", type=Path, help="another checkout of this repository")
    parser.add_argument("--repeat", type=int, default=5, help="rounds (5)")
    arguments = parser.parse_args()
    checkouts = {"ours": ROOT}
    if arguments.before is not None:
        checkouts["ours, before"] = arguments.before.resolve()
    results: dict[str, list[Result]] = {}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        (scratch / "config.yaml").write_text(CONFIG)
        flags = ["--config", str(scratch / "config.yaml"), "--data.cache_dir", f"{scratch}/cache"]
        once = [*flags, "--trainer.max_steps", "1", "--optimizer.warmup_steps", "0"]
        to_trained = ["--checkpoint.directory", f"{scratch}/trained"]
        start(["train.py", *once, *to_trained], ROOT, "the tokens and a checkpoint")
        nanogpt = None
        if arguments.nanogpt is not None:
            nanogpt = copy_nanogpt(arguments.nanogpt, scratch)
            write_characters(nanogpt, TEXT)
        for number in range(arguments.repeat):
            measured = {"import torch": run(["-c", "import torch; print()"], ROOT)}
            for name, checkout in checkouts.items():
                ckpt = ["--ckpt", f"{scratch}/trained/final.ckpt", "--prompt", "A"]
                sampled = ["infer.py", *ckpt, "--max-new-tokens", "1", "--device", "cpu"]
                measured[f"infer.py, {name}"] = run(sampled, checkout)
                fresh = ["--checkpoint.directory", f"{scratch}/{number}-{name}"]
                measured[f"train.py, {name}"] = train([*flags, *fresh], checkout)
            if nanogpt is not None:
                measured["train.py, nanoGPT"] = train(nanogpt_command(QUICK_FLAGS)[1:], nanogpt)
            print(json.dumps(measured), file=sys.stderr)
            for name, result in measured.items():
                results.setdefault(name, []).append(result)
    print_tables(results)


def run(command: list[str], folder: Path) -> Result:
    """Return a command's wall time to its first character, and the CPU time of all of it."""
    begun = time.perf_counter()
    process = start_process(command, folder)
    assert process.stdout is not None
    process.stdout.read(1)
    wall = time.perf_counter() - begun
    process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, f"{command}: exit code {process.returncode}"
    return {"cpu": usage.ru_utime + usage.ru_stime, "wall": wall}


def train(flags: list[str], folder: Path) -> Result:
    """Return the times to the end of the first step, and the CPU milliseconds of a later one."""
    words = [str(time.time()), str(FIRST), str(LAST), "train.py", *flags]
    output = start(["-c", PROGRAM, *words], folder, "train.py")
    result: Result = json.loads(output.split("RESULT", 1)[1])
    return result


def start(command: list[str], folder: Path, name: str) -> str:
    """Run a command to its end and return what it prints."""
    process = start_process(command, folder)
    output, _ = process.communicate()
    assert process.returncode == 0, f"{name}: exit code {process.returncode}"
    return output


def start_process(command: list[str], folder: Path) -> subprocess.Popen[str]:
    """Start Python in a folder, with one thread: threads that wait for each other take CPU time."""
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def print_tables(results: dict[str, list[Result]]) -> None:
    """Print the medians, and the range of the CPU times."""

    def median(name: str, key: str) -> float:
        return statistics.median(result[key] for result in results[name])

    print(f"{hardware('cpu')['processor']}, {len(next(iter(results.values())))} rounds\n")
    print("| to the first character, or the end of the first step | CPU s | range | wall s |")
    print("|---|---|---|---|")
    for name, rounds in results.items():
        times = [result["cpu"] for result in rounds]
        span = f"{min(times):.2f} to {max(times):.2f}"
        print(f"| {name} | {median(name, 'cpu'):.2f} | {span} | {median(name, 'wall'):.2f} |")
    print("\n| a step | CPU ms | outside, CPU ms | range |\n|---|---|---|---|")
    for name in (name for name in results if name.startswith("train.py")):
        times = [result["outside"] for result in results[name]]
        span = f"{min(times):.2f} to {max(times):.2f}"
        print(f"| {name} | {median(name, 'step'):.2f} | {median(name, 'outside'):.2f} | {span} |")


if __name__ == "__main__":
    main()
