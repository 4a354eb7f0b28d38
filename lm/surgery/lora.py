"""Low-rank adapters (LoRA, Hu et al. 2021) on the linear layers and embeddings of any module.

    y = W x + alpha / rank * B A dropout(x)

W (out, in) is frozen; A (rank, in) and B (out, rank) are trained, and B is zero at first.

Load the weights before you add adapters: a layer `q_proj` becomes `q_proj.base`, with
`q_proj.lora_A` and `q_proj.lora_B` next to it. `merge` restores the ordinary names.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lm.config.schema.finetune import LoraConfig
from lm.optim.modes import evaluating
from lm.surgery.four_bit import FourBitLinear
from lm.system.errors import ConfigError

# The head gets no adapters: the loss uses its weight without its forward, and the weight may be the
# embedding's.
OUTPUT_HEAD = "lm_head"


def add_adapters(module: nn.Module, config: LoraConfig, four_bits: bool = False) -> list[str]:
    """Freeze a module, and put adapters on the linear layers and embeddings whose names match. Only
    the adapters are trained afterwards.

    An embedding's adapter acts on the output head too, if the head shares the embedding's weights.

    Args:
        module: must hold its weights. It computes the same as before, because B is zero; in 4 bits
            nearly the same.
        config: the patterns are fnmatch's; `*` also matches dots. A is drawn from torch's global
            random state.
        four_bits: keep the weights of these linear layers as NF4 numbers.

    Returns:
        The names of the adapted layers.

    Raises:
        ConfigError: a pattern matches none, or bitsandbytes is missing.
    """
    layers = {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Embedding)
    }
    adaptable = {
        name: layer for name, layer in layers.items() if name.rpartition(".")[2] != OUTPUT_HEAD
    }
    for pattern in config.targets:
        if not any(fnmatchcase(name, pattern) for name in adaptable):
            raise ConfigError(_no_match(pattern, list(adaptable), list(layers)))
    chosen = [
        name for name in adaptable if any(fnmatchcase(name, pattern) for pattern in config.targets)
    ]
    module.requires_grad_(False)
    for name in chosen:
        layer = adaptable[name]
        if isinstance(layer, nn.Linear):
            _replace(module, name, Adapted(FourBitLinear(layer) if four_bits else layer, config))
        else:
            update = AdaptedTable(layer.weight, config)
            for owner in [other for other in layers.values() if other.weight is layer.weight]:
                parametrize.register_parametrization(owner, "weight", update)
    return chosen


def merge(module: nn.Module) -> None:
    """Turn a module with adapters into an ordinary one, in place: W + alpha / rank * B A, under W's
    old names, and nothing frozen.

    4-bit weights are unpacked first, in float32: the adapters were trained with those values.
    """
    for name, adapted in list(module.named_modules()):
        if isinstance(adapted, Adapted):
            _replace(module, name, adapted.merged())
    tables: list[Any] = [
        layer for layer in module.modules() if parametrize.is_parametrized(layer, "weight")
    ]
    merged = [layer.weight.detach() for layer in tables]
    # A tied weight occurs twice, and stays tied.
    for layer, weight in zip(tables, merged, strict=True):
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
        layer.weight.data.copy_(weight)
    module.requires_grad_(True)


@contextmanager
def adapters_off(module: nn.Module) -> Iterator[nn.Module]:
    """Within the block the module is the frozen base, without dropout: DPO's reference."""
    layers = [layer for layer in module.modules() if isinstance(layer, Adapted | AdaptedTable)]
    before = [layer.enabled for layer in layers]
    for layer in layers:
        layer.enabled = False
    try:
        with evaluating(module):
            yield module
    finally:
        for layer, enabled in zip(layers, before, strict=True):
            layer.enabled = enabled


class Adapted(nn.Module):
    """A frozen linear layer with an adapter.

    A and B are parameters, not linear layers, so they do not decay (lm/optim/optimizers.py). Only
    their product has a meaning. Decay of one factor would act on it with a strength that depends on
    the other's scale, and would shrink A for nothing while B is near zero.
    """

    def __init__(self, base: nn.Linear | FourBitLinear, config: LoraConfig):
        super().__init__()
        self.base = base
        device = next(base.parameters()).device
        self.lora_A = nn.Parameter(torch.empty(config.rank, base.in_features, device=device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, config.rank, device=device))
        # uniform between -1 / sqrt(in) and 1 / sqrt(in), as in nn.Linear
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.dropout = nn.Dropout(config.dropout)
        self.scale = config.alpha / config.rank
        self.enabled = True

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in) -> (..., out)."""
        y: Tensor = self.base(x)
        if not self.enabled:
            return y
        return y + self.scale * F.linear(F.linear(self.dropout(x), self.lora_A), self.lora_B)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Return one linear layer that computes the same."""
        layer = self.base if isinstance(self.base, nn.Linear) else self.base.unpacked()
        layer.weight += self.scale * (self.lora_B @ self.lora_A)
        return layer


class AdaptedTable(nn.Module):
    """An adapter in an embedding's weight: W (V, D) becomes W + alpha / rank * B A wherever it is
    used, with B (V, rank) and A (rank, D).

    W is a table for the embedding and a matrix for a tied head, so the adapter cannot be a layer
    next to it. torch's parametrization puts it into the weight.
    """

    def __init__(self, weight: Tensor, config: LoraConfig):
        super().__init__()
        self.lora_A = nn.Parameter(weight.new_empty(config.rank, weight.shape[1]))
        self.lora_B = nn.Parameter(weight.new_zeros(weight.shape[0], config.rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.scale = config.alpha / config.rank
        self.enabled = True

    def forward(self, weight: Tensor) -> Tensor:
        """(V, D) -> (V, D)."""
        return weight + self.scale * (self.lora_B @ self.lora_A) if self.enabled else weight


def _replace(module: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(module.get_submodule(parent), last, layer)


def _no_match(pattern: str, adaptable: list[str], layers: list[str]) -> str:
    if any(fnmatchcase(name, pattern) for name in layers):
        return (
            f"finetune.lora.targets: {pattern!r} names the output head alone, which gets no"
            " adapters of its own: the loss uses its matrix directly; where it shares the"
            " embedding's, name that"
        )
    # "layers.*.mlp.up_proj" stands for all layers
    kinds = dict.fromkeys(re.sub(r"\b\d+\b", "*", name) for name in adaptable)
    return (
        f"finetune.lora.targets: {pattern!r} matches no layer; there are"
        f" {', '.join(kinds) or 'none'}"
    )
