"""Optimisers: which weights are trained, which of them decay, and what can be configured."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.optim import Optimizer

from lm.config.schema.optimizer import OptimizerConfig

Group = dict[str, object]
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


def adamw(model: nn.Module, config: OptimizerConfig, fused: bool) -> Optimizer:
    """Return AdamW (Loshchilov & Hutter 2019)."""
    groups = parameter_groups(model, config.weight_decay)
    return torch.optim.AdamW(groups, config.lr, config.betas, config.eps, fused=fused or None)


OPTIMIZERS: dict[str, Callable[[nn.Module, OptimizerConfig, bool], Optimizer]] = {"adamw": adamw}


def make_optimizer(model: nn.Module, config: OptimizerConfig, precision: str) -> Optimizer:
    """Return the configured optimiser over the trained parameters.

    The fused kernel is about three times faster on a CPU. It unscales fp16 gradients inside its
    step, after they are clipped and searched for NaN, so fp16 uses the unfused one.
    """
    fused = next(model.parameters()).device.type in ("cpu", "cuda") and precision != "fp16"
    return OPTIMIZERS[config.name](model, config, fused)
