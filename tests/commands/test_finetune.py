"""finetune.py as a person runs it: from a base to a model that answers, stopped and resumed, and
what it refuses.
"""

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from data import PackedDataModule
from lm.checkpoints.base import open_base, tokenizer_of
from lm.checkpoints.folder import Checkpoint
from lm.checkpoints.meta import Meta
from lm.commands import load_config
from lm.runs.recorded import keep_recorded
from lm.system.errors import CheckpointError, ConfigError, DataError
from tests.commands.test_resume_proof import proof
from tests.support import runs

CHATS = [
    (f"say {word} {n}", f"{word} {word}") for n in range(8) for word in ("model", "token", "text")
]


@pytest.fixture(scope="module")
def base(tmp_path_factory, trains: None):
    """Train a few steps and return the last checkpoint."""
    folder = tmp_path_factory.mktemp("base")
    path = runs.config_file(
        folder,
        model={"context_length": 160},
        trainer={"max_steps": 3, "batch_size": 4, "micro_batch_size": 4},
    )
    runs.train(path)
    return folder / "run" / "final.ckpt"


def chats(folder, rows=CHATS):
    path = folder / "chats.jsonl"
    path.write_text(
        "".join(
            json.dumps({"prompt": prompt, "completion": answer}) + "\n" for prompt, answer in rows
        )
    )
    return path


def config_file(folder, base, **sections):
    """Write a configuration for a fine-tuning run of 6 steps and return its path."""
    values = {
        "data": {
            "source": {
                "format": "chat",
                "files": str(folder / "chats.jsonl"),
                "template": "instruction-output",
            },
            "document_mask": True,
            "val_fraction": 0.2,
            "cache_dir": str(folder / "cache"),
        },
        "optimizer": {"lr": 3e-3, "warmup_steps": 1},
        "trainer": {
            "max_steps": 6,
            "batch_size": 4,
            "micro_batch_size": 2,
            "validate_every": 3,
            "device": "cpu",
            "precision": "fp32",
        },
        "checkpoint": {"directory": str(folder / "tuned"), "save_every": 2, "keep": 20},
        "logging": {"every": 1, "sample_tokens": 0, "tensorboard": False},
        "finetune": {"base": str(base), "report_prompts": 0},
    }
    for section, changes in sections.items():
        values[section] = (
            {**values.get(section, {}), **changes} if isinstance(changes, dict) else changes
        )
    if not (folder / "chats.jsonl").exists():
        chats(folder)
    path = folder / "finetune.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def tune(path, *overrides, resume=None):
    """Train as `python finetune.py` does with parsed arguments; return the configuration."""
    from finetune import assemble
    from train import train

    loaded = load_config(path, list(overrides))
    train(loaded, assemble, resume, loaded.config.finetune.base)
    return load_config(path, list(overrides)).config


def weights_of(checkpoint):
    from lm import load

    decoder, _, _ = load(checkpoint)
    return {name: parameter.detach().clone() for name, parameter in decoder.named_parameters()}


def assert_same(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_first_configuration_of_the_page_runs_on_the_base_of_make_smoke(
    tmp_path, monkeypatch, trains
):
    """docs/FINETUNING.md says that it runs as it stands; here both runs have few steps."""
    page = (runs.ROOT / "docs" / "FINETUNING.md").read_text()
    (tmp_path / "mine.yaml").write_text(re.search(r"```yaml\n(.*?)```", page, re.DOTALL)[1])
    (tmp_path / "data").symlink_to(runs.ROOT / "data")
    monkeypatch.chdir(tmp_path)
    small = ("--trainer.batch_size=2", "--trainer.validation_rows=2")
    runs.train(runs.ROOT / "config_smoke.yaml", "--trainer.max_steps=21", *small)
    config = tune("mine.yaml", "--trainer.max_steps=11", *small)
    assert config.finetune.base == "checkpoints/best.ckpt"
    base, tuned = (Checkpoint(Path(run) / "best.ckpt") for run in ("checkpoints", "runs/mine"))
    assert tuned.meta["parent"]["manifest_sha256"] == base.sha256
    assert tuned.meta["model"] == base.meta["model"]


METHODS = ["full"]


@pytest.mark.parametrize("method", METHODS)
def test_it_starts_from_the_base_learns_and_resumes_to_the_bit(tmp_path, base, method):
    path = config_file(tmp_path, base, finetune={"method": method})
    tune(path)
    whole = weights_of(tmp_path / "tuned" / "final.ckpt")
    started = weights_of(base)
    assert any(not torch.equal(whole[name], started[name]) for name in whole)
    losses = [
        json.loads(line)["loss"]
        for line in (tmp_path / "tuned" / "evaluations.jsonl").read_text().splitlines()
    ]
    assert losses[-1] < losses[0]
    tune(path, "--checkpoint.directory", str(tmp_path / "again"), "--trainer.max_steps", "6")
    assert_same(whole, weights_of(tmp_path / "again" / "final.ckpt"))
    for step in (2, 4):  # twice in a row
        tune(
            path,
            "--checkpoint.directory",
            str(tmp_path / "tuned"),
            resume=str(tmp_path / "tuned" / f"step-{step:08d}.ckpt"),
        )
        assert_same(whole, weights_of(tmp_path / "tuned" / "final.ckpt"))


def test_the_checkpoint_says_where_it_comes_from(tmp_path, base):
    config = tune(config_file(tmp_path, base))
    meta = Checkpoint(tmp_path / "tuned" / "final.ckpt").meta
    assert meta["parent"]["manifest_sha256"] == open_base(config).checkpoint.sha256
    assert meta["config"]["data"]["source"]["template"] == "instruction-output"
    assert meta["model"] == Checkpoint(base).meta["model"]


def test_its_own_resolved_configuration_is_one(tmp_path, base):
    config = tune(config_file(tmp_path, base))
    assert load_config(tmp_path / "tuned" / "config.yaml").config == config


def test_auto_without_a_checkpoint_starts_from_the_base(tmp_path, base):
    path = config_file(tmp_path, base)
    tune(path, resume="auto")
    resumed = weights_of(tmp_path / "tuned" / "final.ckpt")
    tune(path, "--checkpoint.directory", str(tmp_path / "plain"))
    assert_same(resumed, weights_of(tmp_path / "plain" / "final.ckpt"))


@pytest.mark.usefixtures("trains")
def test_another_base_is_refused_on_resume(tmp_path, base):
    path = config_file(tmp_path, base)
    tune(path, "--trainer.max_steps", "6")
    again = tmp_path / "other"
    again.mkdir()
    runs.train(runs.config_file(again, model={"context_length": 160}, trainer={"max_steps": 5}))
    with pytest.raises(CheckpointError, match="is not the checkpoint that the run started from"):
        tune(
            path,
            "--finetune.base",
            str(again / "run" / "final.ckpt"),
            resume=str(tmp_path / "tuned" / "step-00000004.ckpt"),
        )


def test_replay_mixes_in_the_text_of_the_base(tmp_path, base):
    config = load_config(config_file(tmp_path, base, finetune={"replay": 0.25})).config
    data = PackedDataModule(config, tokenizer_of(config), lambda line: None)
    parts = data.plan.rows(np.arange(400))[:, 0]
    assert (parts == 1).mean() == pytest.approx(0.25, abs=0.01)
    base_rows = PackedDataModule(open_base(config).config, tokenizer_of(config), lambda line: None)
    assert (
        data.rows["train"].parts[1].store.sha256 == base_rows.rows["train"].parts[0].store.sha256
    ), "what the base held out is not learnt"
    assert len(data.rows["val"].parts) == 1, "validation is of the conversations"
    own = len(data.rows["train"].parts[0])
    passes = 0.75 * config.trainer.batch_size / own
    assert data.epochs_per_step == pytest.approx(passes), "replayed rows are no pass over one's own"
    tune(config_file(tmp_path, base, finetune={"replay": 0.25}))


def test_a_fine_tuning_of_so_many_passes_counts_its_own_conversations(tmp_path, base, capsys):
    passes = {"max_steps": None, "max_epochs": 2}
    config = tune(config_file(tmp_path, base, finetune={"replay": 0.5}, trainer=passes))
    final = Checkpoint((Path(config.checkpoint.directory) / "final.ckpt").resolve())
    data = PackedDataModule(config, tokenizer_of(config), lambda line: None)
    own = len(data.rows["train"].parts[0])
    assert final.step == math.ceil(2 * own / (config.trainer.batch_size / 2))
    assert "data: passes over each: 2." in capsys.readouterr().out


def test_rows_of_a_replay_say_where_they_come_from(tmp_path, base):
    from tools.inspect_data import rows_of

    config = load_config(config_file(tmp_path, base, finetune={"replay": 0.5})).config
    said = []
    rows = rows_of(PackedDataModule(config, tokenizer_of(config), said.append), 0, 8)
    assert {row.name.split(", ")[-1] for row in rows} == {"chat chats.jsonl", "txt corpus.txt"}
    assert sum(line.startswith("data: replayed: train") for line in said) == 1
    assert [line.count("conversations") for line in said if "together" in line] == [1], (
        "of the validation alone"
    )


def test_replay_does_not_hide_that_no_conversation_fits(tmp_path, base):
    chats(tmp_path, [("long " * 60 + str(n), "yes") for n in range(9)])
    with pytest.raises(
        DataError, match=r"data.source: no conversation of the train split fits a row of 160 tokens"
    ):
        tune(config_file(tmp_path, base, finetune={"replay": 0.5}))


def test_conversations_of_the_base_are_replayed_apart_or_not_at_all(tmp_path, base):
    tune(config_file(tmp_path, base))
    source = {"format": "txt", "files": str(runs.corpus(tmp_path))}
    second = {"base": str(tmp_path / "tuned" / "final.ckpt"), "replay": 0.2}
    for mask in (False, True):
        config = load_config(
            config_file(
                tmp_path, base, data={"source": source, "document_mask": mask}, finetune=second
            )
        ).config
        data = PackedDataModule(config, tokenizer_of(config), lambda line: None)
        if mask:
            assert len(data.rows["train"].parts) == 2
        else:
            with pytest.raises(ConfigError, match=r"write data.document_mask: true"):
                data.rows  # noqa: B018


@pytest.mark.long
def test_the_proof_of_exact_resume_is_for_finetune_py_too(tmp_path, base):
    path = config_file(
        tmp_path,
        base,
        finetune={"method": "lora", "replay": 0.25},
        optimizer={"lr": 3e-3, "warmup_steps": 1, "ema_decay": 0.8},
    )
    done = proof(path, "--steps=5", "--stops=1", "--kill")
    assert done.returncode == 0, done.stderr
    assert "identical: the batches and numbers of 5 steps" in done.stdout


def test_the_report_is_made_once_for_each_end_of_a_run(tmp_path, base, monkeypatch, capsys):
    import finetune

    path = config_file(tmp_path, base, finetune={"report_prompts": 2, "report_tokens": 4})
    written = tmp_path / "tuned" / "answers.json"

    def made(*overrides):
        capsys.readouterr()
        monkeypatch.setattr(
            "sys.argv", ["finetune.py", "--config", str(path), "--resume", "auto", *overrides]
        )
        finetune.main()
        return capsys.readouterr().out.count("answers to read:")

    assert made() == 1
    assert made() == 0, "it is there"
    written.unlink()
    assert made() == 1, "a report that was stopped is made again"
    assert made("--trainer.max_steps", "8") == 1
    written.unlink()
    with pytest.raises(CheckpointError, match="is not the checkpoint that the run started from"):
        made(
            "--trainer.max_steps",
            "8",
            "--finetune.base",
            str(tmp_path / "tuned" / "step-00000002.ckpt"),
        )


def test_a_base_in_the_run_s_own_folder_is_refused_by_the_name_of_its_key(tmp_path, base):
    with pytest.raises(ConfigError, match=r"--finetune.base \S+ lies in checkpoint.directory"):
        tune(config_file(tmp_path, base), "--checkpoint.directory", str(base.parent))


def test_what_has_no_place_for_masks_or_pairs_refuses_them(tmp_path, base, monkeypatch):
    import eval_val
    from tools import export_tokens

    path = config_file(tmp_path, base)
    monkeypatch.setattr(
        "sys.argv", ["export_tokens", "--config", str(path), "--out", str(tmp_path / "out")]
    )
    with pytest.raises(
        ConfigError,
        match=r"data.source.format: flat files have no place for what of a conversation is learnt",
    ):
        export_tokens.main()
    source = {
        "format": "chat",
        "files": "pairs.json",
        "layout": "preferences",
        "template": "instruction-output",
    }
    path = config_file(tmp_path, base, data={"source": source}, finetune={"objective": "dpo"})
    monkeypatch.setattr("sys.argv", ["eval_val.py", "--config", str(path), "--ckpt", str(base)])
    with pytest.raises(ConfigError, match=r"finetune.objective dpo compares two answers"):
        eval_val.main()


def test_plain_text_is_learnt_as_text(tmp_path, base):
    source = {"format": "txt", "files": str(runs.corpus(tmp_path))}
    path = config_file(tmp_path, base, data={"source": source, "document_mask": False})
    tune(path)
    before, after = weights_of(base), weights_of(tmp_path / "tuned" / "final.ckpt")
    assert all(not torch.equal(before[name], after[name]) for name in before)


def test_preferences_are_learnt(tmp_path, base):
    rows = [
        {"prompt": f"say {n}", "chosen": "model text", "rejected": "token token"} for n in range(12)
    ]
    (tmp_path / "pairs.json").write_text(json.dumps(rows))
    source = {
        "format": "chat",
        "files": str(tmp_path / "pairs.json"),
        "layout": "preferences",
        "template": "instruction-output",
    }
    path = config_file(tmp_path, base, data={"source": source}, finetune={"objective": "dpo"})
    tune(path)
    recorded = (tmp_path / "tuned" / "evaluations.jsonl").read_text()
    assert "perplexity" not in recorded, "the loss of a preference has none"
    losses = [json.loads(line)["loss"] for line in recorded.splitlines()]
    assert losses[0] == pytest.approx(0.6931, abs=1e-4), "at first it is its own reference"
    assert losses[-1] < 0.6
    whole = weights_of(tmp_path / "tuned" / "final.ckpt")
    tune(path, resume=str(tmp_path / "tuned" / "step-00000002.ckpt"))
    assert_same(whole, weights_of(tmp_path / "tuned" / "final.ckpt"))


OF_BASE = {"format": "chat", "files": "chats.jsonl", "template": "base"}
PART = {"weight": 1, "source": {"format": "txt", "files": "a"}}
WRONG = [
    (
        {"model": {"n_layers": 3}},
        ConfigError,
        "model.n_layers: the model is that of finetune.base; remove it",
    ),
    (
        {"tokenizer": {"name": "gpt2"}},
        ConfigError,
        "tokenizer.name: the tokenizer is that of finetune.base; remove it",
    ),
    (
        {"data": {"sequence_length": 4096}},
        ConfigError,
        "data.sequence_length: 4096 is longer than model.context_length 160",
    ),
    (
        {"data": {"document_mask": False}},
        ConfigError,
        "document_mask false would let conversations in one row see each other",
    ),
    ({"data": {"split": "tail"}}, ConfigError, "split tail would cut a conversation in two"),
    (
        {"finetune": {"objective": "dpo"}},
        ConfigError,
        "data.source.layout: auto (the default) does not go with finetune.objective dpo",
    ),
    (
        {"finetune": {"base": "nowhere/best.ckpt"}},
        CheckpointError,
        "nowhere/best.ckpt: no such checkpoint",
    ),
    (
        {"finetune": {"method": "full", "lora": {"rank": 2}}},
        ConfigError,
        "lora is for method lora and qlora",
    ),
    ({"finetune": {"dpo_beta": 0.5}}, ConfigError, "dpo_beta is for objective dpo"),
    ({"finetune": {"choices": ["ham"]}}, ConfigError, "choices has one answer"),
    (
        {
            "data": {
                "source": {"format": "txt", "files": "a"},
                "val_fraction": 0.05,
                "validation": OF_BASE,
            }
        },
        ConfigError,
        "was not trained on conversations; name one",
    ),
    (
        {
            "data": {"source": {"format": "mixture", "parts": [{"weight": 1, "source": OF_BASE}]}},
            "finetune": {"objective": "dpo"},
        },
        ConfigError,
        "data.source.parts[0].source.layout: auto does not go with finetune.objective dpo",
    ),
    (
        {
            "data": {"source": {"format": "mixture", "parts": [PART], "when_one_ends": "stop"}},
            "finetune": {"replay": 0.1},
        },
        ConfigError,
        (
            "finetune.replay: is a share of all rows, and data.source.when_one_ends: stop ends it;"
            " write repeat"
        ),
    ),
]


def edited(base, folder, edit):
    """Copy a base and change its meta.json by `edit`: enough for reading a configuration."""
    copy = shutil.copytree(base.resolve(), folder / base.resolve().name)
    meta = json.loads((copy / "meta.json").read_text())
    edit(meta)
    (copy / "meta.json").write_text(json.dumps(meta))
    return copy


def test_a_written_vocabulary_must_be_the_base_s(tmp_path, base):
    learnt = {"name": "bpe", "vocab_size": 5000}

    def edit(meta):
        meta["tokenizer"] |= {"name": "bpe", "vocab_size": 4000}
        meta["config"]["tokenizer"] = learnt | {"special_tokens": ["<|a|>"]}

    of_text = edited(base, tmp_path, edit)
    for section in (learnt, learnt | {"special_tokens": ["<|a|>"]}, learnt | {"vocab_size": 4000}):
        loaded = load_config(config_file(tmp_path, of_text, tokenizer=section))
        assert loaded.config.tokenizer.vocab_size == 4000
    for change, message in (
        ({"vocab_size": 9000}, "tokenizer.vocab_size: 9000, but the vocabulary of .* with 5000;"),
        ({"special_tokens": ["<|b|>"]}, r"tokenizer.special_tokens: <\|b\|>, .* with <\|a\|>; rem"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_config(config_file(tmp_path, of_text, tokenizer=learnt | change))


def test_an_older_base_does_not_choose_the_kernels(tmp_path, base):
    """A run that began with them keeps them; a new one has today's."""

    def without_key(meta):
        del meta["model"]["kernels"], meta["config"]["model"]["kernels"]

    path = config_file(tmp_path, edited(base, tmp_path, without_key))
    assert load_config(path).config.model.kernels == "auto"
    assert load_config(path, ["--model.kernels=fused"]).config.model.kernels == "fused"
    begun = load_config(path).config.model_dump(mode="json")
    del begun["model"]["kernels"]
    for recorded, expected in (({"kernels": "auto"}, "auto"), ({}, "fused")):
        config = begun | {"model": begun["model"] | recorded}
        meta = Meta(tmp_path / "step-00000002.ckpt", {"config": config})
        kept, _ = keep_recorded(load_config(path), meta)
        assert kept.config.model.kernels == expected


@pytest.mark.parametrize(("sections", "error", "message"), WRONG)
def test_what_cannot_be_is_refused_in_one_line(tmp_path, base, sections, error, message):
    with pytest.raises(error) as caught:
        load_config(config_file(tmp_path, base, **sections))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_template_that_the_tokenizer_cannot_say_is_refused(tmp_path, base):
    source = {"format": "chat", "files": str(chats(tmp_path)), "template": "chatml"}
    with pytest.raises(
        ConfigError, match=r"data.source: template chatml needs <\|im_end\|> and <\|im_start\|>"
    ):
        tune(config_file(tmp_path, base, data={"source": source}))


def test_conversations_longer_than_the_context_are_refused_where_none_is_left(tmp_path, base):
    chats(tmp_path, [("long " * 60 + str(n), "yes") for n in range(9)])
    with pytest.raises(
        DataError, match=r"no conversation of the .* split fits a row of 160 tokens"
    ):
        tune(config_file(tmp_path, base))


def test_train_py_names_the_right_command(tmp_path, base, monkeypatch):
    import train

    monkeypatch.setattr("sys.argv", ["train.py", "--config", str(config_file(tmp_path, base))])
    with pytest.raises(ConfigError, match=r"this configuration is for finetune.py"):
        train.main()


def test_finetune_py_needs_the_section(tmp_path, monkeypatch):
    import finetune

    monkeypatch.setattr("sys.argv", ["finetune.py", "--config", str(runs.config_file(tmp_path))])
    with pytest.raises(ConfigError, match="finetune: missing"):
        finetune.main()


@pytest.mark.usefixtures("starts_processes")
def test_two_processes_learn_what_one_does(tmp_path, base):
    """The answers differ much in length. Each process has another number of labels, and every label
    weighs the same.
    """
    chats(tmp_path, [(f"say {n}", "word " * (1 + n % 9)) for n in range(30)])
    path = config_file(tmp_path, base, trainer={"max_steps": 3, "validate_every": 3})
    tune(path)
    two = ["--trainer.devices", "2", "--checkpoint.directory", str(tmp_path / "two")]
    two += ["--finetune.report_prompts", "2", "--finetune.report_tokens", "4"]
    said = runs.launched(2, "finetune", "--config", str(path), *two).stdout
    assert said.count("answers to read:") == 1, (
        "the first process reports, and the other is not waited for"
    )
    one, both = (
        weights_of(tmp_path / "tuned" / "final.ckpt"),
        weights_of(tmp_path / "two" / "final.ckpt"),
    )
    for name, weight in one.items():
        torch.testing.assert_close(both[name], weight, atol=2e-5, rtol=1e-4)


@pytest.mark.usefixtures("starts_processes")
def test_config_finetune_yaml_as_it_is_shipped(tmp_path, base):
    """The data come from the hub, as the file says. Budget, base and template are replaced."""
    import os
    import subprocess
    import sys

    import pyarrow as pa
    import pyarrow.parquet as pq

    from tests.support.hub import Hub

    rows = [
        {
            "instruction": f"Say {n}.",
            "input": "twice" if n % 2 else "",
            "output": f"{n} {n}",
            "text": "unused",
        }
        for n in range(300)
    ]
    data = tmp_path / "root" / "datasets" / "tatsu-lab" / "alpaca" / "data"
    data.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), data / "train-00000-of-00001.parquet")
    small = [
        "--finetune.base",
        str(base),
        "--trainer.max_steps",
        "4",
        "--optimizer.warmup_steps",
        "1",
        "--trainer.device",
        "cpu",
    ]
    small += [
        "--data.source.template",
        "instruction-output",
        "--data.cache_dir",
        str(tmp_path / "cache"),
    ]
    small += [
        "--checkpoint.directory",
        str(tmp_path / "run"),
        "--finetune.report_prompts",
        "4",
        "--finetune.report_tokens",
        "8",
    ]
    with Hub(tmp_path / "root") as hub:
        environment = os.environ | hub.environment(tmp_path / "home") | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, "finetune.py", "--config", "config_finetune.yaml", *small]
        done = subprocess.run(
            command, cwd=runs.ROOT, env=environment, capture_output=True, text=True
        )
    assert done.returncode == 0, done.stderr
    assert "conversations" in done.stdout
    assert (tmp_path / "run" / "final.ckpt").resolve().name == "step-00000004.ckpt"


BAD_ROWS = [
    ({"instruction": "a"}, "unknown layout"),
    ({"instruction": "a", "output": ""}, "empty answer"),
    ({"prompt": " ", "completion": "b"}, "empty prompt"),
    ({"prompt": 7, "completion": "b"}, "text is not a string"),
    ({"messages": []}, "wrong order of roles"),
    ({"messages": [{"role": "tool", "content": "a"}]}, "tools"),
    ({"messages": [{"role": "narrator", "content": "a"}]}, "wrong role"),
    ({"messages": [{"role": "assistant", "content": "a"}]}, "wrong order of roles"),
    ({"messages": "hello"}, "messages is not a list"),
    ({"prompt": "a", "chosen": "b", "rejected": "c"}, "unknown layout"),
    ([1, 2], "wrong role"),
    (7, "not a JSON object"),
]


@pytest.mark.parametrize(("row", "kind"), BAD_ROWS)
def test_a_bad_row_stops_the_run_with_its_place_or_is_counted(tmp_path, base, row, kind):
    good = [json.dumps({"prompt": prompt, "completion": answer}) for prompt, answer in CHATS]
    (tmp_path / "chats.jsonl").write_text("\n".join([*good[:5], json.dumps(row), *good[5:]]) + "\n")
    said = []

    def data(*overrides):
        config = load_config(config_file(tmp_path, base), list(overrides)).config
        return PackedDataModule(config, tokenizer_of(config), said.append)

    with pytest.raises(DataError) as caught:
        len(data().rows["train"])
    assert f"chats.jsonl:6: {kind}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(data("--data.on_bad_row", "skip").rows["train"])
    assert any(f"left out: 1 x {kind}" in line for line in said)
