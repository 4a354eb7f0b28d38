"""The device and the precision of a run, and measurements on the device: matmul peak and memory.

On a machine without CUDA no function calls a CUDA function. Functions import torch themselves, so
that configuration errors do not wait for it.
"""

from __future__ import annotations

import resource
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

from lm.system.errors import ConfigError

Device = Literal["cuda", "mps", "cpu"]
Precision = Literal["fp32", "bf16", "fp16"]

CPUINFO = Path("/proc/cpuinfo")
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
NATIVE_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}  # CPU flags; the last one is ARM's


def choose_device(
    option: Literal["auto", "cuda", "mps", "cpu"], asked_by: str = "trainer.device"
) -> Device:
    """Return the device that an option selects. `auto` selects CUDA, else MPS, else the CPU.

    Args:
        asked_by: the key or flag of the option, for messages.

    Raises:
        ConfigError: this machine does not have the device.
    """
    import torch

    available: list[Device] = ["cpu"]
    if torch.backends.mps.is_available():
        available.insert(0, "mps")
    if torch.cuda.is_available():
        available.insert(0, "cuda")
    if option == "auto":
        return available[0]
    if option not in available:
        raise ConfigError(
            f"{asked_by}: torch finds no {option} here, only {' and '.join(available)}; write auto,"
            f" or {' or '.join(available)}"
        )
    return option


def check_devices(count: int, device: Device) -> None:
    """Raise ConfigError if the machine has fewer devices than `trainer.devices`. Any number of CPU
    processes may share the cores.
    """
    import torch

    present = {"cuda": torch.cuda.device_count(), "mps": 1, "cpu": count}[device]
    if count > present:
        raise ConfigError(
            f"trainer.devices: {count} is more than the {present} {device}"
            f" device{'s' * (present != 1)} here; write {present}"
        )


def choose_precision(option: Literal["auto", "fp32", "bf16", "fp16"], device: Device) -> Precision:
    """Return the precision of matrix products that `trainer.precision` selects on a device.

    `auto` selects bf16 if the device computes it natively, else fp16 on CUDA, else fp32. Every CPU
    accepts an explicit bf16; without native support it is slow.

    Raises:
        ConfigError: the device does not support the precision.
    """
    if option == "bf16" and device == "cuda" and not has_native_bf16(device):
        import torch

        have = ".".join(map(str, torch.cuda.get_device_capability()))
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
    if has_native_bf16(device):
        return "bf16"
    return "fp16" if device == "cuda" else "fp32"


def has_native_bf16(device: str) -> bool:
    """Return whether a device multiplies bf16 natively."""
    if device == "cuda":
        import torch

        # torch.cuda.is_bf16_supported() does not help: it also returns True for emulated bf16.
        return torch.cuda.get_device_capability() >= (8, 0)
    return device == "cpu" and _cpu_has_bf16()


def _cpu_has_bf16() -> bool:
    """Return whether Linux reports native bf16.

    macOS has no cpuinfo, and the result is False. That is right: torch multiplies with Apple's
    Accelerate there, and its BLAS has no bf16.
    """
    try:
        words = CPUINFO.read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return False
    return not NATIVE_BF16.isdisjoint(words)


def autocast(device: Device, precision: Precision) -> AbstractContextManager[object]:
    """Return a context that computes matrix products in `precision`."""
    import torch

    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device, dtype, enabled=precision != "fp32")


def matmul_peak(device: Device, precision: Precision) -> float:
    """Measure the FLOP/s of square matrix products in about 0.2 s. MFU is a share of this peak.

    The matrices grow until one product takes 5 ms; the best time counts. fp32 on CUDA uses TF32 if
    the process currently does. The function resets CUDA's peak memory, so that the measurement does
    not count as the run's.
    """
    import torch

    synchronize = torch.get_device_module(device).synchronize
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    best, size = 0.0, 1024
    matrix = torch.randn(size, size, device=device).to(dtype)
    matrix @ matrix  # The first product also loads the libraries.
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
    """Return this process's peak memory so far, in MB (10^6 bytes).

    On CUDA it is the peak of all tensors, and on the CPU that of the whole process. MPS records no
    peak: the result is the driver's current memory, which rarely shrinks.
    """
    if device == "cpu":
        unit = 1 if sys.platform == "darwin" else 1024  # Linux counts in KiB.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6

    import torch

    return (
        torch.cuda.max_memory_allocated()
        if device == "cuda"
        else torch.mps.driver_allocated_memory()
    ) / 1e6


def memory(device: Device) -> tuple[int, int] | tuple[None, None]:
    """Return a device's total and free memory in bytes, or (None, None) if the system does not
    report them.
    """
    if device == "cuda":
        import torch

        free, total = torch.cuda.mem_get_info()
        return total, free
    if device == "mps":
        import torch

        total = torch.mps.recommended_max_memory()
        return total, total - torch.mps.driver_allocated_memory()
    try:
        fields = dict(line.split(":") for line in MEMINFO.read_text().splitlines())
        total, free = (1024 * int(fields[name].split()[0]) for name in ("MemTotal", "MemAvailable"))
    except (OSError, ValueError, KeyError):
        return None, None
    try:  # a container has a limit of its own, and a process beyond it is killed
        limit, used = (int((CGROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
        fields = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        used -= int(fields["inactive_file"])  # copies of files, which make room
    except (OSError, ValueError, KeyError):  # "max" is no limit
        return total, free
    return min(total, limit), min(free, limit - used)
