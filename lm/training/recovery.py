"""How a step goes on whose numbers are not finite: without its update.

`module` is the LanguageModel of module.py, which imports this file.
"""

from __future__ import annotations

from typing import Any

from lightning import LightningModule
from torch import Tensor

from lm.surgery import fsdp


class LossScale:
    """The factor of the loss in fp16, before an update; nothing with any other precision.

    Args:
        precision_plugin: Lightning's, which holds torch's GradScaler in fp16.
    """

    def __init__(self, precision_plugin: Any):
        self._scaler = getattr(precision_plugin, "scaler", None)
        self._before = self._scaler.state_dict() if self._scaler is not None else {}

    def fell(self) -> bool:
        """Return whether gradients overflowed, so that the scaler skipped the update."""
        return self._scaler is not None and self._scaler.get_scale() < self._before["scale"]

    def overflow(self) -> str:
        """Return the message about it."""
        assert self._scaler is not None
        return (
            "fp16 gradients overflowed, so the scaler skipped the update; scale now"
            f" {self._scaler.get_scale():g}"
        )

    def restore(self) -> None:
        """Take the scale back to its value before a step that was given up.

        A resumed run skips that step without computing it, and must have the same scale.
        """
        if self._scaler is not None:
            self._scaler.update()  # ends the scaler's step, which would wait for the rest of it
            self._scaler.load_state_dict(self._before)


def give_up(module: LightningModule, batch: dict[str, Any], problem: str) -> None:
    """Report a step whose numbers are not finite, and do what `trainer.on_nonfinite` says.

    Raises:
        NonFiniteError: the run stops.
        GoBack: the run goes on from its newest checkpoint.
    """
    norms = {
        name: fsdp.full_tensor(weight.grad.norm()).item()
        for name, weight in module.decoder.named_parameters()
        if weight.grad is not None
    }
    facts = {
        "step": module.step + 1,
        "loss": module.loss.item(),
        "learning_rate": module.used_learning_rate,
        "grad_norm": module.grad_norm.item(),
        "grad_norms": norms,
    }
    inputs, labels = (_of_all_processes(module, batch[name]) for name in ("input_ids", "labels"))
    module.incidents.give_up(module.step, problem, facts, inputs, labels)


def _of_all_processes(module: LightningModule, tensor: Tensor) -> list[list[int]]:
    """Return the rows of (A, B, T) of all processes, in the order of the plan."""
    everywhere: Tensor = module.all_gather(tensor)  # (processes, A, B, T), or as it was
    if module.trainer.world_size > 1:
        everywhere = everywhere.transpose(0, 1)
    rows: list[list[int]] = everywhere.flatten(0, -2).tolist()
    return rows
