"""The processes of one run: who started them, and what the first of them decides for all.

torchrun and SLURM start every process at once. Only the first looks at the run's folder, which it
may be about to move aside; the others wait for what it found. Where Lightning starts the others
itself (`trainer.devices` without a launcher), it does so when the first has long decided, and they
find the answer in their environment.

torch is imported only where there are several processes, so that a wrong configuration is refused
at once.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from lm.checkpoints.folder import read_meta
from lm.config.schema.trainer import TrainerConfig
from lm.runs.origin import Origin
from lm.system.device import check_devices, choose_device
from lm.system.errors import ConfigError, UserError

if TYPE_CHECKING:
    from lightning.pytorch.plugins.environments import ClusterEnvironment
    from lightning.pytorch.strategies import ModelParallelStrategy

Result = TypeVar("Result")
DECIDED = "TINY_TRANSFORMER_ORIGIN"  # in the environment of processes that Lightning starts


def launcher() -> Literal["torchrun", "srun"] | None:
    """Who started this process together with all others. None: a person did, or Lightning."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return "torchrun"  # first: it may run inside SLURM
    # A batch script has no step: what it starts without srun is one process, however many tasks it
    # asked for. And with those names people work in a shell that SLURM gave them.
    if {"SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"} <= os.environ.keys() and os.environ.get(
        "SLURM_JOB_NAME"
    ) not in ("bash", "interactive"):
        return "srun"
    return None


def is_first() -> bool:
    """Whether this is the process that writes, prints and decides."""
    names = {"torchrun": ("RANK",), "srun": ("SLURM_PROCID",), None: ("LOCAL_RANK", "NODE_RANK")}
    return all(os.environ.get(name, "0") == "0" for name in names[launcher()])


def check_launcher(trainer: TrainerConfig) -> None:
    """Raises ConfigError where the launcher has not started as many processes as the configuration
    says.
    """
    name = launcher()
    if name is None:
        if trainer.num_nodes > 1:
            raise ConfigError(
                f"trainer.num_nodes: {trainer.num_nodes} machines need a launcher that starts"
                " train.py on each; write torchrun or srun before it, as docs/SCALING.md shows, or"
                " num_nodes 1"
            )
        return
    processes = int(os.environ["WORLD_SIZE" if name == "torchrun" else "SLURM_NTASKS"])
    here = (
        int(os.environ["LOCAL_WORLD_SIZE"])
        if name == "torchrun"
        else processes // int(os.environ.get("SLURM_NNODES", "1"))
    )
    if (here, here * trainer.num_nodes) != (trainer.devices, processes):
        raise ConfigError(
            f"trainer.devices: {name} started {processes} processes, {here} on each machine, got"
            f" devices {trainer.devices} and num_nodes {trainer.num_nodes}; write --trainer.devices"
            f" {here} --trainer.num_nodes {processes // here}"
        )


def cluster_environment() -> ClusterEnvironment:
    """What Lightning should know of the launcher. By itself it would wait for tasks that a batch
    script asked for and never started.
    """
    from lightning.pytorch.plugins.environments import (
        LightningEnvironment,
        SLURMEnvironment,
        TorchElasticEnvironment,
    )

    return {
        "torchrun": TorchElasticEnvironment,
        "srun": SLURMEnvironment,
        None: LightningEnvironment,
    }[launcher()]()


def lightning_strategy(trainer: TrainerConfig) -> str | ModelParallelStrategy:
    """What `trainer.strategy` is to Lightning's Trainer."""
    if trainer.strategy != "fsdp":
        return "ddp" if trainer.strategy == "auto" and trainer.processes > 1 else trainer.strategy
    from lightning.pytorch.strategies import ModelParallelStrategy

    return ModelParallelStrategy(data_parallel_size=trainer.processes, tensor_parallel_size=1)


def first_decides(decide: Callable[[], Origin | None], trainer: TrainerConfig) -> Origin | None:
    """What `decide` returns on the first process, on every process; the others do not call it.

    Raises:
        UserError: whatever `decide` raised, on the first process.
        SystemExit: with its exit code, on the others: one message is enough.
    """
    # Lightning's own processes are, when a session follows on another
    together = launcher() is not None or _are_connected()
    if together and trainer.processes > 1:
        return _told_to_all(decide, trainer)
    if not is_first():
        if DECIDED not in os.environ:
            raise ConfigError(
                "LOCAL_RANK or NODE_RANK is set, but the launcher is not known; start the processes"
                " with torchrun or srun"
            )
        return _read(json.loads(os.environ[DECIDED]))
    origin = decide()
    if origin is not None:
        paths = {"resume": origin.resume, "init_from": origin.init_from}
        os.environ[DECIDED] = json.dumps({name: path and str(path) for name, path in paths.items()})
    return origin


def first_does(act: Callable[[], Result]) -> Result | None:
    """What `act` returns on the first process; the others do not call it, and get None.

    Raises:
        UserError: whatever `act` raised, on the first process.
        SystemExit: with its exit code, on the others: nobody waits for a process that has left.
    """
    result, problem = _tried(act)
    if _are_connected():
        _tell_all(None, problem)
    elif problem is not None:
        raise problem
    return result


def disconnect() -> None:
    """End the process group, if there is one; all processes call it, as those that are done would
    wait for one that goes on in it.
    """
    if _are_connected():
        import torch

        torch.distributed.destroy_process_group()


def _told_to_all(decide: Callable[[], Origin | None], trainer: TrainerConfig) -> Origin | None:
    """Through the process group that the training is going to use."""
    origin, problem = _tried(decide)
    if not _are_connected():
        _join(trainer)
    told: Origin | None = _tell_all(origin, problem)
    return told


def _tried(act: Callable[[], Result]) -> tuple[Result | None, Exception | None]:
    """On the first process: what came of it, or what went wrong."""
    try:
        return act() if is_first() else None, None
    except Exception as error:
        return None, error


def _tell_all(value: Any, problem: Exception | None) -> Any:
    """The first process's value, on all of them; or they leave, each with the exit code of its
    problem.
    """
    import torch

    code = 0 if problem is None else problem.exit_code if isinstance(problem, UserError) else 1
    told = [value, code]
    torch.distributed.broadcast_object_list(told)
    if problem is not None:
        raise problem
    if told[1]:
        raise SystemExit(told[1])
    return told[0]


def _are_connected() -> bool:
    """Whether this process is in a process group; without importing torch for the answer."""
    distributed = sys.modules.get("torch.distributed")
    return (
        distributed is not None
        and distributed.is_available()
        and bool(distributed.is_initialized())
    )


def _join(trainer: TrainerConfig) -> None:
    """Start torch's process group as Lightning would; it uses the one that it finds.

    Raises:
        ConfigError: the device is not there.
    """
    import torch

    environment = cluster_environment()
    device = choose_device(trainer.device)
    check_devices(trainer.devices, device)
    if device == "cuda":
        torch.cuda.set_device(environment.local_rank())
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = (
        environment.main_address,
        str(environment.main_port),
    )
    torch.distributed.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        rank=environment.global_rank(),
        world_size=environment.world_size(),
        device_id=torch.device("cuda", environment.local_rank()) if device == "cuda" else None,
    )


def _read(paths: dict[str, str | None]) -> Origin:
    resume, init_from = (
        (Path(text) if (text := paths[name]) else None) for name in ("resume", "init_from")
    )
    path = resume or init_from
    return Origin(resume, init_from, read_meta(path) if path is not None else None)
