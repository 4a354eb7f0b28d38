"""Muon for the hidden matrices and AdamW for all other weights, as one optimiser.

Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) steps along the orthogonal matrix
nearest to the momentum, so every direction moves equally far, also those with small gradients.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw

STATE = {"muon": ("momentum",), "adamw": ("exp_avg", "exp_avg_sq", "step")}  # of each weight, saved
# Five times a x + b x^3 + c x^5 lifts singular values from 0.003 on to about 1 (Jordan's figures).
ITERATIONS, A, B, C = 5, 3.4445, -4.7750, 2.0315


def orthogonalise(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Return U V^T, roughly, for each matrix U S V^T of (n, rows, columns), by Newton-Schulz.

    `dtype` is that of the products: bfloat16 is enough, float16 has too small a range.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if tall else matrices).to(dtype)  # x x^T then has the shorter side
    # Lightning wraps the step in autocast. It would change the products, and on CUDA the norm: a
    # float32 norm makes x float32.
    with torch.autocast(x.device.type, enabled=False):
        x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)  # singular values at most 1; 0 stays 0
        for _ in range(ITERATIONS):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(Optimizer):
    """Steps the groups whose `kind` is "muon" by Muon, and those of kind "adamw" by AdamW.

        momentum = m * momentum + gradient                                 (Nesterov's form follows)
        weight = (1 - lr * weight_decay) * weight
                 - lr * sqrt(max(1, rows / columns)) * orthogonalise(gradient + m * momentum)

    In a `cautious` group only those numbers decay that the update moves towards zero (Chen et al.
    2025, arXiv 2510.12402).

    Args:
        groups: with `kind`, `lr`, `weight_decay`, `cautious`; Muon's `momentum` m; AdamW's `betas`,
            `eps`, `fused`.
        dtype: of Muon's matrix products.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], dtype: torch.dtype):
        super().__init__(groups, {})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every weight that has a gradient; return the closure's result."""
        with torch.enable_grad():
            result = closure() if closure is not None else None
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            for weight in weights:
                if not self.state[weight]:
                    self.state[weight] = {n: torch.zeros_like(weight) for n in STATE[group["kind"]]}
                    if "step" in self.state[weight]:
                        self.state[weight]["step"] = torch.zeros((), device=weight.device)
            (self._muon if group["kind"] == "muon" else self._adamw)(group, weights)
        return result

    def _muon(self, group: dict[str, Any], weights: list[Tensor]) -> None:
        # Matrices of a shape share their products. Sorted, not hashed: the order is always the same
        for shape, same in itertools.groupby(sorted(weights, key=_shape), key=_shape):
            weights = list(same)
            momenta = [self.state[weight]["momentum"] for weight in weights]
            gradients = _gradients(weights)
            torch._foreach_mul_(momenta, group["momentum"])
            torch._foreach_add_(momenta, gradients)
            ahead = torch._foreach_add(gradients, momenta, alpha=group["momentum"])
            updates = orthogonalise(torch.stack(ahead), self.dtype).unbind()
            _decay(group, weights, updates)
            scale = max(1, shape[0] / shape[1]) ** 0.5
            torch._foreach_add_(weights, updates, alpha=-group["lr"] * scale)

    def _adamw(self, group: dict[str, Any], weights: list[Tensor]) -> None:
        beta1, beta2 = group["betas"]
        first, second, steps = (
            [self.state[weight][name] for weight in weights] for name in STATE["adamw"]
        )
        options = {name: group[name] for name in ("lr", "weight_decay", "eps", "fused")}
        options |= {"beta1": beta1, "beta2": beta2, "amsgrad": False, "maximize": False}
        gradients = _gradients(weights)
        if group["cautious"]:  # the update has the sign of the next first moment
            _decay(group, weights, torch._foreach_lerp(first, gradients, 1 - beta1))
            options["weight_decay"] = 0.0  # the kernel would decay all numbers
        adamw(weights, gradients, first, second, [], steps, **options)


def _decay(group: dict[str, Any], weights: list[Tensor], updates: Iterable[Tensor]) -> None:
    """Decay weights before an update; of the tensors to be subtracted, only the signs matter."""
    share = group["lr"] * group["weight_decay"]
    if not group["cautious"]:
        torch._foreach_mul_(weights, 1 - share)
    else:
        for weight, update in zip(weights, updates, strict=True):
            weight.addcmul_(weight, update * weight > 0, value=-share)


def _gradients(weights: list[Tensor]) -> list[Tensor]:
    return [weight.grad for weight in weights if weight.grad is not None]


def _shape(weight: Tensor) -> tuple[int, ...]:
    return tuple(weight.shape)
