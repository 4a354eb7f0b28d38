"""When `trainer.compile: auto` compiles: where a run is long enough to win back the time it takes.

On a CPU, compiling took 21 to 50 seconds of computing, and a step was then 1.03 to 1.54 times as
fast (docs/BENCHMARKS.md). The run won that back after 11 to 102 TFLOP, or 700 to 7,800 steps. Work
is the better unit, because steps differ more.

The answer depends on the configuration and the number of threads only, neither on a clock nor on
what an earlier run left in the compiler's cache. A run therefore decides the same when it is
repeated.
"""

from __future__ import annotations

import math

import torch

from lm.config.schema.config import Config
from lm.system.device import Device
from lm.training.record import flops_per_token
from model import Decoder

LEAST_SECONDS_ON_CPU = 1800
RATE = 1e11  # FLOP a second of one core: between what fp32 and native bf16 reached
# Not measured: guesses that spare short trials the minute that compiling takes on a GPU.
LEAST_STEPS_ON_CUDA = 500
LEAST_SECONDS_ON_CUDA = 300


def pays_off(config: Config, decoder: Decoder, device: Device) -> bool:
    """Return whether a new run of a decoder on a device is to be compiled."""
    by_time = config.optimizer.schedule_by == "time"
    seconds = 60 * (config.trainer.max_minutes or 0) if by_time else math.inf
    if device == "mps":
        return False
    if device == "cuda":
        return config.max_steps >= LEAST_STEPS_ON_CUDA and seconds >= LEAST_SECONDS_ON_CUDA
    shape = decoder.config
    work = flops_per_token(
        decoder.n_matmul_parameters, shape.n_layers, config.row_length, shape.d_model
    )
    cores = config.trainer.processes * torch.get_num_threads()
    step = config.tokens_per_step * work / (cores * RATE)
    return min(seconds, config.max_steps * step) >= LEAST_SECONDS_ON_CPU
