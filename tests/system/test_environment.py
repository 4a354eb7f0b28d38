"""Test that variables of other programs change no command."""

from __future__ import annotations

import os
import pwd
import warnings

import pytest

from lm.system import environment


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return an environment that replaces this process's."""
    monkeypatch.setattr(environment, "ignored", [])
    variables: dict[str, str] = {}
    monkeypatch.setattr(os, "environ", variables)
    return variables


REMOVED = {
    "PL_TRAINER_MAX_STEPS": "1",
    "PL_GLOBAL_SEED": "x",
    "LT_DEVICES": "4",
    "TQDM_MININTERVAL": "often",
    "MPLBACKEND": "none",
    "NVIDIA_TF32_OVERRIDE": "1",
    "ONEDNN_DEFAULT_FPMATH_MODE": "BF16",
    "OMP_NUM_THREADS": "0",
    "MKL_NUM_THREADS": "many",
}
KEPT = {
    "CUDA_VISIBLE_DEVICES": "1",
    "HF_HUB_OFFLINE": "1",
    "OPENBLAS_NUM_THREADS": "4,2",
    "TQDM_DISABLE": "1",
    "TMPDIR": "/gone",
}


def test_what_would_change_a_run_is_removed(settled: dict[str, str]) -> None:
    settled.update(REMOVED | KEPT)
    environment.settle()
    assert settled.items() >= KEPT.items() and not settled.keys() & REMOVED.keys()
    assert environment.ignored == sorted(REMOVED)


def test_a_warning_ends_no_command(settled: dict[str, str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        settled["PYTHONWARNINGS"] = "error"
        environment.settle()
        assert "error" not in {action for action, *_ in warnings.filters}
        warnings.warn("a library's", DeprecationWarning, stacklevel=1)


def test_a_user_without_a_name_has_one(
    settled: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(_: int) -> None:
        raise KeyError

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    environment.settle()
    assert settled["LOGNAME"] == str(os.getuid())
    assert os.path.isdir(settled["HOME"])  # noqa: PTH112


def test_lightning_reads_its_variables_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If this fails, Lightning has changed, and the prefix is no longer needed."""
    import lightning

    monkeypatch.setenv("PL_TRAINER_MAX_STEPS", "7")
    assert lightning.Trainer(logger=False, enable_checkpointing=False).max_steps == 7
    environment.settle()
    assert lightning.Trainer(logger=False, enable_checkpointing=False).max_steps != 7
