"""Low-rank adapters (LoRA, Hu et al. 2021) on the linear layers of any module; QLoRA's frozen
weights in 4 bits (Dettmers et al. 2023).

    y = W x + alpha / rank * B A dropout(x)         W frozen, (out, in)     A (rank, in)    B (out, rank), zero at first

The weights must be loaded before adapters are added: a layer `q_proj` becomes `q_proj.base` with
`q_proj.lora_A` and `q_proj.lora_B` beside it. `merge` brings the ordinary names back.
"""

from __future__ import annotations

import logging
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
from lm.system.errors import ConfigError

# Its weight is used without its forward, by the loss that never holds all logits, and may be the
# embedding's: it gets no adapters.
OUTPUT_HEAD = "lm_head"
BLOCK = 64  # weights of 4 bits that share a scale, as in the paper


def add_adapters(module: nn.Module, config: LoraConfig, four_bits: bool = False) -> list[str]:
    """Freeze a module, and put adapters on the linear layers and embeddings whose names match; only
    they are trained from then on.

    Those of an embedding are on the output head too, where it shares the embedding's weights.

    Args:
        module: holds its weights already. It computes the same as before, since B is zero; in 4
            bits nearly the same.
        config: the patterns are fnmatch's, and `*` stands for dots too. A is drawn from torch's
            global random state.
        four_bits: keep the weights of these linear layers as NF4 numbers.

    Returns:
        The names of the layers.

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
    """Make an ordinary module of one with adapters, in place: W + alpha / rank * B A, under the
    names that W had, and nothing frozen.

    Weights of 4 bits are written out first, in float32: what the adapters were trained beside.
    """
    for name, adapted in list(module.named_modules()):
        if isinstance(adapted, Adapted):
            _replace(module, name, adapted.merged())
    tables: list[Any] = [
        layer for layer in module.modules() if parametrize.is_parametrized(layer, "weight")
    ]
    merged = [layer.weight.detach() for layer in tables]
    # a shared one comes twice, and stays shared
    for layer, weight in zip(tables, merged, strict=True):
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
        layer.weight.data.copy_(weight)
    module.requires_grad_(True)


@contextmanager
def adapters_off(module: nn.Module) -> Iterator[nn.Module]:
    """Within the block the module is the one that the adapters started from, without dropout: what
    DPO compares with.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, Adapted | AdaptedTable)]
    before, training = [layer.enabled for layer in layers], module.training
    module.eval()
    for layer in layers:
        layer.enabled = False
    try:
        yield module
    finally:
        module.train(training)
        for layer, enabled in zip(layers, before, strict=True):
            layer.enabled = enabled


class Adapted(nn.Module):
    """A frozen linear layer with an adapter beside it.

    A and B are parameters, not linear layers, so they do not decay (lm/optim/optimizers.py). The
    product B A is what has a meaning: pulling at each factor pulls at it with a strength that
    depends on how the other one is scaled, and for as long as B is near zero shrinks A for nothing.
    """

    def __init__(self, base: nn.Linear | FourBitLinear, config: LoraConfig):
        super().__init__()
        self.base = base
        device = next(base.parameters()).device
        self.lora_A = nn.Parameter(torch.empty(config.rank, base.in_features, device=device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, config.rank, device=device))
        # uniform between -1 and 1 over sqrt(in), as nn.Linear starts
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
        """One linear layer that does the same."""
        layer = self.base if isinstance(self.base, nn.Linear) else self.base.written_out()
        layer.weight += self.scale * (self.lora_B @ self.lora_A)
        return layer


class AdaptedTable(nn.Module):
    """What an embedding's weights W (V, D) become, wherever they are used: W + alpha / rank * B A,
    with B (V, rank) and A (rank, D).

    A table is looked up, and as a tied head multiplied, so its adapter cannot stand beside it;
    torch's parametrization puts it inside.
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


class FourBitLinear(nn.Module):
    """A frozen linear layer whose weights are NF4 numbers: 4 bits each, and 32 for the largest of
    every 64. bitsandbytes packs them.

    Its own `Linear4bit` packs when it is moved to a GPU, and hides what it needs beside the numbers
    from processes that share a model out. Here everything is a parameter, which moves, is shared
    out and sent like any other. Packed where the layer is: on the CPU, so that the same weights are
    the same numbers on every machine. A block is a row of what the library sees: of matrices whose
    rows are not whole blocks its CPU kernel (0.50.2) reads other numbers than it wrote, 24 % off
    instead of 9.
    """

    def __init__(self, layer: nn.Linear):
        super().__init__()
        blocks = F.pad(layer.weight.detach().flatten(), (0, -layer.weight.numel() % BLOCK)).view(
            -1, BLOCK
        )
        packed, state = _bitsandbytes().quantize_4bit(blocks, blocksize=BLOCK, quant_type="nf4")
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.packed = nn.Parameter(packed, requires_grad=False)
        self.largest = nn.Parameter(state.absmax, requires_grad=False)
        self.values = nn.Parameter(state.code, requires_grad=False)
        self.bias = layer.bias

    def weight(self, dtype: torch.dtype) -> Tensor:
        """(out, in), written out anew at each call."""
        functional = _bitsandbytes()
        shape = torch.Size((len(self.largest), BLOCK))
        state = functional.QuantState(
            self.largest, shape, self.values, blocksize=BLOCK, quant_type="nf4", dtype=dtype
        )
        written: Tensor = functional.dequantize_4bit(self.packed, state)
        return written.flatten()[: self.out_features * self.in_features].view(
            self.out_features, self.in_features
        )

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in) -> (..., out)."""
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        y: Tensor = _TimesFrozen.apply(x, self)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def written_out(self) -> nn.Linear:
        """An ordinary layer with the weights as they are used."""
        layer = nn.Linear(
            self.in_features,
            self.out_features,
            bias=self.bias is not None,
            device=self.packed.device,
        )
        layer.weight = nn.Parameter(self.weight(torch.float32))
        layer.bias = self.bias
        return layer


class _TimesFrozen(torch.autograd.Function):
    """x W^T with the weights written out for each pass. F.linear would keep those of all layers in
    memory for the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: FourBitLinear) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.weight(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return gradient @ ctx.layer.weight(gradient.dtype), None


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
    kinds = dict.fromkeys(re.sub(r"\b\d+\b", "*", name) for name in adaptable)  # one for all layers
    return (
        f"finetune.lora.targets: {pattern!r} matches no layer; there are"
        f" {', '.join(kinds) or 'none'}"
    )


def _bitsandbytes() -> Any:
    # it misses a fast CPU kernel that nothing here calls
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        from bitsandbytes import functional
    except ImportError as error:
        raise ConfigError(
            "finetune.method: qlora needs a package that is missing: pip install -e '.[qlora]'"
        ) from error
    return functional
