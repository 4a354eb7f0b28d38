"""Measure the loss of a large vocabulary: `python benchmarks/loss_memory.py`.

Three ways take turns: all logits at once, pieces that are computed again in the backward pass, and
gradients made in the forward pass. Each does forward and backward in one thread, and the medians
count. CPU time is compared, because other work on the machine lengthens wall time.

Memory is the peak of what torch has allocated at one time beyond its inputs, the gradients
included. It is counted in a run of its own, because counting takes time.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

from lm.optim import early_gradients, loss  # noqa: E402
from lm.system.device import has_native_bf16  # noqa: E402

Way = Callable[[Tensor, Tensor, Tensor], Tensor]


def at_once(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """Hold all logits."""
    with mock.patch.object(loss, "MAX_LOGITS", 2**62):
        return loss.token_losses(hidden, head, labels).sum()


def recomputed(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """Compute pieces of MAX_LOGITS twice."""
    return loss.token_losses(hidden, head, labels).sum()


def early(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """Make the gradients of small pieces in the forward pass."""
    with mock.patch.object(early_gradients, "MOST_LOGITS", 0):
        return early_gradients.summed_loss(hidden, head, labels)


WAYS: dict[str, Way] = {
    "all logits at once": at_once,
    "pieces, computed again": recomputed,
    "gradients in the forward pass": early,
}


def main() -> None:
    """Print a Markdown table of megabytes, seconds and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--vocabulary", type=int, default=50257)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{processor()}, one thread, torch {torch.__version__}: {arguments.tokens:,} tokens,"
        f" {arguments.vocabulary:,} ids, width {arguments.width}, medians of {arguments.rounds}\n"
    )
    print("| precision | way | MB | of all logits | CPU s | of all logits | wall s |")
    print("|---|---|---|---|---|---|---|")
    native = has_native_bf16("cpu")
    for precision in ("fp32", "bf16") if native else ("fp32",):
        compare(
            precision, arguments.tokens, arguments.vocabulary, arguments.width, arguments.rounds
        )
    if not native:
        print("\nbf16 is not native here, and was not measured.")


def compare(precision: str, tokens: int, vocabulary: int, width: int, rounds: int) -> None:
    """Print a row for each way."""
    torch.manual_seed(0)
    hidden = torch.randn(1, tokens, width, requires_grad=True)
    head = torch.randn(vocabulary, width).mul_(0.02).requires_grad_()
    labels = torch.randint(vocabulary, (1, tokens))

    def step(way: Way) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            total = way(hidden, head, labels)
        (total / tokens).backward()

    cpu: dict[str, list[float]] = {name: [] for name in WAYS}
    wall: dict[str, list[float]] = {name: [] for name in WAYS}
    for counted in [False] + rounds * [True]:  # the first round loads kernels
        for name, way in WAYS.items():
            hidden.grad = head.grad = None
            started = time.process_time(), time.perf_counter()
            step(way)
            if counted:
                cpu[name].append(time.process_time() - started[0])
                wall[name].append(time.perf_counter() - started[1])
    first = None
    for name, way in WAYS.items():
        hidden.grad = head.grad = None
        result = peak(lambda way=way: step(way)), statistics.median(cpu[name])
        first = first or result
        print(
            f"| {precision} | {name} | {result[0] / 1e6:.0f} | {result[0] / first[0]:.2f} |"
            f" {result[1]:.2f} | {result[1] / first[1]:.2f} |"
            f" {statistics.median(wall[name]):.2f} |",
            flush=True,
        )


def peak(step: Callable[[], None]) -> int:
    """Return the most bytes that a step has allocated at one time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    result = recorded.profiler.kineto_results  # type: ignore[union-attr]
    changes = [event for event in result.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def processor() -> str:
    """Return the processor's name, as the system gives it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
