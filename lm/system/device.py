"""What is chosen for the machine: device, precision; and what is measured on it: matmul peak, peak
memory.

Nothing here asks a CUDA question on a machine without CUDA. torch is imported inside the functions,
so that a configuration error does not wait for it.
"""

from __future__ import annotations

import resource
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

from lm.system.errors import ConfigError, UserError

Device = Literal["cuda", "mps", "cpu"]
Precision = Literal["fp32", "bf16", "fp16"]

CPUINFO = Path("/proc/cpuinfo")
MEMINFO = Path("/proc/meminfo")
NATIVE_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}  # the last one is ARM's name


def choose_device(
    option: Literal["auto", "cuda", "mps", "cpu"], asked_by: str = "trainer.device"
) -> Device:
    """The device that an option means here: with `auto` CUDA, else MPS, else the CPU.

    Raises:
        ConfigError: what was asked for is not there; it names `asked_by`, the key or flag.
    """
    import torch

    there: list[Device] = ["cpu"]
    if torch.backends.mps.is_available():
        there.insert(0, "mps")
    if torch.cuda.is_available():
        there.insert(0, "cuda")
    if option == "auto":
        return there[0]
    if option not in there:
        raise ConfigError(
            f"{asked_by}: torch finds no {option} here, only {' and '.join(there)}; write auto, or"
            f" {' or '.join(there)}"
        )
    return option


def check_devices(count: int, device: Device) -> None:
    """Raises ConfigError where `trainer.devices` asks for more than there are. CPU processes share
    the cores.
    """
    import torch

    present = {"cuda": torch.cuda.device_count(), "mps": 1, "cpu": count}[device]
    if count > present:
        raise ConfigError(
            f"trainer.devices: {count} is more than the {present} {device}"
            f" device{'s' * (present != 1)} here; write {present}"
        )


def choose_precision(option: Literal["auto", "fp32", "bf16", "fp16"], device: Device) -> Precision:
    """The precision of the matrix products that `trainer.precision` means on `device`.

    auto: bf16 where the device computes it natively, else fp16 on CUDA, else fp32. bf16 on a CPU
    without it is slow, and done when asked for.

    Raises:
        ConfigError: the device cannot do what was asked for.
    """
    # Not torch.cuda.is_bf16_supported(): it says yes where bf16 is only emulated.
    capability = (0, 0)
    if device == "cuda":
        import torch

        capability = torch.cuda.get_device_capability()
    if option == "bf16" and device == "cuda" and capability < (8, 0):
        have = ".".join(map(str, capability))
        raise ConfigError(
            "trainer.precision: bf16 needs a GPU of compute capability 8.0, and this one has"
            f" {have}; write auto, fp16 or fp32"
        )
    if option == "fp16" and device == "cpu":
        raise ConfigError(
            "trainer.precision: fp16 cannot be trained on a CPU; write auto, fp32 or bf16"
        )
    if option != "auto":
        return option
    if device == "cuda":
        return "bf16" if capability >= (8, 0) else "fp16"
    return "bf16" if device == "cpu" and _cpu_has_bf16() else "fp32"


def _cpu_has_bf16() -> bool:
    """As Linux says. On macOS the answer is no: torch multiplies fp32 with Apple's Accelerate
    there, whose BLAS knows no bf16.
    """
    try:
        words = CPUINFO.read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return False
    return not NATIVE_BF16.isdisjoint(words)


def autocast(device: Device, precision: Precision) -> AbstractContextManager[object]:
    """Compute matrix products in `precision` within the block."""
    import torch

    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device, dtype, enabled=precision != "fp32")


def matmul_peak(device: Device, precision: Precision) -> float:
    """The FLOP/s that this machine reaches on square matrix products, measured in about 0.2 s: what
    MFU is a share of.

    The products grow until one takes 5 ms, and the best time counts. fp32 on CUDA uses TF32 exactly
    if the process does at this moment. Resets CUDA's peak memory, so that the measurement does not
    count as the run's.
    """
    import torch

    synchronize = torch.get_device_module(device).synchronize
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    best, size = 0.0, 1024
    matrix = torch.randn(size, size, device=device).to(dtype)
    matrix @ matrix  # the first one also loads the libraries
    synchronize()
    deadline = time.perf_counter() + 0.2
    while True:
        start = time.perf_counter()
        matrix @ matrix
        synchronize()
        end = time.perf_counter()
        best = max(best, 2 * size**3 / (end - start))
        if end > deadline:
            break
        if end - start < 0.005 and size < 8192:
            size *= 2
            matrix = torch.randn(size, size, device=device).to(dtype)
    if device == "cuda":
        del matrix
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return best


def peak_memory_mb(device: Device) -> float:
    """The most memory that this process has held so far, in MB (10^6 bytes).

    CUDA: tensors at their peak. MPS: what the driver holds now, which hardly ever shrinks. CPU: the
    whole process at its peak.
    """
    if device == "cpu":
        unit = 1 if sys.platform == "darwin" else 1024  # Linux counts in KiB
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6

    import torch

    return (
        torch.cuda.max_memory_allocated()
        if device == "cuda"
        else torch.mps.driver_allocated_memory()
    ) / 1e6


def memory(device: Device) -> tuple[int, int] | tuple[None, None]:
    """Bytes of memory that the device has, and that are free now; (None, None) where the machine
    does not say.
    """
    if device == "cuda":
        import torch

        free, total = torch.cuda.mem_get_info()
        return total, free
    try:
        fields = dict(line.split(":") for line in MEMINFO.read_text().splitlines())
        return tuple(int(fields[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))  # type: ignore[return-value]
    except (OSError, ValueError, KeyError):
        return None, None


def smaller_micro_batch(rows: int, processes: int, rank: int, problem: str) -> int:
    """How many rows to try at once where `rows` were too many for the memory.

    Raises:
        UserError: on several devices, where the others have exchanged a part of the step that
            cannot be taken back; or a single row is too much.
    """
    if processes == 1 and rows > 1:
        return rows // 2
    finer = (
        f"trainer.micro_batch_size: {rows // 2} (it is {rows} now; the step stays the same, only"
        " cut finer), or "
    )
    raise UserError(
        f"out of memory on device {rank} with {rows} row{'s' * (rows > 1)} at once; write"
        f" {finer if rows > 1 else ''}model.gradient_checkpointing: true, or a smaller"
        f" data.sequence_length ({problem})"
    )


def flops_per_token(
    n_matmul_parameters: int, n_layers: int, context: int, d_model: int, n_frozen: int = 0
) -> int:
    """FLOP of one token's forward and backward pass: 6 N + 12 L T d (PaLM, appendix B; Chowdhery et
    al. 2022, arXiv:2204.02311).

    Of the 6, 2 are the forward pass, 2 the gradient of what a matrix reads, and 2 its own, which a
    frozen one does without.

    Attention counts in full although half of it is masked, as PaLM and nanoGPT have it, so that
    utilisations compare.

    Args:
        n_matmul_parameters: N, the weights that are multiplied: all matrices with the output head
            (tied or not), without lookup tables.
        n_layers: L.
        context: T, tokens in a row.
        d_model: d, heads times head width.
        n_frozen: how many of N are not trained.
    """
    return 6 * n_matmul_parameters - 2 * n_frozen + 12 * n_layers * context * d_model
