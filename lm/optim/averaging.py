"""An exponential moving average of the weights: a smoother model for the price of a second copy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lm.optim.optimizers import trained


class WeightAverage:
    """The average of a model's trained parameters: decay * average + (1 - decay) * weights.

    It begins as a copy of the weights, so it is never empty or biased to zero.

    Attributes:
        weights: the averages by parameter name, on the model's device and in its types; a tied
            parameter occurs once.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.weights = {
            name: parameter.detach().clone() for name, parameter in trained(model).items()
        }

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Add the weights after an optimiser step to the average."""
        weights = [parameter.detach() for parameter in trained(model).values()]
        torch._foreach_lerp_(list(self.weights.values()), weights, 1 - self.decay)

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Continue from saved averages."""
        for name, tensor in self.weights.items():
            tensor.copy_(weights[name])

    @contextmanager
    def swapped_in(self, model: nn.Module) -> Iterator[None]:
        """Give the model the averaged weights within the block; afterwards it has its own again,
        bit for bit.
        """
        self._swap(model)
        try:
            yield
        finally:
            self._swap(model)

    @torch.no_grad()
    def _swap(self, model: nn.Module) -> None:
        # Exchanging the storages would be free, but compiled code and DDP's buckets refer to the
        # old ones.
        for name, parameter in trained(model).items():
            copy = parameter.detach().clone()
            parameter.copy_(self.weights[name])
            self.weights[name].copy_(copy)
