"""The training state in a checkpoint: written here, and read so that no code in it can run.

torch accepts whatever fits its containers, such as moments of other shapes, and the fused kernel
then reads beyond their end. Every value is therefore checked before the run is touched.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lm.checkpoints import fsdp
from lm.checkpoints.folder import Checkpoint
from lm.checkpoints.weights import write_state, write_weights
from lm.checkpoints.write import Begun
from lm.config.schema.optimizer import OptimizerConfig
from lm.optim.averaging import WeightAverage
from lm.optim.optimizers import make_optimizer, state_names, trained
from lm.surgery.fsdp import is_sharded, shard_like
from lm.system.errors import CheckpointError
from model import Decoder

KEYS = {"step", "recent_losses", "optimizer"}
SCALER = {"scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"}


def tensor_writers(
    decoder: Decoder, optimizer: Optimizer, average: WeightAverage | None, state: dict[str, Any]
) -> dict[str, Callable[[Path], None]]:
    """Return the files that the first process writes: name -> function that writes the file.

    `state` holds plain values, which are saved with the optimiser's state. If the decoder is
    sharded, `begin_shards` has written the tensors already.
    """
    if is_sharded(decoder):
        return {"train_state.json": lambda path: fsdp.write_train_state(path, state, optimizer)}
    files: dict[str, Callable[[Path], None]] = {
        "model.safetensors": lambda path: write_weights(path, trained(decoder)),
        "train_state.pt": lambda path: write_state(
            path, state | {"optimizer": optimizer.state_dict()}
        ),
    }
    if average is not None:
        files["ema.safetensors"] = lambda path: write_weights(path, average.weights)
    return files


def begin_shards(
    path: Path, decoder: Decoder, optimizer: Optimizer, average: WeightAverage | None
) -> Begun:
    """Write this process's part of the checkpoint `path` of a sharded decoder.

    Raises:
        CheckpointError: on all processes, if one of them failed.
    """
    kinds: dict[str, dict[str, Tensor]] = {
        "model": dict(trained(decoder)),
        "optimizer": fsdp.optimizer_tensors(optimizer),
    }
    return fsdp.write_shards(
        path, kinds | ({"ema": average.weights} if average is not None else {})
    )


def load_into(decoder: Decoder, checkpoint: Checkpoint, averaged: bool) -> None:
    """Give a decoder the weights of a checkpoint, ordinary or sharded.

    A decoder with frozen weights gets the trained ones, because its checkpoints hold no others. A
    decoder on the meta device moves to the CPU after the weights have proved to fit.

    Args:
        decoder: has the checkpoint's shape.
        checkpoint: holds the weights.
        averaged: prefer the EMA weights if the checkpoint has them.

    Raises:
        CheckpointError: the weights are missing, damaged or of another model.
    """
    weights = fsdp.read_any_weights(checkpoint, trained(decoder), averaged)
    if any(parameter.is_meta for parameter in decoder.parameters()):
        decoder.to_empty(device="cpu").tie_weights()
    with torch.no_grad():
        for name, parameter in trained(decoder).items():
            parameter.copy_(weights[name])


@dataclass(frozen=True)
class TrainState:
    """The training state of a checkpoint besides the weights, unsharded and on the CPU."""

    state: dict[str, Any]
    averages: dict[str, Tensor] | None

    def restore(self, optimizer: Optimizer, average: WeightAverage | None) -> dict[str, Any]:
        """Restore the optimiser and the averages; return the plain values saved with them."""
        optimizer.load_state_dict(fsdp.shard_optimizer_state(self.state["optimizer"], optimizer))
        if average is not None and self.averages is not None:
            average.load(
                {
                    name: shard_like(self.averages[name], mine)
                    for name, mine in average.weights.items()
                }
            )
        return self.state


def read_saved(
    checkpoint: Checkpoint, decoder: Decoder, config: OptimizerConfig, precision: str
) -> TrainState:
    """Return the training state before the run is touched, so that a refusal changes nothing.

    The decoder is not sharded yet. Raises CheckpointError.
    """
    state = read_train_state(checkpoint, make_optimizer(decoder, config, precision))
    wanted = config.ema_decay and (
        (checkpoint.path / "ema.safetensors").exists() or fsdp.has_shards(checkpoint, "ema")
    )
    return TrainState(
        state,
        fsdp.read_any_weights(checkpoint, trained(decoder), averaged=True) if wanted else None,
    )


def read_train_state(checkpoint: Checkpoint, optimizer: Optimizer) -> dict[str, Any]:
    """Return `step`, `recent_losses`, `optimizer` and, for an fp16 run, `scaler`.

    Args:
        checkpoint: holds the state.
        optimizer: has the weights that the state is for; it is not changed.

    Raises:
        CheckpointError: the file is missing, is not such a file, holds more than tensors and
            numbers, or holds the state of other weights.
    """
    sharded = fsdp.has_shards(checkpoint, "optimizer")
    file = checkpoint.path / ("train_state.json" if sharded else "train_state.pt")
    state = fsdp.join_train_state(checkpoint) if sharded else _unpickled(file)
    if problem := _problem(state, checkpoint.step, optimizer):
        raise CheckpointError(f"{file} is damaged: {problem}")
    # the configuration of today decides the groups' settings, not the one that was saved
    groups = optimizer.state_dict()["param_groups"]
    return state | {"optimizer": {"state": state["optimizer"]["state"], "param_groups": groups}}


def _unpickled(file: Path) -> Any:
    """Return the content of a file that torch.save made of plain values and tensors alone.

    Raises:
        CheckpointError: the file holds anything else.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())
        if packed or sum(entry.file_size for entry in archive.infolist()) > file.stat().st_size:
            raise CheckpointError(
                f"{file} cannot be read: it is compressed, which torch.save never does"
            )
        return torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error
    except CheckpointError:
        raise
    # torch, its unpickler and zipfile raise a dozen classes. torch's own message is not shown: it
    # advises to let the file run code.
    except Exception as error:
        kind = type(error).__name__
        raise CheckpointError(
            f"{file} cannot be read: it is not what torch.save makes of tensors and numbers alone"
            f" ({kind})"
        ) from error


def _problem(state: Any, step: int, optimizer: Optimizer) -> str | None:
    """Return the first problem of the state, if any."""
    if not isinstance(state, dict) or not KEYS <= state.keys() <= KEYS | {"scaler"}:
        return "it should hold step, recent_losses, optimizer and for fp16 scaler"
    losses = state["recent_losses"]
    if not isinstance(losses, list) or not all(
        type(loss) is float and math.isfinite(loss) for loss in losses
    ):
        return "recent_losses is not a list of numbers"
    if type(state["step"]) is not int or state["step"] != step:
        return f"its step is not {step}, as meta.json has it"
    scaler = state.get("scaler")
    if "scaler" in state and not (
        isinstance(scaler, dict)
        and scaler.keys() == SCALER
        and all(map(_is_amount, scaler.values()))
    ):
        return "scaler is not that of an fp16 run"
    stored = state["optimizer"]
    if (
        not isinstance(stored, dict)
        or stored.keys() != {"state", "param_groups"}
        or not isinstance(stored["state"], dict)
    ):
        return "optimizer is not the state of an optimiser"
    groups = [group["params"] for group in optimizer.state_dict()["param_groups"]]
    if (
        not isinstance(stored["param_groups"], list)
        or [_numbers(group) for group in stored["param_groups"]] != groups
    ):
        return "optimizer has other groups of weights than the configured one"
    pairs = [
        (weight, state_names(group))
        for group in optimizer.param_groups
        for weight in group["params"]
    ]
    weights = dict(enumerate(pairs))
    unused = not stored["state"] and (scaler or not losses)  # every update so far was skipped
    if stored["state"].keys() != weights.keys() and not unused:
        return "optimizer has the state of other weights than the model's"
    problems = (
        _wrong_value(values, *weights[number]) for number, values in stored["state"].items()
    )
    return next(
        (
            f"optimizer.state[{number}]: {problem}"
            for number, problem in zip(stored["state"], problems, strict=True)
            if problem
        ),
        None,
    )


def _wrong_value(values: Any, weight: Tensor, names: tuple[str, ...]) -> str | None:
    """Return the first problem of one weight's optimiser state, if any."""
    if not isinstance(values, dict) or values.keys() != set(names):
        return f"it should hold {', '.join(sorted(names))}"
    for name, value in values.items():
        shape = torch.Size() if name == "step" else weight.shape
        if (
            not isinstance(value, Tensor)
            or value.layout is not torch.strided
            or value.device.type != "cpu"
        ):
            return f"{name} is not a plain tensor"
        if (value.shape, value.dtype) != (shape, torch.float32) or not value.is_contiguous():
            return (
                f"{name} is {value.dtype} {tuple(value.shape)}, where the weight has torch.float32"
                f" {tuple(shape)}"
            )
        if not value.isfinite().all():
            return f"{name} holds a number that is not finite"
    return None


def _numbers(group: Any) -> Any:
    return group.get("params") if isinstance(group, dict) else None


def _is_amount(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf
