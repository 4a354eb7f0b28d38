"""The code's commit and the machine's hardware, for the record of a run."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

from lm.system.device import CPUINFO, Device, memory

ROOT = Path(__file__).parents[2]


def code(root: Path = ROOT) -> dict[str, Any] | None:
    """Return the commit of a git checkout, and whether tracked files have changed since. Return
    None if the folder is no checkout or git fails.
    """
    git = shutil.which("git")
    # The folder itself must be the checkout: an installed package may lie inside another one.
    if git is None or not (root / ".git").exists():
        return None
    answers = []
    # A git hook sets GIT_DIR, which may name another checkout.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    for question in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
        command = [git, "--no-optional-locks", "-C", str(root), *question]
        try:
            answers.append(
                subprocess.run(  # noqa: S603 (git, with arguments of our own)
                    command,
                    env=environment,
                    capture_output=True,
                    text=True,
                    check=True,
                    timeout=10,
                ).stdout.strip()
            )
        except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
            return None
    return {"commit": answers[0], "changed": bool(answers[1])}


def hardware(device: Device) -> dict[str, Any]:
    """Return the names of the processor, the GPU and the operating system, the number of cores, and
    the memory in bytes. Unknown values are None.
    """
    gpu = None
    if device == "cuda":
        import torch

        gpu = torch.cuda.get_device_name()
    return {
        "processor": processor(),
        "cores": usable_cores(),
        "memory": memory("cpu")[0],
        "gpu": gpu,
        "system": platform.platform(terse=True),
    }


def usable_cores() -> int | None:
    """Return how many cores this process may use, or None if the system does not say."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def processor() -> str | None:
    """Return the processor's name from Linux's cpuinfo, or else from Python's `platform`."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, None) or platform.processor() or platform.machine() or None
