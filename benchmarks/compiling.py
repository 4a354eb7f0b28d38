"""Measure when torch.compile pays off on this CPU: `python benchmarks/compiling.py`.

Each shape and precision has a process of its own, with one thread and an empty cache of compiled
code. Plain and compiled steps (forward, backward, update) take turns, and the medians of their CPU
time count, because other work on the machine lengthens wall time. The compiler's CPU time includes
the processes that it starts.
"""

from __future__ import annotations

import argparse
import functools
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

GPT2: dict[str, Any] = {"norm": "layernorm", "positions": "learned", "mlp": "gelu"}
SMALL: dict[str, Any] = {"n_layers": 4, "d_model": 128, "n_heads": 4}
LARGE: dict[str, Any] = {"context_length": 256, "n_layers": 6}
# name -> the model, and the rows of a step
SHAPES: dict[str, tuple[dict[str, Any], int]] = {
    "GPT-2, 0.8M, T 64": (GPT2 | SMALL | {"context_length": 64, "vocab_size": 256}, 12),
    "Llama, config_smoke.yaml": (
        SMALL
        | {"context_length": 128, "n_kv_heads": 2, "tie_embeddings": False}
        | {"dropout": 0.15, "vocab_size": 3000},
        8,
    ),
    "Llama, 6M, T 256": (
        LARGE | {"d_model": 256, "n_heads": 4, "qk_norm": True, "vocab_size": 5000},
        4,
    ),
    "GPT-2, 10.7M, T 256": (
        GPT2 | LARGE | {"d_model": 384, "n_heads": 6, "vocab_size": 256},
        4,
    ),
}


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=30, help="of each kind (%(default)s)")
    parser.add_argument("--only", nargs=2, metavar=("SHAPE", "PRECISION"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only is not None:
        print(row(*arguments.only, arguments.steps))
        return
    print(
        "| shape | precision | compiling, CPU s | plain, ms | compiled, ms | speed | pays after |"
    )
    print("|---|---|---|---|---|---|---|")
    for shape in SHAPES:
        for precision in ("fp32", "bf16"):
            with tempfile.TemporaryDirectory() as cache:
                environment = os.environ | {
                    "TORCHINDUCTOR_CACHE_DIR": cache,
                    "OMP_NUM_THREADS": "1",
                }
                command = [sys.executable, __file__, "--only", shape, precision]
                command += ["--steps", str(arguments.steps)]
                done = subprocess.run(
                    command, env=environment, check=True, stdout=subprocess.PIPE, text=True
                )
            print(done.stdout.splitlines()[-1], flush=True)


def row(name: str, precision: Any, steps: int) -> str:
    """Return the line of a shape in the table."""
    import torch

    from lm.config.schema.model import ModelConfig
    from lm.config.schema.optimizer import OptimizerConfig
    from lm.optim.optimizers import make_optimizer
    from lm.system.device import autocast
    from lm.training.record import flops_per_token
    from model import Decoder

    shape, rows = SHAPES[name]
    config = ModelConfig(**shape)
    ids = torch.randint(0, config.vocab_size or 0, (rows, config.context_length))
    labels = ids.roll(-1, 1)

    def stepper(decoder: Decoder) -> Callable[[], None]:
        optimizer = make_optimizer(decoder, OptimizerConfig(warmup_steps=0), precision)

        def step() -> None:
            with autocast("cpu", precision):
                loss = decoder(ids, labels, None, total=True)
            (loss / labels.numel()).backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    plain, compiled = Decoder(config).train(), Decoder(config).train()
    compiled.compile()
    kinds = {"plain": stepper(plain), "compiled": stepper(compiled)}
    kinds["plain"]()
    compiling = cpu_seconds(kinds["compiled"])
    kinds["compiled"]()
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(steps):
        for kind, step in kinds.items():
            times[kind].append(cpu_seconds(step))
    median = {kind: statistics.median(seconds) for kind, seconds in times.items()}
    gain = median["plain"] - median["compiled"]
    work = functools.partial(flops_per_token, plain.n_matmul_parameters, config.n_layers)
    tera = ids.numel() * work(config.context_length, config.d_model) / 1e12
    count = compiling / gain if gain > 0 else float("inf")
    return (
        f"| {name} | {precision} | {compiling:.0f} | {1e3 * median['plain']:.1f} |"
        f" {1e3 * median['compiled']:.1f} | {median['plain'] / median['compiled']:.2f} |"
        f" {count:,.0f} steps, {count * tera:.0f} TFLOP |"
    )


def cpu_seconds(action: Callable[[], None]) -> float:
    """Return the CPU time of an action, with that of the processes that it started and ended."""

    def spent() -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.process_time() + children.ru_utime + children.ru_stime

    started = spent()
    action()
    return spent() - started


if __name__ == "__main__":
    main()
