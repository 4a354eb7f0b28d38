"""Each command has an import budget: the packages that it may load, by name.

Every package that may be loaded is listed, so a new import fails here even if nobody thought of
forbidding it. One package brings in others: torch, numpy and tqdm, for example.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lm.config.schema.model import ModelConfig
from lm.tokenizer.tokenizer import ByteTokenizer
from model import Decoder
from tests.support import runs
from tests.support.faults import ROOT

pytestmark = pytest.mark.usefixtures("starts_processes")

COMMANDS = (
    *sorted(path.name for path in ROOT.glob("*.py") if path.stem not in ("model", "data")),
    *sorted(f"tools.{path.stem}" for path in ROOT.glob("tools/[!_]*.py")),
)
# pydantic checks the configuration, yaml reads it
PYDANTIC = {
    "annotated_types",
    "pydantic",
    "pydantic_core",
    "typing_extensions",
    "typing_inspection",
}
CONFIG = PYDANTIC | {"yaml"}
TORCH = {"dill", "numpy", "safetensors", "torch", "torchgen", "tqdm"}
MATPLOTLIB = {
    "charset_normalizer",
    "cycler",
    "dateutil",
    "fontTools",
    "kiwisolver",
    "matplotlib",
    "mpl_toolkits",
    "packaging",
    "PIL",
    "pyparsing",
    "scipy",
    "six",
}
# parts of torch that take longer to load than a small model takes to answer
TORCH_PARTS = (
    "torch._dynamo",
    "torch._inductor",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "torch.utils.tensorboard",
)
# Forbidden where Lightning is loaded, which loads a part of whatever is installed. The last row is
# what torchmetrics would load (lm/system/lazy_torchmetrics.py).
NOT_WITH_LIGHTNING = {
    *("bitsandbytes", "datasets", "lm_eval", "peft", "ray", "trl"),
    *("huggingface_hub", "nltk", "scipy", "sentencepiece", "transformers"),
}
PROGRAM = """
import atexit, json, runpy, sys
file, command, *sys.argv[1:] = sys.argv[1:]
sys.argv[0] = command
sys.path.insert(0, "")
atexit.register(lambda: json.dump(list(sys.modules), open(file, "w")))
if command.endswith(".py"):
    runpy.run_path(command, run_name="__main__")
else:
    runpy.run_module(command, run_name="__main__", alter_sys=True)
"""


def loaded(folder: Path, *command: object) -> tuple[set[str], set[str]]:
    """Run a command; return the packages that it loaded, and the parts of torch."""
    file = folder / "modules.json"
    line = [sys.executable, "-c", PROGRAM, file, *command]
    done = subprocess.run([str(part) for part in line], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    modules = json.loads(file.read_text())
    packages = {name.partition(".")[0] for name in modules} - set(sys.stdlib_module_names)
    own = {"lm", "tools", *(path.stem for path in ROOT.glob("*.py"))}
    internal = {name for name in packages if name.startswith("_") or name == "cython_runtime"}
    return packages - own - internal, set(TORCH_PARTS) & set(modules)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = ByteTokenizer()
    shape = ModelConfig(
        vocab_size=tokenizer.vocab_size, d_model=16, n_layers=1, n_heads=2, context_length=64
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run")
    return runs.write_trained(folder, Decoder(shape), tokenizer, {}, 3)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_loads_what_checks_a_configuration(command: str, tmp_path: Path) -> None:
    packages, _ = loaded(tmp_path, command, "--help")
    assert packages - CONFIG <= {"numpy"}


def test_listing_takes_the_standard_library(checkpoint: Path, tmp_path: Path) -> None:
    packages, _ = loaded(tmp_path, "list.py", checkpoint.parent)
    assert packages == set()


def test_sampling_takes_torch(checkpoint: Path, tmp_path: Path) -> None:
    flags = ("--prompt", "a", "--max-new-tokens", 3, "--device", "cpu")
    packages, parts = loaded(tmp_path, "infer.py", "--ckpt", checkpoint, *flags)
    assert (packages - PYDANTIC - TORCH, parts) == (set(), set())


def test_loading_takes_torch(checkpoint: Path, tmp_path: Path) -> None:
    script = tmp_path / "notebook.py"
    script.write_text("import sys\nfrom lm import load\nload(sys.argv[1])\n")
    packages, parts = loaded(tmp_path, script, checkpoint)
    assert (packages - PYDANTIC - TORCH, parts) == (set(), set())


def test_ranking_takes_torch_and_matplotlib(checkpoint: Path, tmp_path: Path) -> None:
    flags = ("--cases", "cases/smoke.yaml", "--device", "cpu", "--out", tmp_path / "ranking")
    command = ("evaluate_checkpoints.py", "--checkpoints", checkpoint)
    packages, parts = loaded(tmp_path, *command, *flags)
    assert (packages - CONFIG - TORCH - MATPLOTLIB, parts) == (set(), set())


def test_validation_takes_lightning(checkpoint: Path, tmp_path: Path) -> None:
    flags = ("--data.sequence_length", 64, "--data.cache_dir", tmp_path, "--device", "cpu")
    command = ("eval_val.py", "--ckpt", checkpoint, "--config", "config_smoke.yaml")
    packages, _ = loaded(tmp_path, *command, *flags)
    assert "lightning" in packages and not packages & {*NOT_WITH_LIGHTNING, "tensorboard"}


@pytest.mark.usefixtures("trains")
def test_training_takes_lightning(tmp_path: Path) -> None:
    """To the end: the curves take matplotlib, and the event files tensorboard."""
    keys = {
        "data.cache_dir": tmp_path / "cache",
        "checkpoint.directory": tmp_path / "run",
        "trainer.max_steps": 1,
        "trainer.validation_rows": 1,
        "trainer.device": "cpu",
        "optimizer.warmup_steps": 0,
        "logging.sample_tokens": 1,
    }
    flags = [word for key, value in keys.items() for word in (f"--{key}", value)]
    packages, _ = loaded(tmp_path, "train.py", "--config", "config_smoke.yaml", *flags)
    assert {"lightning", "matplotlib"} <= packages and not packages & NOT_WITH_LIGHTNING
