"""The comparison of two runs bit by bit, which finds the first difference."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from lm.checkpoints.folder import step_directories, step_name, step_of
from lm.system.errors import CheckpointError

Trace = dict[int, dict[str, str]]  # step -> its batch and numbers, exactly


def trace_of(
    step: int, batch: dict[str, Any], loss: Tensor, learning_rate: float, grad_norm: Tensor
) -> str:
    """Return a line for one training step: the batch's hash, and the numbers to the last bit."""
    digest = hashlib.sha256()
    for name in sorted(name for name, value in batch.items() if isinstance(value, Tensor)):
        digest.update(batch[name].cpu().contiguous().numpy().tobytes())
    numbers = {
        "learning rate": learning_rate,
        "loss": loss.item(),
        "gradient norm": grad_norm.item(),
    }
    return json.dumps(
        {"step": step, "batch": digest.hexdigest()[:16]}
        | {name: float(value).hex() for name, value in numbers.items()}
    )


def read_trace(file: Path) -> Trace:
    """Read the steps of a traced run; a step that was repeated after a kill must be the same.

    Raises:
        CheckpointError: a repeated step differs.
    """
    trace: Trace = {}
    for line in file.read_text().splitlines():
        values = json.loads(line)
        step = values.pop("step")
        if trace.setdefault(step, values) != values:
            raise CheckpointError(
                f"step {step}: repeated after a kill, {_difference(trace[step], values)}"
            )
    return trace


def first_difference(one: Path, other: Path, one_trace: Trace, other_trace: Trace) -> str | None:
    """Compare step by step, then checkpoint by checkpoint; return None if all is the same.

    Args:
        one: the folder of a run.
        other: the folder of the run that should be the same.
        one_trace: the steps of the first run.
        other_trace: the steps of the second run.
    """
    if one_trace.keys() != other_trace.keys():
        return f"the steps: {len(one_trace)} against {len(other_trace)}"
    for step in sorted(one_trace):
        if one_trace[step] != other_trace[step]:
            return f"step {step}: {_difference(one_trace[step], other_trace[step])}"
    steps = {step_of(path) for path in step_directories(one)} & {
        step_of(path) for path in step_directories(other)
    }
    for step in sorted(steps):
        name = step_name(step)
        theirs = dict(_tensors(other / name))
        for tensor, mine in _tensors(one / name):
            if (difference := _tensor_difference(mine, theirs.pop(tensor, None))) is not None:
                return f"step {step}: {tensor} {difference}"
        if theirs:
            return f"step {step}: {sorted(theirs)[0]} is in one of them only"
    return None


def _difference(one: dict[str, str], other: dict[str, str]) -> str:
    name = next(name for name in one if one[name] != other[name])
    if name == "batch":
        return f"the batch differs ({one[name]}, {other[name]})"
    return f"the {name} differs ({float.fromhex(one[name])!r}, {float.fromhex(other[name])!r})"


def _tensors(checkpoint: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield weights, averages and optimiser state, by file and name."""
    for file in sorted(checkpoint.glob("*.safetensors")):
        for name, tensor in sorted(load_file(file).items()):
            yield f"{file.name}: {name}", tensor
    state = torch.load(checkpoint / "train_state.pt", map_location="cpu", weights_only=True)[
        "optimizer"
    ]["state"]
    for number, values in sorted(state.items()):
        for name, value in sorted(values.items()):
            yield f"train_state.pt: {name} of parameter {number}", torch.as_tensor(value)


def _tensor_difference(one: Tensor, other: Tensor | None) -> str | None:
    if other is None:
        return "is in one of them only"
    if torch.equal(one, other):
        return None
    if one.shape != other.shape:
        return f"differs in shape ({tuple(one.shape)}, {tuple(other.shape)})"
    return (
        f"differs in {int((one != other).sum()):,} of {one.numel():,} values, by at most"
        f" {(one - other).abs().max().item():.3g}"
    )
