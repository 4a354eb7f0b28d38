"""The learning rate as a pure function of the step.

A scheduler object would be saved with the run and bring its old rates back on resume, whatever the
configuration says by then.
"""

from __future__ import annotations

import math

from lm.config.schema.optimizer import OptimizerConfig


def learning_rate(step: int, max_steps: int, config: OptimizerConfig) -> float:
    """The rate for the update that turns step `step` into `step + 1`, with `step` from 0 to
    max_steps - 1.

    Warm-up rises in equal parts through the first `warmup_steps` updates, and the next one takes
    `lr`. The last update of the run takes `lr * final_lr_fraction`, unless the schedule is constant
    or that update is the first after warm-up.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / (config.warmup_steps + 1)
    return config.lr * (
        config.final_lr_fraction
        + (1 - config.final_lr_fraction) * _remaining(step, max_steps, config)
    )


def _remaining(step: int, max_steps: int, config: OptimizerConfig) -> float:
    """From 1 where the decay begins (the last update at the full rate) to 0 at the last update of
    the run.
    """
    if config.schedule == "constant":
        return 1.0
    last = max_steps - 1
    begin = config.warmup_steps
    # warm-up, stable, decay (Hu et al. 2024, MiniCPM), with a line for the decay
    if config.schedule == "wsd":
        begin = max(begin, last - max(1, round(config.decay_fraction * max_steps)))
    if step < begin or last <= begin:
        return 1.0
    progress = min(1.0, (step - begin) / (last - begin))
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 1 - progress
