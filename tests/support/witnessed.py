"""Run train.py with a witness, and with a fault if one is given. Run this alone or under torchrun:

python -m tests.support.witnessed FOLDER FAULT --config ... (the arguments of train.py)

FOLDER/rows-RANK.jsonl gets a line for each step: the tokens that this process trained on.
FOLDER/writes-RANK.txt gets the path of each file and folder that this process made, opened to
write, or renamed.

FAULT is `none`, or KIND:RANK:STEP. In that step one of these things happens to that process:

    raise      it raises an error
    kill       it is killed
    usr1       it gets a SIGUSR1
    stop       its launcher gets a SIGTERM
    full       its disk is full for shards from then on
    unwritten  it fails in the middle of a sample of a sharded decoder; RANK may be `all`
    unscored   it fails in the middle of a validation of a sharded decoder; RANK may be `all`

nan:all:STEP makes that step's loss NaN. gather:all:STEP writes the complete state of all processes
before that step into FOLDER/gathered.pt.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from lm.checkpoints import fsdp as sharded_files
from lm.evaluation import validation
from lm.surgery import fsdp
from lm.system import errors
from lm.training.module import LanguageModel


@contextlib.contextmanager
def witness(folder: Path, fault: str = "none") -> Iterator[None]:
    """Record every training step of this process while the block runs."""
    kind, _, place = fault.partition(":")
    original = LanguageModel.training_step

    def training_step(self: LanguageModel, batch: dict[str, Any], batch_idx: int) -> None:
        rank, step = self.global_rank, batch["step"]
        with (folder / f"rows-{rank}.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "ids": batch["input_ids"].tolist()}) + "\n")
        if place in (f"{rank}:{step}", f"all:{step}"):
            happen(kind, step)
        if kind == "gather" and place == f"all:{step}":
            gather(self, folder / "gathered.pt")
        if kind == "stop" and step >= int(place.partition(":")[2]):
            time.sleep(0.1)  # the run must not end before the signal arrives
        original(self, batch, batch_idx)

    accumulate = LanguageModel._accumulate

    def poisoned(self: LanguageModel, batch: dict[str, Any]) -> torch.Tensor:
        return accumulate(self, batch) * (
            float("nan") if kind == "nan" and place == f"all:{self.step}" else 1
        )

    LanguageModel.training_step, LanguageModel._accumulate = training_step, poisoned  # type: ignore[method-assign]
    try:
        yield
    finally:
        LanguageModel.training_step, LanguageModel._accumulate = original, accumulate  # type: ignore[method-assign]


def gather(module: LanguageModel, file: Path) -> None:
    assert module.average is not None
    optimizer = sharded_files.optimizer_tensors(module.optimizers(use_pl_optimizer=False))
    kinds = {
        "model": dict(module.decoder.named_parameters()),
        "ema": module.average.weights,
        "optimizer": optimizer,
    }
    content = {
        kind: {name: fsdp.full_tensor(tensor).detach().clone() for name, tensor in part.items()}
        for kind, part in kinds.items()
    }
    if module.global_rank == 0:
        torch.save(content, file)


def happen(kind: str, step: int) -> None:
    if kind == "raise":
        raise errors.DataError(f"step {step}: the row cannot be read")
    if kind in ("gather", "nan"):
        return
    if kind in ("unwritten", "unscored"):
        fsdp.PATIENCE = timedelta(seconds=2)
        owner, name = (
            (fsdp.ForSampling, "forward") if kind == "unwritten" else (validation, "_sums")
        )
        setattr(owner, name, failing_later(getattr(owner, name)))
        return
    if kind == "full":

        def refuse(path: Path, weights: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

        sharded_files.write_weights = refuse  # type: ignore[assignment]
        return
    number = {"kill": signal.SIGKILL, "usr1": signal.SIGUSR1, "stop": signal.SIGTERM}[kind]
    os.kill(os.getppid() if kind == "stop" else os.getpid(), number)


def failing_later(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that raises an error at its second call."""
    calls = itertools.count(1)

    def called(*arguments: Any, **named: Any) -> Any:
        if next(calls) == 2:
            raise RuntimeError("no such kernel")
        return function(*arguments, **named)

    return called


def rows(folder: Path, processes: int) -> dict[int, list[list[int]]]:
    """Return the rows of each step in the order of the plan: micro-batch, process, row."""
    ranks = [(folder / f"rows-{rank}.jsonl").read_text().splitlines() for rank in range(processes)]
    steps: dict[int, list[list[int]]] = {}
    for lines in zip(*(map(json.loads, rank) for rank in ranks), strict=True):
        assert len({line["step"] for line in lines}) == 1, "all processes are at the same step"
        steps[lines[0]["step"]] = [
            row
            for micro in zip(*(line["ids"] for line in lines), strict=True)
            for share in micro
            for row in share
        ]
    return steps


def watch_writes(file: Path) -> None:
    """Record each path that Python code of this process changes from now on."""
    log = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        opened = event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if opened or event in (
            "os.mkdir",
            "os.rename",
            "os.remove",
            "os.rmdir",
            "os.symlink",
            "os.truncate",
        ):
            os.write(log, f"{event} {arguments[0]}\n".encode())

    sys.addaudithook(watch)


def main() -> None:
    import train

    # Otherwise Lightning started this process, with the arguments that are left here.
    if "WITNESS" not in os.environ:
        os.environ["WITNESS"] = json.dumps(sys.argv[1:3])
        sys.argv[1:] = sys.argv[3:]
    folder, fault = Path(json.loads(os.environ["WITNESS"])[0]), json.loads(os.environ["WITNESS"])[1]
    watch_writes(
        folder / f"writes-{os.environ.get('RANK', os.environ.get('SLURM_PROCID', '0'))}.txt"
    )
    with witness(folder, fault):
        train.main()


if __name__ == "__main__":
    errors.run(main)
