"""Test devices and precisions on simulated machines."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lm.system import device
from lm.system.errors import ConfigError

ROOT = Path(__file__).parents[2]


def forbidden(*_: object, **__: object) -> None:
    raise AssertionError("this machine has no CUDA, and was asked about it")


class Machine:
    """A simulated machine. Torch and the system report the parts it is called with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cpuinfo: Path):
        self.monkeypatch, self.cpuinfo = monkeypatch, cpuinfo
        self(cuda=None)

    def __call__(
        self, cuda: tuple[int, int] | None = None, mps: bool = False, cpu: str = "sse avx2"
    ) -> None:
        patch = self.monkeypatch.setattr
        patch(torch.cuda, "is_available", lambda: cuda is not None)
        patch(
            torch.cuda,
            "is_bf16_supported",
            lambda including_emulation=True: True if cuda else forbidden(),
        )
        patch(
            torch.cuda, "get_device_capability", (lambda device=None: cuda) if cuda else forbidden
        )
        patch(torch.backends.mps, "is_available", lambda: mps)
        self.cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {cpu}\n")
        patch(device, "CPUINFO", self.cpuinfo)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path / "cpuinfo")


def test_auto_takes_cuda_then_mps_then_the_cpu(machine: Machine) -> None:
    assert device.choose_device("auto") == "cpu"
    machine(mps=True)
    assert device.choose_device("auto") == "mps"
    machine(cuda=(9, 0))
    assert device.choose_device("auto") == "cuda"
    machine(cuda=(9, 0), mps=True)
    assert device.choose_device("auto") == "cuda"


def test_a_device_that_is_there_can_be_asked_for(machine: Machine) -> None:
    machine(cuda=(7, 5), mps=True)
    for option in ("cuda", "mps", "cpu"):
        assert device.choose_device(option) == option


def test_a_device_that_is_absent_is_a_config_error_that_says_what_there_is(
    machine: Machine,
) -> None:
    with pytest.raises(
        ConfigError,
        match=r"^trainer\.device: torch finds no cuda here, only cpu; write auto, or cpu$",
    ):
        device.choose_device("cuda")
    machine(mps=True)
    with pytest.raises(
        ConfigError,
        match=(
            r"^trainer\.device: torch finds no cuda here, only mps and cpu; write auto, or mps or"
            r" cpu$"
        ),
    ):
        device.choose_device("cuda")
    machine(cuda=(8, 0))
    with pytest.raises(
        ConfigError, match=r"^trainer\.device: torch finds no mps here, only cuda and cpu"
    ):
        device.choose_device("mps")


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ((6, 1), "fp16"),
        ((7, 0), "fp16"),
        ((7, 5), "fp16"),
        ((8, 0), "bf16"),
        ((8, 9), "bf16"),
        ((12, 0), "bf16"),
    ],
)
def test_cuda_takes_bf16_only_where_it_is_native(
    machine: Machine, capability: tuple[int, int], expected: str
) -> None:
    machine(cuda=capability)
    assert device.choose_precision("auto", "cuda") == expected


@pytest.mark.parametrize(
    ("cpu", "expected"),
    [
        ("avx2 avx512f avx512_vnni", "fp32"),
        ("avx2 avx512_bf16 fma", "bf16"),
        ("amx_bf16 amx_tile", "bf16"),
        ("amx_tile amx_int8", "fp32"),
        ("fp asimd i8mm bf16 dgh", "bf16"),
        ("svebf16", "fp32"),
    ],
)
def test_a_cpu_takes_bf16_only_where_it_is_native(
    machine: Machine, cpu: str, expected: str
) -> None:
    machine(cpu=cpu)
    assert device.choose_precision("auto", "cpu") == expected


def test_other_processors_do_not_matter_to_cuda_and_mps(machine: Machine) -> None:
    machine(mps=True, cpu="bf16")
    assert device.choose_precision("auto", "mps") == "fp32"
    machine(cuda=(7, 5), cpu="avx512_bf16")
    assert device.choose_precision("auto", "cuda") == "fp16"
    machine(cuda=(9, 0))
    assert device.choose_precision("auto", "cpu") == "fp32"


def test_without_cpuinfo_the_cpu_takes_fp32(machine: Machine) -> None:
    machine.cpuinfo.unlink()
    assert device.choose_precision("auto", "cpu") == "fp32"


def test_what_is_asked_for_and_possible_is_taken(machine: Machine) -> None:
    machine(cuda=(8, 0), mps=True)
    possible = [("fp32", "cpu"), ("bf16", "cpu"), ("fp32", "mps"), ("bf16", "mps"), ("fp16", "mps")]
    possible += [("fp32", "cuda"), ("bf16", "cuda"), ("fp16", "cuda")]
    for option, where in possible:
        assert device.choose_precision(option, where) == option  # type: ignore[arg-type]


def test_what_is_impossible_is_a_config_error(machine: Machine) -> None:
    with pytest.raises(
        ConfigError,
        match=r"^trainer\.precision: fp16 cannot be trained on a CPU; write auto, fp32 or bf16$",
    ):
        device.choose_precision("fp16", "cpu")
    machine(cuda=(7, 5))
    with pytest.raises(
        ConfigError,
        match=(
            r"^trainer\.precision: bf16 needs .* 8\.0, and this one has 7\.5; write auto, fp16 or"
            r" fp32$"
        ),
    ):
        device.choose_precision("bf16", "cuda")


class Accelerator:
    """A device of known speed. As on CUDA, products are queued, and take time only when the host
    waits for them.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, flops: float):
        self.flops, self.now, self.queued, self.dtypes, self.sizes, self.calls = (
            flops,
            0.0,
            0.0,
            set(),
            [],
            [],
        )
        monkeypatch.setattr(torch, "randn", lambda rows, columns, device: Matrix(self, rows))
        monkeypatch.setattr(
            torch, "get_device_module", lambda device: SimpleNamespace(synchronize=self.synchronize)
        )
        monkeypatch.setattr(device.time, "perf_counter", lambda: self.now)
        for name in ("empty_cache", "reset_peak_memory_stats"):
            monkeypatch.setattr(torch.cuda, name, lambda name=name: self.calls.append(name))

    def synchronize(self) -> None:
        self.now, self.queued = self.now + self.queued, 0.0


class Matrix:
    def __init__(self, accelerator: Accelerator, size: int):
        self.accelerator, self.size = accelerator, size

    def to(self, dtype: torch.dtype) -> Matrix:
        self.accelerator.dtypes.add(dtype)
        return self

    def __matmul__(self, other: Matrix) -> None:
        # the launch; the first launch loads libraries
        self.accelerator.now += 1e-5 if self.accelerator.sizes else 0.4
        self.accelerator.queued += 2 * self.size**3 / self.accelerator.flops
        self.accelerator.sizes.append(self.size)


@pytest.mark.parametrize(
    ("flops", "largest"), [(1e10, 1024), (1e11, 1024), (8e12, 4096), (7e14, 8192)]
)
def test_matmul_peak_is_the_speed_of_the_device(
    monkeypatch: pytest.MonkeyPatch, flops: float, largest: int
) -> None:
    accelerator = Accelerator(monkeypatch, flops)
    assert device.matmul_peak("cuda", "bf16") == pytest.approx(flops, rel=0.01)
    assert max(accelerator.sizes) == largest
    assert 0.6 <= accelerator.now < 1.1
    assert accelerator.dtypes == {torch.bfloat16}
    assert accelerator.calls == ["empty_cache", "reset_peak_memory_stats"]


def test_matmul_peak_of_mps_leaves_cuda_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator = Accelerator(monkeypatch, 4e12)
    device.matmul_peak("mps", "fp32")
    assert accelerator.calls == [] and accelerator.dtypes == {torch.float32}


def test_matmul_peak_of_this_processor() -> None:
    assert 1e8 < device.matmul_peak("cpu", "fp32") < 1e15


def test_peak_memory_units(monkeypatch: pytest.MonkeyPatch) -> None:
    usage: Any = SimpleNamespace(ru_maxrss=250_000)
    monkeypatch.setattr(resource, "getrusage", lambda who: usage)
    monkeypatch.setattr(sys, "platform", "linux")
    assert device.peak_memory_mb("cpu") == 256.0
    monkeypatch.setattr(sys, "platform", "darwin")
    usage.ru_maxrss = 256_000_000
    assert device.peak_memory_mb("cpu") == 256.0
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 5_500_000)
    assert device.peak_memory_mb("cuda") == 5.5
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 7_500_000)
    assert device.peak_memory_mb("mps") == 7.5


def test_peak_memory_of_this_process() -> None:
    before = device.peak_memory_mb("cpu")
    assert 50 < before < 100_000
    held = []
    # An earlier test may have used more memory than this process uses now.
    while device.peak_memory_mb("cpu") == before:
        held.append(b"x" * 32_000_000)
        assert sum(map(len, held)) < before * 1e6 + 64e6
    assert before < device.peak_memory_mb("cpu") < before + 64


@pytest.mark.usefixtures("starts_processes")
def test_importing_this_does_not_load_torch() -> None:
    code = "import sys, lm.system.device; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


def test_memory_is_the_system_s_or_the_container_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container's limit counts. What it holds of files makes room."""
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: 600 kB\n")
    monkeypatch.setattr(device, "MEMINFO", meminfo)
    monkeypatch.setattr(device, "CGROUP", tmp_path)
    assert device.memory("cpu") == (1_024_000, 614_400)
    for name, text in (("max", "max"), ("current", "300000"), ("stat", "anon 1\ninactive_file 5")):
        (tmp_path / f"memory.{name}").write_text(f"{text}\n")
    assert device.memory("cpu") == (1_024_000, 614_400)
    (tmp_path / "memory.max").write_text("500000\n")
    assert device.memory("cpu") == (500_000, 200_005)
    (tmp_path / "memory.max").write_text("2000000\n")
    assert device.memory("cpu") == (1_024_000, 614_400)
    meminfo.unlink()
    assert device.memory("cpu") == (None, None)


def test_memory_of_mps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 900)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 200)
    assert device.memory("mps") == (900, 700)
