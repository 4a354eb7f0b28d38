"""A resumed run keeps the values that its checkpoint records, where nobody wrote others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lm.checkpoints.folder import Checkpoint
from lm.checkpoints.meta import Meta
from lm.commands import load_config
from lm.config.reader import Loaded
from lm.runs.recorded import keep_recorded
from lm.system.errors import ConfigError
from tests.support.runs import config_file, train

SILENT = """\
data: {source: {format: mixture, parts: [{weight: 1, source: {format: txt, files: a.txt}}]}}
trainer: {max_steps: 200}
"""


def kept(
    tmp_path: Path, recorded: list[str], now: list[str] | None = None
) -> tuple[Loaded, list[str]]:
    """Resume a run that was begun with the flags `recorded`, with the flags `now`."""
    path = tmp_path / "c.yaml"
    path.write_text(SILENT)
    stored = load_config(path, recorded).config.model_dump(mode="json")
    meta = Meta(tmp_path / "step-00000100.ckpt", {"config": stored})
    return keep_recorded(load_config(path, now or []), meta)


def test_what_nobody_wrote_is_the_checkpoint_s(tmp_path: Path) -> None:
    loaded, lines = kept(tmp_path, ["--optimizer.lr=0.5", "--model.n_layers=3"])
    assert (loaded.config.optimizer.lr, loaded.config.model.n_layers) == (0.5, 3)
    assert loaded.origins["optimizer.lr"] == "step-00000100.ckpt"
    assert loaded.origins["trainer.max_steps"].endswith("c.yaml:2")
    assert lines == [
        "kept from step-00000100.ckpt: model.n_layers 3 (a new run would have 4)",
        "kept from step-00000100.ckpt: optimizer.lr 0.5 (a new run would have 0.001)",
    ]


def test_what_somebody_wrote_is_theirs(tmp_path: Path) -> None:
    loaded, lines = kept(
        tmp_path,
        ["--optimizer.lr=0.5", "--trainer.max_steps=300"],
        ["--optimizer.lr=0.001"],  # the default, but written
    )
    assert (loaded.config.optimizer.lr, loaded.config.trainer.max_steps) == (0.001, 200)
    assert lines == []


@pytest.mark.parametrize(
    "flag",
    [
        "--trainer.max_minutes=3",  # no influence on what is computed
        "--checkpoint.directory=elsewhere",
        "--logging.every=3",
        "--trainer.devices=2",  # about the machine
        "--trainer.threads=3",
    ],
)
def test_what_belongs_to_the_session_is_today_s(tmp_path: Path, flag: str) -> None:
    loaded, lines = kept(tmp_path, [flag])
    assert loaded.config == load_config(tmp_path / "c.yaml").config
    assert lines == []


def test_keys_inside_a_list_are_kept_too(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(SILENT)
    stored = load_config(path).config.model_dump(mode="json")
    stored["data"]["source"]["parts"][0]["source"]["unit"] = "line"
    loaded, lines = keep_recorded(load_config(path), Meta(tmp_path / "x", {"config": stored}))
    source: Any = loaded.config.data.source
    assert source.parts[0].source.unit == "line"
    assert lines == [
        'kept from x: data.source.parts[0].source.unit "line" (a new run would have "paragraph")'
    ]


def test_what_cannot_be_together_stays_as_it_is_written(tmp_path: Path) -> None:
    """The resume then names what differs."""
    loaded, lines = kept(
        tmp_path, ["--model.d_model=96", "--model.n_heads=3"], ["--model.d_model=128"]
    )
    assert (loaded.config.model.n_heads, lines) == (4, [])


@pytest.mark.usefixtures("trains")
def test_a_run_begun_with_flags_goes_on_without_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_file(tmp_path)
    begun = ("--optimizer.grad_clip=0.5", "--model.rope_theta=5000")
    train(config, *begun, "--trainer.max_minutes=1e-9")
    train(config, resume="auto")
    said = capsys.readouterr().out
    assert "kept from step-00000001.ckpt: optimizer.grad_clip 0.5" in said
    final = Checkpoint(tmp_path / "run" / "final.ckpt").meta
    assert final["config"]["optimizer"]["grad_clip"] == 0.5
    assert final["model"]["rope_theta"] == 5000
    with pytest.raises(ConfigError, match=r"model\.rope_theta: the run to resume has 5000"):
        train(config, "--model.rope_theta=10000", resume="auto")
