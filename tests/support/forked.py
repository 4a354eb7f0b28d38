"""Run the command train.py in processes forked from one that has imported everything, so that a
start costs no seconds.

In everything else they are like processes of a shell: they have their own arguments, environment,
streams and exit code.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PRELOADED = (
    "train",
    "data",
    "model",
    "lm.training.callbacks",
    "lm.training.trainer",
    "torch.utils.tensorboard",
    "matplotlib.pyplot",
)
_context = multiprocessing.get_context("forkserver")


class Forked:
    """A function that runs in a process of its own. Its output is in the files `NAME.out` and
    `NAME.err`, which are overwritten.

    Args:
        output: `NAME`.
        act: the function, and its arguments, which are pickled.
    """

    def __init__(self, output: Path, act: Callable[..., None], *arguments: Any):
        self._output = output
        _start_server()
        self.process: ForkServerProcess = _context.Process(
            target=_child, args=(output, act, arguments)
        )
        self.process.start()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def out(self) -> str:
        return self._output.with_suffix(".out").read_text(encoding="utf-8")

    @property
    def err(self) -> str:
        return self._output.with_suffix(".err").read_text(encoding="utf-8")

    def alive(self) -> bool:
        return self.process.is_alive()

    def kill(self) -> int:
        """Kill the process with kill -9 and return its exit code: -9, or the one it had by then."""
        self.process.kill()
        return self.wait()

    def wait(self, seconds: float = 120) -> int:
        """Wait for the process and return its exit code, negative for a signal."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            raise TimeoutError(
                f"still running after {seconds} seconds: {self.out[-2000:]} {self.err[-2000:]}"
            )
        return self.process.exitcode


def train(
    output: Path,
    *arguments: str | Path,
    temporary: Path | None = None,
    largest_file: int | None = None,
    gate: Any = None,
    foreseeing: bool = True,
) -> Forked:
    """Start `python train.py ARGUMENTS` with `temporary` as $TMPDIR and files of at most
    `largest_file` bytes.

    If `gate` is given, the process waits until it is set. If it is not `foreseeing`, it believes
    that the disk has room, as when another program fills it in the next moment.
    """
    return Forked(
        output,
        _train,
        [str(argument) for argument in arguments],
        temporary,
        largest_file,
        gate,
        foreseeing,
    )


def start(folder: Path, *arguments: str | Path, **limits: Any) -> Forked:
    """Start `train` with the configuration in `folder`, where its output and $TMPDIR are, too."""
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    return train(
        folder / "log",
        "--config",
        folder / "config.yaml",
        *arguments,
        temporary=temporary,
        **limits,
    )


def finish(folder: Path, *arguments: str | Path) -> None:
    """Start a run and wait until it has succeeded."""
    process = start(folder, *arguments)
    assert process.wait() == 0, process.err
    assert process.err == ""


def gate() -> Any:
    """Return an Event that a parent sets and its child waits for."""
    return _context.Event()


def kill_at(process: Forked, run: Path, rng: random.Random, in_write: bool, longest: float) -> bool:
    """Kill a training run with kill -9 within `longest` seconds and four checkpoints or, with
    `in_write`, while it writes a checkpoint.

    Returns:
        True if the kill came before the run's own end. `unfinished` tells whether a checkpoint was
        being written.
    """
    deadline = time.monotonic() + (60 if in_write else rng.uniform(0, longest))
    most = rng.randrange(3) if in_write else 4
    seen: set[Path] = set()
    while time.monotonic() < deadline and process.alive():
        seen |= set(unfinished(run))
        if len(seen) > most:
            time.sleep(rng.uniform(0, 0.02))
            break
        time.sleep(0.0005)
    code = process.kill()
    assert code in (0, -signal.SIGKILL), process.err
    return code != 0


def unfinished(run: Path) -> list[Path]:
    """Return the checkpoints under temporary names."""
    with contextlib.suppress(FileNotFoundError):
        return [path for path in run.iterdir() if path.name.startswith(".step-")]
    return []


def _start_server() -> None:
    os.environ["PYTHONPATH"] = str(ROOT)
    _context.set_forkserver_preload([*PRELOADED, "tests.support.forked"])


def _child(output: Path, act: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    threads = [*Path("/proc/self/task").iterdir()]
    assert len(threads) == 1 and "lightning" in sys.modules, (
        f"forked from a process with {len(threads)} threads, or one that is not ready"
    )
    os.chdir(ROOT)
    # The child inherits the server's start method. A process that a shell starts forks.
    multiprocessing.set_start_method("fork", force=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # multiprocessing's server ignores it
    for stream, ending in ((sys.stdout, ".out"), (sys.stderr, ".err")):
        stream.flush()
        descriptor = os.open(
            output.with_suffix(ending), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666
        )
        os.dup2(descriptor, stream.fileno())
        os.close(descriptor)
    act(*arguments)


def _train(
    arguments: list[str],
    temporary: Path | None,
    largest_file: int | None,
    gate: Any,
    foreseeing: bool,
) -> None:
    if gate is not None:
        gate.wait()
    command, errors = importlib.import_module("train"), importlib.import_module("lm.system.errors")
    if temporary is not None:
        os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))
    if not foreseeing:
        importlib.import_module("lm.training.forecast").Forecast.check = lambda *_: None  # type: ignore[attr-defined]
        importlib.import_module("lm.training.record").require_room = lambda *_: None  # type: ignore[attr-defined]
    sys.argv = ["train.py", *arguments]
    errors.run(command.main)
