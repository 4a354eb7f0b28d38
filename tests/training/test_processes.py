"""Many processes are one run: python -m pytest tests/training/test_processes.py. All tests use gloo
on the CPU.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.environments import (
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from safetensors.torch import load_file

from lm.checkpoints.folder import Checkpoint, step_directories, step_of
from lm.config.schema.config import Config
from lm.config.schema.data import DataConfig
from lm.config.schema.optimizer import OptimizerConfig
from lm.config.schema.trainer import TrainerConfig
from lm.runs.folder import RunFolder
from lm.system import environment
from lm.system.environment import DECIDED, is_first, launcher
from lm.system.errors import ConfigError
from lm.system.signals import StopSignals
from lm.training import processes
from lm.training.parts import Parts
from lm.training.trainer import make_trainer
from tests.support.runs import ROOT, TORCHRUN, config_file, launched, slurm_tasks, train
from tests.support.witnessed import rows, witness

TWO = ("--trainer.devices", "2", "--trainer.micro_batch_size", "2")
STEPS = 40


def parts() -> Parts:
    """Return the parts of a session that a Trainer depends on."""
    data = DataConfig.model_validate({"source": {"format": "txt", "files": "unused"}})
    trainer = TrainerConfig(max_steps=1, device="cpu", precision="fp32")
    nothing: Any = None
    optimizer = OptimizerConfig(warmup_steps=0)
    return Parts(Config(data=data, optimizer=optimizer, trainer=trainer), nothing, nothing, nothing)


def configured(folder: Path, **trainer: object) -> Path:
    """Write a configuration of 40 steps without dropout, whose random numbers follow the
    micro-batches. It validates on fewer rows than there are processes. Muon trains the layers, and
    AdamW all other weights.
    """
    folder.mkdir(exist_ok=True)
    settings = {
        "max_steps": STEPS,
        "batch_size": 8,
        "micro_batch_size": 4,
        "validate_every": 25,
        "device": "cpu",
        "precision": "fp32",
    }
    model = {
        "context_length": 16,
        "n_layers": 2,
        "d_model": 32,
        "n_heads": 2,
        "dropout": 0.0,
        "init_std": 0.1,
    }
    checkpoint = {"directory": str(folder / "run"), "save_every": 3, "keep": 3}
    return config_file(
        folder,
        model=model,
        optimizer={"name": "muon"},
        checkpoint=checkpoint,
        trainer=settings | {"validation_rows": 1} | trainer,
    )


def started(
    folder: Path, config: Path, *keys: str, fault: str = "none", processes: int = 2, **options: Any
) -> str:
    """Start witnessed processes under torchrun, and return the stderr of all of them."""
    return launched(
        processes,
        "tests.support.witnessed",
        str(folder),
        fault,
        "--config",
        str(config),
        *keys,
        **options,
    ).stderr


def losses(run: Path) -> dict[tuple[str, int], float]:
    with (run / "metrics.csv").open() as file:
        return {
            (row["split"], int(row["step"])): float(row["loss"]) for row in csv.DictReader(file)
        }


def evaluations(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]


def distance(one: Path, other: Path) -> float:
    """Return the largest difference between two runs' final weights."""
    mine, theirs = (load_file(run / "final.ckpt" / "model.safetensors") for run in (one, other))
    assert mine.keys() == theirs.keys()
    return max((mine[name] - theirs[name]).abs().max().item() for name in mine)


def assert_same_run(one: Path, other: Path) -> None:
    """Check that two runs are equal except for rounding."""
    assert losses(one) == pytest.approx(losses(other), abs=1e-5)
    for mine, theirs in zip(evaluations(one), evaluations(other), strict=True):
        assert (mine["step"], mine["tokens"]) == (theirs["step"], theirs["tokens"])
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
    # AdamW makes a step of a gradient that is only rounding
    assert distance(one, other) < 1e-4


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, trains: None) -> Path:
    """Return the folder of a run of one process, never interrupted."""
    folder = tmp_path_factory.mktemp("straight")
    config = configured(folder)
    with witness(folder):
        train(config)
    return folder


@pytest.mark.usefixtures("starts_processes", "trains")
def test_stopped_and_resumed_on_two_processes_one_and_two(
    straight: Path, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    """Two processes run until the launcher gets a SIGTERM, then one, then two. Rows, losses, scores
    and weights are those of a run that never stopped.
    """
    config = configured(tmp_path / "many")
    sessions = [tmp_path / name for name in ("first", "second", "third")]
    for session in sessions:
        session.mkdir()
    run = tmp_path / "many" / "run"

    said = started(sessions[0], config, *TWO, fault="stop:1:3", succeeds=False)
    saved = step_of(step_directories(run)[-1])
    assert f"stopped by SIGTERM after step {saved}, saved" in said and 3 < saved < STEPS - 2
    with witness(sessions[1]):
        train(config, "--trainer.max_minutes=1e-9", resume="auto")  # one step
    codes, said_last = slurm_tasks(
        sessions[2], "none", "--config", str(config), *TWO, "--resume", "auto"
    )
    assert codes == [0, 0], said_last

    first, second, third = (
        rows(session, count) for session, count in zip(sessions, (2, 1, 2), strict=True)
    )
    assert (max(first) + 1, list(second), min(third)) == (saved, [saved], saved + 1)
    assert first | second | third == rows(straight, 1)
    assert_same_run(run, straight / "run")
    assert {line["tokens"] for line in evaluations(run)} == {16}, (
        "one row, and none of the padding, which is more"
    )
    figure(
        f"2, 1 and 2 processes, one run of {STEPS} steps: the same rows, weights within"
        f" {distance(run, straight / 'run'):.1e}"
    )

    wrote = [
        [path for path in writes(session, rank) if "/many/" in path]
        for session in (sessions[0], sessions[2])
        for rank in (0, 1)
    ]
    assert len(wrote[0]) > 20 and len(wrote[2]) > 20 and wrote[1] == wrote[3] == []


@pytest.mark.usefixtures("starts_processes", "trains")
def test_two_processes_take_as_many_steps_for_a_pass_as_one(tmp_path: Path) -> None:
    """They open the same text, and neither waits for a step that the other does not take."""
    passes = {"max_steps": None, "max_epochs": 0.5}
    train(configured(tmp_path / "one", **passes))
    two = configured(tmp_path / "two", **passes)
    started(tmp_path / "two", two, *TWO)
    assert_same_run(tmp_path / "one" / "run", tmp_path / "two" / "run")


def writes(session: Path, rank: int) -> list[str]:
    """Return the paths that a process wrote or made."""
    return (session / f"writes-{rank}.txt").read_text().splitlines()


@pytest.mark.usefixtures("starts_processes")
def test_an_error_of_one_process_is_its_own_message_first(tmp_path: Path) -> None:
    """The other processes notice the broken connection and print less. All of them end."""
    config = configured(tmp_path)
    said = started(tmp_path, config, *TWO, fault="raise:1:5", succeeds=False).splitlines()
    own = next(
        number
        for number, line in enumerate(said)
        if line.startswith("step 5: the row cannot be read; then go on with: ")
    )
    others = [
        number
        for number, line in enumerate(said)
        if "another process of this run has ended" in line or "torch/distributed" in line
    ]
    assert others and own < min(others)
    assert "Traceback" not in "".join(said[: others[0]]) and "internal error" not in "".join(said)
    assert_resumable(tmp_path / "run", 3)


@pytest.mark.usefixtures("starts_processes")
def test_a_killed_process_is_named_by_the_launcher(tmp_path: Path) -> None:
    said = started(tmp_path, configured(tmp_path), *TWO, fault="kill:0:5", succeeds=False)
    assert (
        "rank      : 0 (local_rank: 0)" in said.partition("Root Cause")[2]
        and "exitcode  : -9" in said
    )
    assert_resumable(tmp_path / "run", 3)


def assert_resumable(run: Path, step: int) -> None:
    """Check that the newest checkpoint is that of `step`, and whole."""
    assert [step_of(path) for path in step_directories(run)][-1] == step
    Checkpoint(step_directories(run)[-1]).verify()


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.parametrize(
    ("size", "said", "saved"),
    [
        ("900k", "a checkpoint of this run takes", None),
        ("1400k", "stopped before the disk is full: the next checkpoint takes", 6),
    ],
    ids=["too small for two checkpoints", "too small for three"],
)
def test_a_full_disk_ends_both_processes(
    tmp_path: Path, size: str, said: str, saved: int | None
) -> None:
    """Only the first process writes, and only it can meet the full disk. The other must not wait
    for ever. No launcher is there to kill it.
    """
    config = configured(tmp_path)
    adamw = ("--optimizer.name", "adamw")  # the sizes are for its two moments
    (tmp_path / "run").mkdir()
    with file_system(tmp_path / "run", size):
        codes, printed = slurm_tasks(tmp_path, "none", "--config", str(config), *TWO, *adamw)
        assert codes == [5, 5], printed
        assert said in printed[0]
        assert said not in printed[1], "one message is enough"
        if saved is not None:
            assert_resumable(tmp_path / "run", saved)


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.parametrize("launcher", ["srun", "Lightning"])
def test_several_processes_go_back_together(tmp_path: Path, launcher: str) -> None:
    """The same processes run the second session of trainer.on_nonfinite: rollback. The first one
    decides for all.
    """
    config = configured(tmp_path)
    (tmp_path / "session").mkdir()
    keys = [
        "--config",
        str(config),
        "--trainer.on_nonfinite=rollback",
        "--trainer.max_steps=12",
        *TWO,
    ]
    if launcher == "srun":
        codes, said = slurm_tasks(tmp_path / "session", "nan:all:7", *keys)
    else:
        command = [
            sys.executable,
            "-m",
            "tests.support.witnessed",
            str(tmp_path / "session"),
            "nan:all:7",
            *keys,
        ]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=240,
        )
        codes, said = [done.returncode], [done.stdout, done.stderr]
    assert not any(codes), said
    assert "".join(said).count("going back to the newest checkpoint") == 1
    for rank in (0, 1):
        lines = (tmp_path / "session" / f"rows-{rank}.jsonl").read_text().splitlines()
        steps = [json.loads(line)["step"] for line in lines]
        assert steps == [
            *range(8),
            *range(6, 12),
        ], "from step 6 again; step 7 is passed by without its update"
    assert_resumable(tmp_path / "run", 12)
    [incident] = [
        json.loads(line) for line in (tmp_path / "run" / "incidents.jsonl").read_text().splitlines()
    ]
    assert (incident["step"], incident["kind"]) == (7, "skipped")
    rows = (tmp_path / "run" / "nonfinite-step-00000008" / "batch.jsonl").read_text().splitlines()
    assert len(rows) == 8, "of both processes"


@contextlib.contextmanager
def file_system(folder: Path, size: str) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.long
@pytest.mark.usefixtures("starts_processes")
def test_two_hosts(straight: Path, tmp_path: Path, figure: Callable[[str], None]) -> None:
    """Two network namespaces joined by one cable, with a torchrun in each, make the same run."""
    config = configured(tmp_path)
    keys = ["--trainer.num_nodes", "2", "--trainer.micro_batch_size", "2"]
    with hosts() as names:
        agents = []
        for name in names:
            meeting = [
                "--nnodes=2",
                f"--node-rank={len(agents)}",
                "--master-addr=10.77.0.1",
                "--master-port=29511",
                "--nproc-per-node=1",
            ]
            command = [*TORCHRUN, *meeting, "-m", "tests.support.witnessed", str(tmp_path), "none"]
            agents.append(
                subprocess.Popen(
                    ["ip", "netns", "exec", name, *command, "--config", str(config), *keys],
                    cwd=ROOT,
                    env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "cable"},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
        said = [agent.communicate(timeout=240)[0] for agent in agents]
        sent = [packets(name) for name in names]
    assert [agent.returncode for agent in agents] == [0, 0], "\n".join(said)[-4000:]
    assert min(sent) > 100, "the two spoke through the cable"
    assert rows(tmp_path, 2) == rows(straight, 1)
    assert_same_run(tmp_path / "run", straight / "run")
    figure(
        f"two network namespaces: {min(sent):,} packets each way, weights within"
        f" {distance(tmp_path / 'run', straight / 'run'):.1e}"
    )


@contextlib.contextmanager
def hosts() -> Iterator[dict[str, str]]:
    """Make two network namespaces and the cable between them, and yield their addresses by name."""
    names = {f"host{side}-{os.getpid() % 10000}": f"10.77.0.{side}" for side in (1, 2)}
    one, two = names
    try:
        for name in names:
            subprocess.run(["ip", "netns", "add", name], check=True)
        subprocess.run(
            [
                "ip",
                "-n",
                one,
                "link",
                "add",
                "cable",
                "type",
                "veth",
                "peer",
                "name",
                "cable",
                "netns",
                two,
            ],
            check=True,
        )
        for name, address in names.items():
            subprocess.run(
                ["ip", "-n", name, "addr", "add", f"{address}/24", "dev", "cable"], check=True
            )
            for interface in ("lo", "cable"):
                subprocess.run(["ip", "-n", name, "link", "set", interface, "up"], check=True)
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False)


def packets(name: str) -> int:
    """Return the number of packets that this host has sent through the cable."""
    file = "/sys/class/net/cable/statistics/tx_packets"
    return int(
        subprocess.run(
            ["ip", "netns", "exec", name, "cat", file], capture_output=True, text=True, check=True
        ).stdout
    )


# Launchers, as a process sees them

TORCHRUN_SAYS = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
BATCH_SCRIPT = {
    "SLURM_JOB_ID": "77",
    "SLURM_NTASKS": "4",
    "SLURM_NNODES": "2",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_PROCID": "0",
}
SLURM_SAYS = BATCH_SCRIPT | {"SLURM_STEP_NUM_TASKS": "4"}


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Remove every launcher from the environment."""
    for name in [name for name in os.environ if name.startswith(("SLURM_", "TORCHELASTIC_"))]:
        monkeypatch.delenv(name)
    for name in (*processes.PLACES, DECIDED):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("environment", "expected", "first"),
    [
        ({}, None, True),
        ({"LOCAL_RANK": "1"}, None, True),
        ({"LOCAL_RANK": "1", DECIDED: "{}"}, None, False),
        (TORCHRUN_SAYS | {"RANK": "0", "LOCAL_RANK": "0"}, "torchrun", True),
        (TORCHRUN_SAYS | {"RANK": "2", "LOCAL_RANK": "0"}, "torchrun", False),
        (SLURM_SAYS | {"SLURM_PROCID": "0"}, "srun", True),
        (SLURM_SAYS | {"SLURM_PROCID": "3"}, "srun", False),
        (SLURM_SAYS | {"SLURM_PROCID": "1"} | TORCHRUN_SAYS | {"RANK": "0"}, "torchrun", True),
        (SLURM_SAYS | {"SLURM_JOB_NAME": "interactive"}, None, True),
        (SLURM_SAYS | {"SLURM_STEP_ID": "4294967290"}, None, True),
        (SLURM_SAYS | {"SLURM_PTY_PORT": "40123"}, None, True),
        (BATCH_SCRIPT, None, True),
    ],
)
def test_who_started_this(
    bare: pytest.MonkeyPatch, environment: dict[str, str], expected: str | None, first: bool
) -> None:
    """A batch script that starts train.py without srun has one process, and none of the tasks that
    it asked for ever comes.
    """
    for name, value in environment.items():
        bare.setenv(name, value)
    assert (launcher(), is_first()) == (expected, first)
    lightnings = {
        "torchrun": TorchElasticEnvironment,
        "srun": SLURMEnvironment,
        None: LightningEnvironment,
    }
    trainer = make_trainer(parts(), [Callback()], None)
    assert type(trainer._accelerator_connector.cluster_environment) is lightnings[expected]


def test_lightning_leaves_slurm_s_signal_to_us(bare: pytest.MonkeyPatch) -> None:
    """Lightning would requeue the job, but it leaves a signal alone that has a handler. Ours is
    there from the start.
    """
    for name, value in (
        SLURM_SAYS | {"SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "1"}
    ).items():
        bare.setenv(name, value)
    trainer = make_trainer(parts(), [Callback()], None)
    with StopSignals(speaks=False, advice="") as signals:
        trainer._signal_connector.register_signal_handlers()
        assert signal.getsignal(signal.SIGUSR1) == signals._note
        trainer._signal_connector.teardown()


@pytest.mark.parametrize("environment", [TORCHRUN_SAYS, SLURM_SAYS])
@pytest.mark.parametrize(
    ("devices", "num_nodes", "right"),
    [(2, 2, True), (4, 1, False), (1, 4, False), (2, 1, False), (1, 1, False)],
)
def test_the_launcher_must_start_what_the_configuration_says(
    bare: pytest.MonkeyPatch, environment: dict[str, str], devices: int, num_nodes: int, right: bool
) -> None:
    for name, value in environment.items():
        bare.setenv(name, value)
    trainer = TrainerConfig(max_steps=1, devices=devices, num_nodes=num_nodes)
    with (
        contextlib.nullcontext()
        if right
        else pytest.raises(ConfigError, match=r"write --trainer\.devices 2 --trainer\.num_nodes 2$")
    ):
        processes.check_launcher(trainer)


def test_a_step_is_divided_over_all_machines() -> None:
    trainer = TrainerConfig(max_steps=1, batch_size=24, devices=2, num_nodes=3, micro_batch_size=2)
    assert (trainer.processes, trainer.micro_batch, trainer.accumulation) == (6, 2, 2)
    assert TrainerConfig(max_steps=1, batch_size=24, devices=2, num_nodes=3).micro_batch == 4
    with pytest.raises(
        ValueError, match="batch_size 8 is not divisible by devices 2 x num_nodes 3"
    ):
        TrainerConfig(max_steps=1, batch_size=8, devices=2, num_nodes=3)


def test_places_that_no_launcher_gave_are_not_used(bare: pytest.MonkeyPatch) -> None:
    """RANK and MASTER_PORT may be left from another program. Lightning would believe them."""
    left = {"RANK": "1", "LOCAL_RANK": "x", "WORLD_SIZE": "2", "MASTER_PORT": "1"}
    for name, value in left.items():
        bare.setenv(name, value)
    bare.setattr(environment, "ignored", names := [])
    processes.check_launcher(TrainerConfig(max_steps=1))
    assert not left.keys() & os.environ.keys() and set(names) == left.keys()


def test_places_from_lightning_stay(bare: pytest.MonkeyPatch) -> None:
    bare.setenv(DECIDED, "{}")
    bare.setenv("LOCAL_RANK", "1")
    processes.check_launcher(TrainerConfig(max_steps=1))
    assert os.environ["LOCAL_RANK"] == "1"


@pytest.mark.parametrize("value", ["", "0", "two"])
def test_a_count_of_processes_in_words_is_named(bare: pytest.MonkeyPatch, value: str) -> None:
    for name, right in (SLURM_SAYS | {"SLURM_NNODES": value}).items():
        bare.setenv(name, right)
    with pytest.raises(ConfigError, match=r"^SLURM_NNODES: the launcher's count"):
        processes.check_launcher(TrainerConfig(max_steps=1))


@pytest.mark.parametrize(
    ("flags", "kept"),
    [
        (["--config", "my runs/a.yaml"], "--config 'my runs/a.yaml'"),
        (["--resume", "auto", "--config", "a.yaml"], "--config a.yaml"),
        (["--init-from", "b/best.ckpt", "--config", "a.yaml", "--x", "3"], "--config a.yaml --x 3"),
        (["--config=a", "--resume=b/last.ckpt", "--x", "$HOME"], "--config=a --x '$HOME'"),
    ],
)
def test_the_command_that_goes_on(bare: pytest.MonkeyPatch, flags: list[str], kept: str) -> None:
    bare.setattr("sys.argv", ["train.py", *flags])
    bare.setattr("sys.orig_argv", ["python3", "-O", "train.py", *flags])
    assert processes.continuing_command() == f"python3 -O train.py {kept} --resume auto"
    bare.setattr("sys.orig_argv", ["pytest"])
    assert processes.continuing_command() == f"python train.py {kept} --resume auto"
    bare.setenv("TORCHELASTIC_RUN_ID", "none")
    assert processes.continuing_command() == f"torchrun as before, train.py {kept} --resume auto"


def test_many_machines_need_a_launcher(bare: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"^trainer\.num_nodes: 2 machines need a launcher"):
        processes.check_launcher(TrainerConfig(max_steps=1, num_nodes=2))


@pytest.mark.usefixtures("starts_processes")
def test_slurm_s_signal_before_the_time_limit_stops_all(straight: Path, tmp_path: Path) -> None:
    """One SIGUSR1 to one of the processes stops all. Lightning would have taken it for itself."""
    codes, said = slurm_tasks(tmp_path, "usr1:1:5", "--config", str(configured(tmp_path)), *TWO)
    assert codes == [138, 138], said
    assert "stopped by SIGUSR1 after step 6, saved" in said[0]
    assert_resumable(tmp_path / "run", 6)
    assert rows(tmp_path, 2) == {step: rows(straight, 1)[step] for step in range(6)}


@pytest.mark.usefixtures("starts_processes")
def test_what_the_first_process_refuses_ends_the_others(tmp_path: Path) -> None:
    """The other processes wait while the first one opens the run's folder. It ends them, and the
    reason is printed once.
    """
    config = configured(tmp_path)
    busy = RunFolder(tmp_path / "run")
    codes, said = slurm_tasks(tmp_path, "none", "--config", str(config), *TWO)
    busy.close()
    assert codes == [2, 2]
    assert f"is in use by another run (process {os.getpid()})" in said[0] and said[1] == ""
