"""The learning rate and Muon's momentum, pure functions of the step and of the run's progress.

A scheduler object would be saved with the run. On resume it would restore its old rates, whatever
the configuration says by then.
"""

from __future__ import annotations

import math

from torch.optim import Optimizer

from lm.config.schema.optimizer import OptimizerConfig

MUON_BEGINS_AT = 0.85  # momentum; early gradients turn quickly, and old ones would mislead


def set_rates(
    optimizer: Optimizer, step: int, max_steps: int, config: OptimizerConfig, progress: float | None
) -> float:
    """Set the learning rates and the momentum of update `step`; return the rate of `lr`.

    The schedule multiplies the rates of all groups alike.
    """
    rate = learning_rate(step, max_steps, config, progress)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_factor"]
        if group["kind"] == "muon":
            group["momentum"] = muon_momentum(step, config)
    return rate


def learning_rate(
    step: int, max_steps: int, config: OptimizerConfig, progress: float | None = None
) -> float:
    """Return the rate of update `step`, which counts from 0 to max_steps - 1.

    Warm-up rises linearly over the first `warmup_steps` updates; the next one takes `lr`. The last
    update takes `lr * final_lr_fraction`, unless the schedule is constant or that update is the
    first after warm-up.

    With `progress`, the share of the time from 0 to 1, the decay follows it instead of the step. It
    limits the warm-up too, which may not be over when the time is.
    """
    final = config.final_lr_fraction
    left = _remaining(step, max_steps, config) if progress is None else _in_time(progress, config)
    decayed = config.lr * (final + (1 - final) * left)
    if step < config.warmup_steps:
        return min(decayed, config.lr * (step + 1) / (config.warmup_steps + 1))
    return decayed


def muon_momentum(step: int, config: OptimizerConfig) -> float:
    """Return the momentum of update `step`; it rises linearly in the warm-up of the momentum."""
    end, warmup = config.muon_momentum, config.muon_momentum_warmup
    begin = min(MUON_BEGINS_AT, end)
    return end if step >= warmup else begin + (end - begin) * step / warmup


def _remaining(step: int, max_steps: int, config: OptimizerConfig) -> float:
    """Return 1 up to the first update of the decay, and 0 at the last update of the run."""
    begin, last = config.warmup_steps, max_steps - 1
    if config.schedule == "wsd":  # warm-up, stable, linear decay (Hu et al. 2024, MiniCPM)
        begin = max(begin, last - max(1, round(config.decay_fraction * max_steps)))
    if step < begin or last <= begin:
        return 1.0
    return _decay(min(1.0, (step - begin) / (last - begin)), config)


def _in_time(progress: float, config: OptimizerConfig) -> float:
    """Return 1 up to the decay, and 0 at the end of the time."""
    length = config.decay_fraction if config.schedule == "wsd" else 1.0
    return _decay(max(0.0, 1 - (1 - progress) / length), config)


def _decay(progress: float, config: OptimizerConfig) -> float:
    if config.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * progress)) if config.schedule == "cosine" else 1 - progress
