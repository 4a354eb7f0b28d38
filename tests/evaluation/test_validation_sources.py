"""The validation loss of each source of a mixture, from its rows to the record of a run and back:
python -m pytest tests/evaluation/test_validation_sources.py.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import eval_val
from data import PackedDataModule
from lm import load
from lm.commands import load_config
from lm.documents.reader import hash_of_text
from lm.evaluation.validation import Evaluation, evaluate
from lm.runs.results import RecordedValidation, read_validations
from lm.tokenizer.tokenizer import ByteTokenizer
from tests.support.runs import TEXT, config_file, train

NAMES = [
    "jsonl a.jsonl",
    "jsonl b.jsonl (data.source.parts[1].source)",
    "jsonl b.jsonl (data.source.parts[2].source)",
]


def parts(folder: Path) -> list[dict[str, Any]]:
    """Write three sources of different texts and sizes; return them as parts of a mixture. One has
    characters of two bytes, and two files have one name.
    """
    texts = {"a.jsonl": TEXT, "b.jsonl": "0123456789 " * 9, "c/b.jsonl": "äöü " * 14}
    found = []
    for number, (name, text) in enumerate(texts.items()):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        content = "".join(
            json.dumps({"text": f"{i} {text[i % 50 :]}"}) + "\n" for i in range(20 * (number + 1))
        )
        if not path.exists():  # else the cache would be made anew
            path.write_text(content, encoding="utf-8")
        found.append({"weight": 1, "source": {"format": "jsonl", "files": str(path)}})
    return found


def mixed(folder: Path, **trainer: object) -> Path:
    settings = {
        "max_steps": 6,
        "batch_size": 8,
        "micro_batch_size": 4,
        "validate_every": 3,
        "device": "cpu",
        "precision": "fp32",
    }
    data = {
        "source": {"format": "mixture", "parts": parts(folder)},
        "val_fraction": 0.3,
        "cache_dir": str(folder / "cache"),
    }
    return config_file(folder, data=data, trainer=settings | trainer)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, trains: None) -> Path:
    folder = tmp_path_factory.mktemp("mixture")
    train(mixed(folder))
    return folder / "run"


def assert_parts_make_up(whole: dict[str, Any]) -> None:
    assert sum(part["tokens"] for part in whole["sources"].values()) == whole["tokens"]
    total = sum(part["loss"] * part["tokens"] for part in whole["sources"].values())
    assert total / whole["tokens"] == pytest.approx(whole["loss"], rel=1e-6)


def test_each_validation_of_a_run_says_what_each_source_scores(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 3, 6]
    for line, read in zip(lines, read_validations(run)[0], strict=True):
        assert list(line["sources"]) == NAMES
        assert_parts_make_up(line)
        assert read.sources == line["sources"]
    assert len({part["loss"] for part in lines[-1]["sources"].values()}) == 3


def test_a_source_scores_what_it_scores_alone(run: Path) -> None:
    """The slow, obvious version is a configuration that has only this source."""
    recorded = read_validations(run)[0][-1].sources
    decoder, tokenizer, _ = load(run / "final.ckpt")
    for name, part in zip(NAMES, parts(run.parent), strict=True):
        config = load_config(
            mixed(run.parent), ["--data.source", json.dumps(part["source"])]
        ).config
        data = PackedDataModule(config, tokenizer, lambda line: None)
        assert data.validation_sources == {}
        batches = list(data.val_dataloader())
        assert "source" not in batches[0]
        alone = evaluate(decoder, batches, data.text_bytes)
        assert recorded[name]["tokens"] == alone.tokens
        assert (recorded[name]["loss"], recorded[name]["bits_per_byte"]) == pytest.approx(
            (alone.loss, alone.bits_per_byte), rel=1e-4
        )


def test_rows_know_their_source(tmp_path: Path) -> None:
    config = load_config(mixed(tmp_path, validation_rows=7, micro_batch_size=2), []).config
    data = PackedDataModule(config, ByteTokenizer(), lambda line: None)
    assert list(data.validation_sources) == NAMES
    rows = data.rows["val"]
    numbers = np.arange(7) * len(rows) // 7
    expected = np.searchsorted(np.cumsum([len(part) for part in rows.parts]), numbers, side="right")
    found = torch.cat([batch["source"] for batch in data.val_dataloader()])
    assert found[:7].tolist() == expected.tolist()
    assert set(found.tolist()) == {0, 1, 2}
    assert "source" not in next(iter(data.train_dataloader()))


def test_a_source_without_validation_text_has_no_number(tmp_path: Path) -> None:
    sources = parts(tmp_path)
    trained = [text for text in map(str, range(100, 200)) if hash_of_text(text) >= 0.3 * 2**64]
    (tmp_path / "none.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in trained)
    )
    sources.insert(
        1, {"weight": 1, "source": {"format": "jsonl", "files": str(tmp_path / "none.jsonl")}}
    )
    config = load_config(
        mixed(tmp_path), ["--data.source", json.dumps({"format": "mixture", "parts": sources})]
    ).config
    data = PackedDataModule(config, ByteTokenizer(), lambda line: None)
    assert [name.split()[1] for name in data.validation_sources] == [
        "a.jsonl",
        "b.jsonl",
        "b.jsonl",
    ]
    assert len(data.rows["val"].parts) == 3


@pytest.mark.usefixtures("trains")
def test_resumed_it_says_the_same(run: Path, tmp_path: Path) -> None:
    again = tmp_path / "run"
    shutil.copytree(run, again, symlinks=True)
    train(
        mixed(run.parent),
        "--checkpoint.directory",
        str(again),
        resume=str(again / "step-00000003.ckpt"),
    )
    figures = [
        [
            vars(line) | {"seconds": 0, "manifest_sha256": None}
            for line in read_validations(folder)[0]
        ]
        for folder in (run, again)
    ]
    assert figures[0] == figures[1]
    assert (again / "after-step-00000003-1").exists()


def test_eval_val_says_it_too(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["eval_val.py", "--ckpt", str(run / "final.ckpt"), "--config", str(mixed(run.parent))]
    monkeypatch.setattr(sys, "argv", [*command, "--json"])
    eval_val.main()
    report = json.loads(capsys.readouterr().out)
    recorded = read_validations(run)[0][-1].sources
    assert_parts_make_up(report)
    for name in NAMES:
        assert report["sources"][name] == pytest.approx(recorded[name], rel=1e-5)
    monkeypatch.setattr(sys, "argv", command)
    eval_val.main()
    *said, following, _ = capsys.readouterr().out.splitlines()
    assert following.startswith("next: python infer.py --ckpt ")
    table = said[-4:]
    assert table[0].split() == ["source", "tokens", "loss", "perplexity", "bits", "per", "byte"]
    for line, name in zip(table[1:], NAMES, strict=True):
        assert line.startswith(name)
        assert f"{recorded[name]['loss']:.4f}" in line


@pytest.mark.usefixtures("trains")
def test_one_source_says_nothing_of_sources(tmp_path: Path) -> None:
    settings = {
        "max_steps": 3,
        "batch_size": 4,
        "micro_batch_size": 4,
        "device": "cpu",
        "precision": "fp32",
    }
    train(config_file(tmp_path, trainer=settings))
    assert "sources" not in (tmp_path / "run" / "evaluations.jsonl").read_text()
    assert [line.sources for line in read_validations(tmp_path / "run")[0]] == [{}, {}]


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    result = Evaluation(1.0, 1.0, 4, {"a": Evaluation(float("inf"), float("nan"), 4)})
    assert result.figures_by_source == {"a": {"loss": None, "bits_per_byte": None, "tokens": 4}}
    line = vars(RecordedValidation(1, None, 1.0, 2.7, 1.0, 4, 0.1, None, result.figures_by_source))
    (tmp_path / "evaluations.jsonl").write_text(
        json.dumps(line) + "\n" + json.dumps(line | {"sources": 3}) + "\n"
    )
    assert [read.sources for read in read_validations(tmp_path)[0]] == [result.figures_by_source]
