"""Environment variables of other programs: those that must not change a command, and those by
which a launcher tells a process its place among the processes of a run.

The libraries below a command read variables that a shell, a container or another program may have
left. `settle` removes those that would change a run without a word. It keeps those with which
people choose a machine's parts: CUDA_VISIBLE_DEVICES, HF_HOME, HF_HUB_OFFLINE, TMPDIR and their
like.

The module imports only the standard library.
"""

from __future__ import annotations

import logging
import os
import pwd
import re
import tempfile
import warnings
from typing import Literal

# Lightning takes defaults of its Trainer from PL_* and LT_*, tqdm those of a bar from TQDM_*.
PREFIXES = ("PL_", "LT_", "TQDM_")
NAMES = (
    "MPLBACKEND",  # matplotlib refuses to load if it names no backend; we draw into files only
    "PYTHONWARNINGS",  # `error` lets a library's warning end a command
    # these let fp32 be less than fp32; trainer.precision decides
    "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "DNNL_DEFAULT_FPMATH_MODE",
    "ONEDNN_DEFAULT_FPMATH_MODE",
)
# A number of threads, or one for each level of parallelism.
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
NUMBERS = re.compile(r"[1-9]\d{0,4}(,[1-9]\d{0,4})*")
DISPLAY_ONLY = "TQDM_DISABLE"  # a wish about bars, and no more
LOGIN = ("LOGNAME", "USER", "LNAME", "USERNAME")  # where `getpass` looks

# In the environment of processes that Lightning starts. Without a launcher, the variables that
# count processes mean something only if it is there.
DECIDED = "TINY_TRANSFORMER_ORIGIN"
# The steps of a SLURM job in which a person or the batch script types commands.
SHELL_STEPS = ("4294967290", "4294967291")

ignored: list[str] = []  # the variables that `settle` has removed


def settle() -> None:
    """Remove the variables that would change this command, before a library is loaded. Complete
    those without which a library fails.
    """
    for name in sorted(os.environ):
        if name != DISPLAY_ONLY and (
            name.startswith(PREFIXES)
            or name in NAMES
            or (name in THREADS and not NUMBERS.fullmatch(os.environ[name].strip()))
        ):
            if name == "PYTHONWARNINGS":
                _restore_warnings()
            ignore(name)
    # It would print that it cannot write into the home folder. Lightning loads it, too.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:  # `docker run --user 12345`
        if not any(map(os.environ.get, LOGIN)):
            os.environ["LOGNAME"] = str(os.getuid())
        if "HOME" not in os.environ:  # caches would go into a folder that is called `~`
            os.environ["HOME"] = tempfile.gettempdir()


def ignore(name: str) -> None:
    """Remove a variable from the environment, and note its name."""
    if os.environ.pop(name, None) is not None and name not in ignored:
        ignored.append(name)


def launcher() -> Literal["torchrun", "srun"] | None:
    """Return the launcher that started all processes; None: a person or Lightning did."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return "torchrun"  # first: it may run inside SLURM
    # A batch script has no step: without srun it starts one process, whatever number of tasks it
    # requested. A job with one of these names is an interactive shell.
    shell = (
        os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
        or os.environ.get("SLURM_STEP_ID") in SHELL_STEPS
        or "SLURM_PTY_PORT" in os.environ  # srun --pty
    )
    if {"SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"} <= os.environ.keys() and not shell:
        return "srun"
    return None


def is_first() -> bool:
    """Return whether this process is the one that writes, prints and decides."""
    return _is_zero(
        torchrun=("RANK",), srun=("SLURM_PROCID",), lightning=("LOCAL_RANK", "NODE_RANK")
    )


def is_first_on_machine() -> bool:
    """Return whether this process is the first one of the run on its machine."""
    return _is_zero(torchrun=("LOCAL_RANK",), srun=("SLURM_LOCALID",), lightning=("LOCAL_RANK",))


def count_processes() -> int:
    """Return how many processes the run has, as far as this process is told; 1 if it is not."""
    name = {"torchrun": "WORLD_SIZE", "srun": "SLURM_NTASKS", None: "WORLD_SIZE"}[launcher()]
    value = os.environ.get(name, "1") if launcher() or DECIDED in os.environ else "1"
    return int(value) if value.isdecimal() else 1


def _is_zero(**names: tuple[str, ...]) -> bool:
    """Return whether those variables are 0 that the program which started this process sets."""
    started_by = launcher() or ("lightning" if DECIDED in os.environ else None)
    return all(os.environ.get(name, "0") == "0" for name in names.get(started_by or "", ()))


def _restore_warnings() -> None:
    """Bring back the filters with which Python starts without PYTHONWARNINGS."""
    warnings.resetwarnings()
    for kind in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", kind)
