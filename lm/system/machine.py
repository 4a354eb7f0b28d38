"""What a run was made with that no file of its own says: the state of the code, and the machine's
parts by name.
"""

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
    """The commit of a git checkout, and whether files that git knows were changed since. None: it
    is none, or git does not tell.
    """
    git = shutil.which("git")
    # an installed package may lie within somebody else's checkout
    if git is None or not (root / ".git").exists():
        return None
    answers = []
    surroundings = {
        name: value for name, value in os.environ.items() if not name.startswith("GIT_")
    }  # a hook's GIT_DIR is another checkout
    for question in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
        command = [git, "--no-optional-locks", "-C", str(root), *question]
        try:
            answers.append(
                subprocess.run(  # noqa: S603 (git, with arguments of our own)
                    command,
                    env=surroundings,
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
    """The processor, its cores, memory in bytes, the GPU if it is one, and the operating system;
    None where the machine does not say.
    """
    gpu = None
    if device == "cuda":
        import torch

        gpu = torch.cuda.get_device_name()
    return {
        "processor": _processor(),
        "cores": (
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        ),
        "memory": memory("cpu")[0],
        "gpu": gpu,
        "system": platform.platform(terse=True),
    }


def _processor() -> str | None:
    """As Linux names it; elsewhere as Python does."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, None) or platform.processor() or platform.machine() or None
