"""Optimisers: which weights decay, and a table of what can be configured."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.optim import Optimizer

from lm.config.schema.optimizer import OptimizerConfig

Group = dict[str, object]

# The layers whose `weight` decays. A list of what does, not of what does not: a norm of someone's
# own making is on neither.
DECAYED = (nn.Linear, nn.Embedding)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[Group]:
    """Split the trained parameters into decayed and not; every one is in exactly one group, a tied
    one too.

    Decay acts on the matrices of linear layers, and on embeddings with them, which in a tied model
    are the head's matrix as well. The size of a norm's scale or of a bias means something; pulling
    it to zero is a different model, not a simpler one. Not told apart by their number of
    dimensions: a norm with a scale for each head has two.
    """
    matrices = {module.weight for module in model.modules() if isinstance(module, DECAYED)}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[Group] = [
        {
            "params": [parameter for parameter in trained if parameter in matrices],
            "weight_decay": weight_decay,
        },
        {
            "params": [parameter for parameter in trained if parameter not in matrices],
            "weight_decay": 0.0,
        },
    ]
    return [group for group in groups if group["params"]]


def adamw(model: nn.Module, config: OptimizerConfig, fused: bool) -> Optimizer:
    """AdamW (Loshchilov & Hutter 2019)."""
    return torch.optim.AdamW(
        parameter_groups(model, config.weight_decay),
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=fused or None,
    )


OPTIMIZERS: dict[str, Callable[[nn.Module, OptimizerConfig, bool], Optimizer]] = {"adamw": adamw}


def make_optimizer(model: nn.Module, config: OptimizerConfig, precision: str) -> Optimizer:
    """The configured optimiser, over the parameters that are trained.

    The fused kernel (about three times faster than the loop on a CPU) unscales fp16 gradients
    inside its own step, after the point where we clip them and look for NaN; so fp16 takes the
    unfused one. MPS has no need of it.
    """
    device = next(model.parameters()).device.type
    return OPTIMIZERS[config.name](model, config, device in ("cpu", "cuda") and precision != "fp16")
