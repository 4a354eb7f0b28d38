"""Environment variables of other programs, which must not change a command.

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


def _restore_warnings() -> None:
    """Bring back the filters with which Python starts without PYTHONWARNINGS."""
    warnings.resetwarnings()
    for kind in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", kind)
