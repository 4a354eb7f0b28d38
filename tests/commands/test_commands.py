"""The commands of the README, as a person types them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.runs import config_file

pytestmark = pytest.mark.usefixtures("starts_processes")

ROOT = Path(__file__).parents[2]


def run(
    *command: str, code: int = 0, cwd: Path = ROOT, prompt: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command; check its exit code and that there is no traceback."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        input=prompt,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | environment,
    )
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory, starts_processes: None) -> tuple[Path, str]:
    """Train a few steps of the smoke run as shipped; return its folder and what it printed."""
    folder = tmp_path_factory.mktemp("smoke") / "checkpoints"
    budget = [
        "--trainer.max_steps",
        "20",
        "--optimizer.warmup_steps=5",
        "--trainer.validate_every",
        "10",
    ]
    keys = ["--checkpoint.directory", str(folder), "--data.cache_dir", str(folder.parent / "cache")]
    done = run("train.py", "--config", "config_smoke.yaml", *budget, *keys)
    return folder, done.stdout


def test_train_says_where_it_ended_and_what_the_model_writes(smoke: tuple[Path, str]) -> None:
    folder, printed = smoke
    for expected in (
        "model: ",
        "run: 20 steps",
        "data: train",
        "step 20: validation loss",
        'it writes: "Attention is',
        "done: ",
    ):
        assert expected in printed
    names = {path.name for path in folder.iterdir()}
    assert {
        "best.ckpt",
        "last.ckpt",
        "final.ckpt",
        "metrics.csv",
        "evaluations.jsonl",
        "curves.png",
        "config.yaml",
    } <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    first, last = (
        json.loads(line)["loss"]
        for line in (folder / "evaluations.jsonl").read_text().splitlines()[::2]
    )
    assert last < first - 1


def test_infer_writes(smoke: tuple[Path, str]) -> None:
    checkpoint = str(smoke[0] / "final.ckpt")
    one = run(
        "infer.py",
        "--ckpt",
        checkpoint,
        "--prompt",
        "Attention is",
        "--max-new-tokens",
        "20",
        "--seed",
        "3",
    ).stdout
    assert one.startswith("Attention is")
    assert (
        one
        == run(
            "infer.py",
            "--ckpt",
            checkpoint,
            "--max-new-tokens",
            "20",
            "--seed",
            "3",
            prompt="Attention is\n",
        ).stdout
    )


def test_eval_val_agrees_with_the_run_itself(smoke: tuple[Path, str]) -> None:
    """The last step scored the whole validation split, so the files alone give the same number."""
    folder = smoke[0]
    keys = ["--data.cache_dir", str(folder.parent / "cache")]
    command = [
        "eval_val.py",
        "--ckpt",
        str(folder / "final.ckpt"),
        "--config",
        "config_smoke.yaml",
        "--tokenizer",
        "auto",
        *keys,
    ]
    report = json.loads(run(*command, "--json").stdout)
    recorded = json.loads((folder / "evaluations.jsonl").read_text().splitlines()[-1])
    assert report["step"] == recorded["step"] == 20
    assert report["tokens"] == recorded["tokens"]
    for key in ("loss", "perplexity", "bits_per_byte"):
        assert report[key] == pytest.approx(recorded[key], rel=1e-5)
    assert f"loss {recorded['loss']:.4f} nats per token" in run(*command).stdout


def test_list_shows_the_run(smoke: tuple[Path, str]) -> None:
    rows = json.loads(run("list.py", str(smoke[0]), "--json").stdout)
    assert [row["step"] for row in rows] == [10, 20]
    assert rows[1]["tokens"] == 20 * 8 * 128
    assert "final" in rows[1]["links"]
    assert "final" in run("list.py", str(smoke[0]), "--sort", "val_loss").stdout


def test_plot_curves_draws_runs_over_one_another(smoke: tuple[Path, str], tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(smoke[0], other, symlinks=True)
    run("-m", "tools.plot_curves", str(smoke[0]), str(other), "--out", str(tmp_path / "both.png"))
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")


def test_resume_and_continue_with_a_longer_budget(tmp_path: Path) -> None:
    config = config_file(tmp_path)
    run("train.py", "--config", str(config))
    assert (
        "finished its 12 steps"
        in run("train.py", "--config", str(config), "--resume", "auto").stdout
    )
    done = run("train.py", "--config", str(config), "--resume", "auto", "--trainer.max_steps", "15")
    assert "done: " in done.stdout
    assert (tmp_path / "run" / "final.ckpt").resolve().name == "step-00000015.ckpt"


def test_two_processes_write_one_run(tmp_path: Path) -> None:
    """Without dropout, `trainer.devices: 2` on the CPU gives the losses of one process but for
    rounding.
    """
    one = config_file(
        tmp_path,
        model={"context_length": 16, "n_layers": 2, "d_model": 32, "n_heads": 2, "dropout": 0.0},
    )
    run("train.py", "--config", str(one))
    two = tmp_path / "two"
    run(
        "train.py",
        "--config",
        str(one),
        "--trainer.devices",
        "2",
        "--trainer.micro_batch_size",
        "2",
        "--checkpoint.directory",
        str(two),
    )
    lines = [
        [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
        for folder in (tmp_path / "run", two)
    ]
    for mine, theirs in zip(*lines, strict=True):
        assert mine["tokens"] == theirs["tokens"]
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-4)


def test_the_smoke_run_needs_no_network(tmp_path: Path) -> None:
    """No proxy and no hub can be reached, and none is asked for."""
    nowhere = {
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HTTP_PROXY": "http://127.0.0.1:9",
        "HTTPS_PROXY": "http://127.0.0.1:9",
    }
    cut_off = (
        "import socket, sys\ndef refuse(*a): sys.exit('asked for the"
        " network')\nsocket.socket.connect = refuse\n"
    )
    budget = [
        "--trainer.max_steps",
        "2",
        "--optimizer.warmup_steps",
        "1",
        "--checkpoint.directory",
        str(tmp_path / "run"),
    ]
    cache = ["--data.cache_dir", str(tmp_path / "cache")]
    done = run(
        "-c",
        cut_off + "import train; train.main()",
        "--config",
        "config_smoke.yaml",
        *budget,
        *cache,
        **nowhere,
    )
    assert "done: " in done.stdout
    run(
        "-c",
        cut_off + "import infer; infer.main()",
        "--ckpt",
        str(tmp_path / "run" / "final.ckpt"),
        "--prompt",
        "a",
        **nowhere,
    )


MISTAKES = [
    (["train.py"], 2, "--config"),
    (["train.py", "--config", "nowhere.yaml"], 2, "nowhere.yaml"),
    (["SMOKE", "--optimizer.lrr", "1e-3"], 2, "lr"),
    (["SMOKE", "--optimizer.lr", "fast"], 2, "optimizer.lr"),
    (["SMOKE", "--resume", "auto", "--init-from", "x"], 2, "not allowed with"),
    (["SMOKE", "--resume", "nowhere.ckpt", "--checkpoint.directory", "{tmp}/a"], 5, "nowhere.ckpt"),
    (["SMOKE", "--init-from", "README.md", "--checkpoint.directory", "{tmp}/b"], 5, "README.md"),
    (["SMOKE", "--data.source.files", "no.txt", "--checkpoint.directory", "{tmp}/c"], 3, "no.txt"),
    (
        [
            "train.py",
            "--config",
            "config_smoke.yaml",
            "--model.vocab_size",
            "100",
            "--checkpoint.directory",
            "{tmp}/d",
        ],
        2,
        "model.vocab_size",
    ),
    (
        ["SMOKE", "--trainer.device", "cuda", "--checkpoint.directory", "{tmp}/e"],
        2,
        "trainer.device",
    ),
    (["infer.py", "--ckpt", "nowhere.ckpt", "--prompt", "a"], 5, "nowhere.ckpt"),
    (["infer.py", "--ckpt", "README.md", "--prompt", "a"], 5, "README.md"),
    (["eval_val.py", "--ckpt", "nowhere.ckpt", "--config", "config_smoke.yaml"], 5, "nowhere.ckpt"),
    (["list.py", "nowhere"], 5, "nowhere"),
]


@pytest.mark.parametrize(
    ("command", "code", "named"),
    MISTAKES,
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_mistakes_are_one_plain_answer(
    command: list[str], code: int, named: str, tmp_path: Path
) -> None:
    if "cuda" in command:
        torch = pytest.importorskip("torch")
        if torch.cuda.is_available():
            command = [*command[:-4], "--trainer.device", "mps", *command[-2:]]
    smoke_run = ["train.py", "--config", "config_smoke.yaml"]
    words = smoke_run + command[1:] if command[0] == "SMOKE" else command
    done = run(*(word.format(tmp=tmp_path) for word in words), code=code)
    assert named in done.stderr


@pytest.mark.parametrize(
    "command", [["train.py", "--config", "c.yaml"], ["list.py", "/"], ["infer.py", "--help"]]
)
def test_a_current_folder_that_was_deleted_is_one_plain_answer(
    command: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    script, *flags = command
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *flags],
        cwd=folder,
        capture_output=True,
        text=True,
        preexec_fn=folder.rmdir,
    )
    assert (done.returncode, done.stdout, done.stderr) == (
        2,
        "",
        "the current folder is gone: cd to an existing folder and try again\n",
    )


def heavy_imports(import_times: str) -> set[str]:
    """Return the packages in `-X importtime`'s output that take seconds to import."""
    heavy = {"torch", "lightning", "transformers", "datasets", "matplotlib", "numpy", "tokenizers"}
    return heavy & {
        line.rsplit("|", 1)[-1].strip().split(".")[0]
        for line in import_times.splitlines()
        if line.startswith("import time:")
    }


@pytest.mark.parametrize(
    "command",
    [
        ["train.py"],
        ["infer.py"],
        ["eval_val.py"],
        ["evaluate_checkpoints.py"],
        ["list.py"],
        ["-m", "tools.plot_curves"],
        ["-m", "tools.config_docs"],
        ["-m", "tools.consolidate"],
        ["-m", "tools.resume_proof"],
        ["-m", "tools.selfcheck"],
        ["-m", "tools.ablate"],
        ["-m", "tools.train_tokenizer"],
        ["-m", "tools.prepare"],
        ["-m", "tools.inspect_data"],
        ["-m", "tools.export_tokens"],
        ["-m", "tools.lm_eval"],
    ],
)
def test_help_answers_without_anything_heavy(command: list[str]) -> None:
    done = run("-X", "importtime", *command, "--help")
    assert "usage:" in done.stdout
    assert not heavy_imports(done.stderr)


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "benchmarks").glob("*.py")))
def test_benchmarks_can_be_started(script: str) -> None:
    """Benchmarks are seldom run, and the type checker does not read them."""
    assert "usage:" in run(f"benchmarks/{script}", "--help").stdout


def test_configuration_errors_answer_without_anything_heavy() -> None:
    done = run(
        "-X",
        "importtime",
        "train.py",
        "--config",
        "config_smoke.yaml",
        "--optimizer.lr",
        "fast",
        code=2,
    )
    assert not heavy_imports(done.stderr)
