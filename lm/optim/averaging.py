"""An exponential moving average of the weights: a smoother model for the price of a second copy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lm.optim.optimizers import trained


class WeightAverage:
    """Keeps `average = decay * average + (1 - decay) * weights` of a model's trained parameters.

    It starts as a copy of the weights, so there is no moment at which it is empty or biased to
    zero.

    Attributes:
        weights: the averages by parameter name, on the model's device and in its types; a tied one
            once.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.weights = {
            name: parameter.detach().clone() for name, parameter in trained(model).items()
        }

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after an optimiser step."""
        torch._foreach_lerp_(
            list(self.weights.values()),
            [p.detach() for p in trained(model).values()],
            1 - self.decay,
        )

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Continue from saved averages."""
        for name, tensor in self.weights.items():
            tensor.copy_(weights[name])

    @contextmanager
    def swapped_in(self, model: nn.Module) -> Iterator[None]:
        """Within the block the model has the averaged weights; afterwards its own again, bit for
        bit.
        """
        self._swap(model)
        try:
            yield
        finally:
            self._swap(model)

    @torch.no_grad()
    def _swap(self, model: nn.Module) -> None:
        # Exchanging the storages would be free, but compiled code and DDP's buckets hold on to the
        # old ones.
        for name, parameter in trained(model).items():
            kept = parameter.detach().clone()
            parameter.copy_(self.weights[name])
            self.weights[name].copy_(kept)
