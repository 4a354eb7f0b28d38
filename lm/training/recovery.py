"""How a step that cannot be done goes on: without its update, or with fewer rows at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from lm.surgery import fsdp
from lm.system.device import smaller_micro_batch

if TYPE_CHECKING:
    from lm.training.module import LanguageModel


def give_up(module: LanguageModel, batch: dict[str, Any], problem: str) -> None:
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


def halve_rows(module: LanguageModel, rows: int, problem: str) -> int:
    """Return how many rows to compute at once after `rows` were too many for the memory.

    Raises:
        UserError: one row is too many, or other processes have exchanged a part of the step.
    """
    fewer = smaller_micro_batch(rows, module.trainer.world_size, module.global_rank, problem)
    module.incidents.note(
        module.step,
        "memory",
        f"out of memory, so it is done again with {fewer} of its rows at once ({problem})",
    )
    return fewer


def _of_all_processes(module: LanguageModel, tensor: Tensor) -> list[list[int]]:
    """Return the rows of (A, B, T) of all processes, in the order of the plan."""
    everywhere: Tensor = module.all_gather(tensor)  # (processes, A, B, T), or as it was
    if module.trainer.world_size > 1:
        everywhere = everywhere.transpose(0, 1)
    rows: list[list[int]] = everywhere.flatten(0, -2).tolist()
    return rows
