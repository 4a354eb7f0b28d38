"""The learning rate and Muon's momentum, pure functions of the step.

A scheduler object would be saved with the run. On resume it would restore its old rates, whatever
the configuration says by then.
"""

from __future__ import annotations

import math

from torch.optim import Optimizer

from lm.config.schema.optimizer import OptimizerConfig

MUON_BEGINS_AT = 0.85  # momentum; early gradients turn quickly, and old ones would mislead


def set_rates(optimizer: Optimizer, step: int, max_steps: int, config: OptimizerConfig) -> float:
    """Set the learning rates and the momentum of update `step`; return AdamW's rate."""
    rate = learning_rate(step, max_steps, config)
    for group in optimizer.param_groups:
        if group.get("kind") == "muon":
            group["lr"] = rate * (config.muon_lr / config.lr)
            group["momentum"] = muon_momentum(step, config)
        else:
            group["lr"] = rate
    return rate


def learning_rate(step: int, max_steps: int, config: OptimizerConfig) -> float:
    """Return the rate of update `step`, which counts from 0 to max_steps - 1.

    Warm-up rises linearly over the first `warmup_steps` updates; the next one takes `lr`. The last
    update takes `lr * final_lr_fraction`, unless the schedule is constant or that update is the
    first after warm-up.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / (config.warmup_steps + 1)
    final = config.final_lr_fraction
    return config.lr * (final + (1 - final) * _remaining(step, max_steps, config))


def muon_momentum(step: int, config: OptimizerConfig) -> float:
    """Return the momentum of update `step`; it rises linearly in the warm-up of the momentum."""
    end, warmup = config.muon_momentum, config.muon_momentum_warmup
    begin = min(MUON_BEGINS_AT, end)
    return end if step >= warmup else begin + (end - begin) * step / warmup


def _remaining(step: int, max_steps: int, config: OptimizerConfig) -> float:
    """Return 1 up to the first update of the decay, and 0 at the last update of the run."""
    if config.schedule == "constant":
        return 1.0
    begin, last = config.warmup_steps, max_steps - 1
    if config.schedule == "wsd":  # warm-up, stable, linear decay (Hu et al. 2024, MiniCPM)
        begin = max(begin, last - max(1, round(config.decay_fraction * max_steps)))
    if step < begin or last <= begin:
        return 1.0
    progress = min(1.0, (step - begin) / (last - begin))
    return 0.5 * (1 + math.cos(math.pi * progress)) if config.schedule == "cosine" else 1 - progress
