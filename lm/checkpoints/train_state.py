"""What a checkpoint holds of a run in training: written here, and read so that nothing in it can
run.

torch takes whatever fits its containers: moments of other shapes, which the fused kernel then reads
past their end. So every value is looked at here, before anything of the run is touched.
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
from lm.checkpoints.folder import Begun, read_meta
from lm.checkpoints.weights import write_state, write_weights
from lm.config.schema.optimizer import OptimizerConfig
from lm.optim.averaging import WeightAverage
from lm.optim.optimizers import make_optimizer, trained
from lm.surgery.fsdp import is_sharded, shard_like
from lm.system.errors import CheckpointError
from model import Decoder

KEYS = {"step", "recent_losses", "optimizer"}
OF_EACH_WEIGHT = {"step", "exp_avg", "exp_avg_sq"}
SCALER = {"scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"}


def tensor_writers(
    decoder: Decoder, optimizer: Optimizer, average: WeightAverage | None, state: dict[str, Any]
) -> dict[str, Callable[[Path], None]]:
    """The files of a run in training that the first process writes: name -> function that writes
    it.

    `state`, of plain values, goes along with the optimiser's. Of a decoder that is shared out,
    `begin_shards` has written the tensors.
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
    """Each process's part of the checkpoint `path` of a decoder that is shared out. Raises
    CheckpointError on all processes.
    """
    kinds: dict[str, dict[str, Tensor]] = {
        "model": dict(trained(decoder)),
        "optimizer": fsdp.optimizer_tensors(optimizer),
    }
    return fsdp.write_shards(
        path, kinds | ({"ema": average.weights} if average is not None else {})
    )


def load_into(decoder: Decoder, folder: Path, averaged: bool) -> None:
    """Give a decoder the weights of a checkpoint, ordinary or sharded: the averaged ones if wanted
    and there. Raises CheckpointError.

    Of a decoder with frozen weights those that are trained, which are all that its checkpoints
    hold. One on the meta device comes to the CPU once they are found to fit.
    """
    weights = fsdp.read_any_weights(folder, trained(decoder), averaged)
    if any(parameter.is_meta for parameter in decoder.parameters()):
        decoder.to_empty(device="cpu").tie_weights()
    with torch.no_grad():
        for name, parameter in trained(decoder).items():
            parameter.copy_(weights[name])


@dataclass(frozen=True)
class Saved:
    """What a checkpoint holds beside the weights, whole and on the CPU."""

    state: dict[str, Any]
    averages: dict[str, Tensor] | None

    def restore(self, optimizer: Optimizer, average: WeightAverage | None) -> dict[str, Any]:
        """Put the optimiser and the averages where they were; returns the plain values that went
        along.
        """
        optimizer.load_state_dict(fsdp.shard_optimizer_state(self.state["optimizer"], optimizer))
        if average is not None and self.averages is not None:
            average.load(
                {
                    name: shard_like(self.averages[name], mine)
                    for name, mine in average.weights.items()
                }
            )
        return self.state


def read_saved(folder: Path, decoder: Decoder, config: OptimizerConfig, precision: str) -> Saved:
    """Read it before anything of the run is touched: what is refused changes nothing. The decoder
    is whole. Raises CheckpointError.
    """
    state = read_train_state(
        folder, read_meta(folder)["step"], make_optimizer(decoder, config, precision)
    )
    wanted = config.ema_decay and (
        (folder / "ema.safetensors").exists() or fsdp.has_shards(folder, "ema")
    )
    return Saved(
        state, fsdp.read_any_weights(folder, trained(decoder), averaged=True) if wanted else None
    )


def read_train_state(folder: Path, step: int, optimizer: Optimizer) -> dict[str, Any]:
    """A checkpoint's `step`, `recent_losses`, `optimizer` and, of an fp16 run, `scaler`.

    Args:
        folder: the checkpoint.
        step: the step that its meta.json names.
        optimizer: one over the weights that the state is for; it is not changed.

    Raises:
        CheckpointError: the file is missing, no such file, holds more than tensors and numbers, or
            state of other weights.
    """
    sharded = fsdp.has_shards(folder, "optimizer")
    file = folder / ("train_state.json" if sharded else "train_state.pt")
    state = fsdp.read_train_state(folder) if sharded else _unpickled(file)
    if problem := _problem(state, step, optimizer):
        raise CheckpointError(f"{file} is damaged: {problem}")
    # The configuration decides on the groups' settings, not what it said when the run was saved.
    groups = optimizer.state_dict()["param_groups"]
    return state | {"optimizer": {"state": state["optimizer"]["state"], "param_groups": groups}}


def _unpickled(file: Path) -> Any:
    """The plain values and tensors in a file of torch's; CheckpointError where it holds anything
    else.
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
    except (
        Exception
        # torch, its unpickler and zipfile have a dozen classes; torch's message advises to let the file
        # run code
    ) as error:
        kind = type(error).__name__
        raise CheckpointError(
            f"{file} cannot be read: it is not what torch.save makes of tensors and numbers alone"
            f" ({kind})"
        ) from error


def _problem(state: Any, step: int, optimizer: Optimizer) -> str | None:
    """What is wrong with the state, if anything is."""
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
    weights = dict(
        enumerate(weight for group in optimizer.param_groups for weight in group["params"])
    )
    unused = not stored["state"] and (scaler or not losses)  # every update so far was left out
    if stored["state"].keys() != weights.keys() and not unused:
        return "optimizer has the state of other weights than the model's"
    wrong = (_wrong_value(values, weights[number]) for number, values in stored["state"].items())
    return next(
        (
            f"optimizer.state[{number}]: {said}"
            for number, said in zip(stored["state"], wrong, strict=True)
            if said
        ),
        None,
    )


def _wrong_value(values: Any, weight: Tensor) -> str | None:
    if not isinstance(values, dict) or values.keys() != OF_EACH_WEIGHT:
        return f"it should hold {', '.join(sorted(OF_EACH_WEIGHT))}"
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
