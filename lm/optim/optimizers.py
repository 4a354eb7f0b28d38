"""Optimisers: which weights are trained, which of them decay, and what can be configured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lm.config.schema.optimizer import OptimizerConfig
from lm.optim.muon import STATE, Muon
from lm.system.device import has_native_bf16

Group = dict[str, Any]
# Layers whose `weight` decays. The list names what decays, so an unknown kind of norm does not.
DECAYED = (nn.Linear, nn.Embedding)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters to train, save and average, by name; a tied one is there once."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def parameter_groups(model: nn.Module, weight_decay: float) -> list[Group]:
    """Split the trained parameters into decayed and not; each is in exactly one group.

    Decay acts on the matrices of linear layers and on embeddings, which in a tied model are the
    head's matrix too. A norm's scale or a bias has a meaningful size: pulled to zero, the model is
    different, not simpler. The number of dimensions does not separate them: a norm with a scale for
    each head has two.
    """
    matrices = {module.weight for module in model.modules() if isinstance(module, DECAYED)}
    parameters = trained(model).values()
    decayed = [parameter for parameter in parameters if parameter in matrices]
    others = [parameter for parameter in parameters if parameter not in matrices]
    groups = ((decayed, weight_decay), (others, 0.0))
    return [{"params": params, "weight_decay": decay} for params, decay in groups if params]


def hidden_matrices(model: nn.Module) -> set[Tensor]:
    """Return the matrices of the linear layers inside blocks: what Muon trains.

    Chosen by their module. By the number of dimensions an embedding or a norm for each head would
    be among them, and by name a tied head.
    """
    layers = model.get_submodule("layers").modules()
    return {layer.weight for layer in layers if isinstance(layer, nn.Linear)}


def adamw(model: nn.Module, config: OptimizerConfig, precision: str) -> Optimizer:
    """Return AdamW (Loshchilov & Hutter 2019)."""
    groups = _groups(model, config, precision)
    if config.cautious_decay:
        return Muon(groups, torch.float32)  # its AdamW; torch's decays all numbers in its kernel
    return torch.optim.AdamW(groups)


def muon(model: nn.Module, config: OptimizerConfig, precision: str) -> Optimizer:
    """Return Muon over the hidden matrices, with AdamW over all other weights."""
    by_muon = {"kind": "muon", "lr": config.muon_lr, "momentum": config.muon_momentum}
    groups = _groups(model, config, precision, (hidden_matrices(model), by_muon))
    native = precision == "bf16" and has_native_bf16(next(model.parameters()).device.type)
    return Muon(groups, torch.bfloat16 if native else torch.float32)


OPTIMIZERS: dict[str, Callable[[nn.Module, OptimizerConfig, str], Optimizer]] = {
    "adamw": adamw,
    "muon": muon,
}


def make_optimizer(model: nn.Module, config: OptimizerConfig, precision: str) -> Optimizer:
    """Return the configured optimiser over the trained parameters."""
    return OPTIMIZERS[config.name](model, config, precision)


def state_names(group: Group) -> tuple[str, ...]:
    """Return the names of the tensors that the optimiser keeps for each weight of a group."""
    return STATE[group.get("kind", "adamw")]


def clip_gradients(optimizer: Optimizer, limit: float, norm: Tensor) -> None:
    """Scale AdamW's gradients down to the norm `limit`.

    Muon's are left out. Its step does not depend on their size, so they must not decide how much
    the others are scaled.

    Args:
        norm: the norm of all gradients, which is AdamW's where it trains all weights.
    """
    groups = [group for group in optimizer.param_groups if group.get("kind") != "muon"]
    if len(groups) == len(optimizer.param_groups) and limit / (norm + 1e-6) >= 1:
        return  # as in torch, which multiplies by 1; a GPU has computed `norm` by now
    weights = [p for group in groups for p in group["params"] if p.grad is not None]
    if len(groups) < len(optimizer.param_groups):
        norm = nn.utils.get_total_norm(weight.grad for weight in weights)
    nn.utils.clip_grads_with_norm_(weights, limit, norm)


def _groups(
    model: nn.Module, config: OptimizerConfig, precision: str, *special: tuple[set[Tensor], Group]
) -> list[Group]:
    """Split `parameter_groups` by the settings of an update.

    A rate that is not configured makes no group: the groups are numbered in every checkpoint.

    Args:
        special: weights that are trained in another way than by AdamW, with their settings.
    """
    plain = {"kind": "adamw", "lr": config.lr, "betas": config.betas, "eps": config.eps}
    plain["fused"] = _fused(model, precision)
    parts = [*special]
    if config.embedding_lr is not None:
        tables = {layer.weight for layer in model.modules() if isinstance(layer, nn.Embedding)}
        parts.append((tables, plain | {"lr": config.embedding_lr}))
    if config.head_lr is not None:
        parts.append(({model.get_parameter("lm_head.weight")}, plain | {"lr": config.head_lr}))
    parts.append((set(model.parameters()), plain))
    groups: list[Group] = []
    for group in parameter_groups(model, config.weight_decay):
        rest = group["params"]
        for weights, settings in parts:
            params = [weight for weight in rest if weight in weights]
            rest = [weight for weight in rest if weight not in weights]
            own = {"params": params, "lr_factor": settings["lr"] / config.lr}
            own["cautious"] = config.cautious_decay
            groups += [group | settings | own] if params else []
    return groups


def _fused(model: nn.Module, precision: str) -> bool | None:
    """Return whether AdamW uses its fused kernel, about three times faster on a CPU.

    It unscales fp16 gradients inside its step, after they are clipped and searched for NaN, so fp16
    uses the unfused one. None lets torch choose; False would choose the slow loop.
    """
    return (next(model.parameters()).device.type in ("cpu", "cuda") and precision != "fp16") or None
