"""The processes of one run: which program started them, and how the first one decides for all.

torchrun and SLURM start every process at once. Only the first one reads the run's folder, because
it may move that folder aside; the others wait for its decision. Without a launcher, Lightning
starts the others (`trainer.devices`) after the first one has decided, and they read the decision
from their environment.

Only several processes import torch here, so that a wrong configuration is refused at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lm.checkpoints.folder import Checkpoint
from lm.config.schema.trainer import TrainerConfig
from lm.runs.origin import Origin, resuming
from lm.system.device import check_devices, choose_device
from lm.system.environment import DECIDED, ignore, is_first, launcher
from lm.system.errors import ConfigError, UserError

if TYPE_CHECKING:
    from lightning import LightningModule
    from lightning.pytorch.plugins.environments import ClusterEnvironment
    from lightning.pytorch.strategies import ModelParallelStrategy

Result = TypeVar("Result")

# Launchers give each process its place by these. Without one, they are left over from another
# program, or mean another one.
PLACES = (
    *("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT", "SLURM_PROCID", "SLURM_LOCALID", "JSM_NAMESPACE_RANK"),
)


def continuing_command() -> str:
    """Return the command that continues this run, as a shell reads it: this one, with --resume auto
    in place of --resume and --init-from.
    """
    script, *flags = sys.argv
    kept: list[str] = []
    for flag in flags:
        if kept and kept[-1] in ("--resume", "--init-from"):
            kept.pop()
        elif not flag.startswith(("--resume=", "--init-from=")):
            kept.append(flag)
    count = len(sys.argv)
    typed = sys.orig_argv[:-count] if sys.orig_argv[-count:] == sys.argv else ["python"]
    name = launcher()
    before = f"{name} as before, " if name else f"{shlex.join(typed)} "
    return before + shlex.join([script, *kept, "--resume", "auto"])


def check_launcher(trainer: TrainerConfig) -> None:
    """Raise ConfigError unless the launcher started as many processes as the configuration says.
    Without a launcher, remove what another one has left in the environment.
    """
    name = launcher()
    if name is None:
        for variable in PLACES if DECIDED not in os.environ else ():
            ignore(variable)
        if trainer.num_nodes > 1:
            raise ConfigError(
                f"trainer.num_nodes: {trainer.num_nodes} machines need a launcher that starts"
                " train.py on each; write torchrun or srun before it, as docs/SCALING.md shows, or"
                " num_nodes 1"
            )
        return
    processes = _count("WORLD_SIZE" if name == "torchrun" else "SLURM_NTASKS")
    here = _count("LOCAL_WORLD_SIZE") if name == "torchrun" else processes // _count("SLURM_NNODES")
    if (here, here * trainer.num_nodes) != (trainer.devices, processes):
        raise ConfigError(
            f"trainer.devices: {name} started {processes} processes, {here} on each machine, got"
            f" devices {trainer.devices} and num_nodes {trainer.num_nodes}; write --trainer.devices"
            f" {here} --trainer.num_nodes {processes // here}"
        )


def _count(name: str) -> int:
    value = os.environ.get(name, "1")
    if not value.isdecimal() or int(value) == 0:
        raise ConfigError(f"{name}: the launcher's count of processes is wrong, got {value!r}")
    return int(value)


def cluster_environment() -> ClusterEnvironment:
    """Return Lightning's name for the launcher. Lightning's own guess waits for tasks that a batch
    script requested and never started.
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
    """Return the strategy that Lightning's Trainer takes for `trainer.strategy`."""
    if trainer.strategy != "fsdp":
        return "ddp" if trainer.strategy == "auto" and trainer.processes > 1 else trainer.strategy
    from lightning.pytorch.strategies import ModelParallelStrategy

    return ModelParallelStrategy(data_parallel_size=trainer.processes, tensor_parallel_size=1)


def decide_on_first(decide: Callable[[], Origin | None], trainer: TrainerConfig) -> Origin | None:
    """Call `decide` on the first process alone, and return its result on every process.

    Raises:
        UserError: the error of `decide`, on the first process.
        SystemExit: on the others, with the same exit code: one message is enough.
    """
    # Processes that Lightning started are connected from their second session on.
    together = launcher() is not None or _are_connected()
    if together and trainer.processes > 1:
        return _decided_together(decide, trainer)
    if not is_first():
        return _read(json.loads(os.environ[DECIDED]))
    origin = decide()
    if origin is not None:
        paths = {"resume": origin.resume, "init_from": origin.init_from}
        os.environ[DECIDED] = json.dumps({name: path and str(path) for name, path in paths.items()})
    return origin


def on_first_process(act: Callable[[], Result]) -> Result | None:
    """Call `act` on the first process alone. Return its result there, and None on the others.

    Raises:
        UserError: the error of `act`, on the first process.
        SystemExit: on the others, with the same exit code: none waits for a process that has left.
    """
    result, problem = _try_on_first(act)
    if _are_connected():
        _share(None, problem)
    elif problem is not None:
        raise problem
    return result


def exchange_gradients(
    module: LightningModule, last: bool
) -> contextlib.AbstractContextManager[object]:
    """Let processes exchange gradients in the backward pass of the last micro-batch only."""
    from torch.nn.parallel import DistributedDataParallel

    from lm.surgery import fsdp

    if module.sharded:
        fsdp.sync_gradients(module.decoder, last)
    wrapped = module.trainer.strategy.model
    if isinstance(wrapped, DistributedDataParallel) and not last:
        return wrapped.no_sync()
    return contextlib.nullcontext()


def disconnect() -> None:
    """End the process group, if there is one. All processes call this together: one that ends
    earlier may abort the others.
    """
    if _are_connected():
        import torch

        torch.distributed.destroy_process_group()


def _decided_together(decide: Callable[[], Origin | None], trainer: TrainerConfig) -> Origin | None:
    """Share the decision through the process group that the training uses later."""
    origin, problem = _try_on_first(decide)
    if not _are_connected():
        _join(trainer)
    shared: Origin | None = _share(origin, problem)
    return shared


def _try_on_first(act: Callable[[], Result]) -> tuple[Result | None, Exception | None]:
    """Return the result of `act` and its error; (None, None) on all processes but the first."""
    try:
        return act() if is_first() else None, None
    except Exception as error:
        return None, error


def _share(value: Any, problem: Exception | None) -> Any:
    """Return the first process's value on all processes, or end all with its problem's code."""
    import torch

    code = 0 if problem is None else problem.exit_code if isinstance(problem, UserError) else 1
    shared = [value, code]
    torch.distributed.broadcast_object_list(shared)
    if problem is not None:
        raise problem
    if shared[1]:
        raise SystemExit(shared[1])
    return shared[0]


def _are_connected() -> bool:
    """Return whether this process is in a process group, without importing torch."""
    distributed = sys.modules.get("torch.distributed")
    return (
        distributed is not None
        and distributed.is_available()
        and bool(distributed.is_initialized())
    )


def _join(trainer: TrainerConfig) -> None:
    """Start torch's process group as Lightning would. Lightning then uses this one.

    Raises:
        ConfigError: the machine lacks the device.
    """
    import torch

    environment = cluster_environment()
    device = choose_device(trainer.device)
    check_devices(trainer.devices, device)
    if device == "cuda":
        torch.cuda.set_device(environment.local_rank())
    os.environ["MASTER_ADDR"] = environment.main_address
    os.environ["MASTER_PORT"] = str(environment.main_port)
    torch.distributed.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        rank=environment.global_rank(),
        world_size=environment.world_size(),
        device_id=torch.device("cuda", environment.local_rank()) if device == "cuda" else None,
    )


def _read(paths: dict[str, str | None]) -> Origin:
    if resume := paths["resume"]:
        return resuming(Checkpoint(Path(resume)))
    if init_from := paths["init_from"]:
        return Origin(Checkpoint(Path(init_from)))
    return Origin(None)
