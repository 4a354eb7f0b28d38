"""Ablations: pairs that differ in one thing, the interval of the difference, and resuming: python
-m pytest tests/commands/test_ablate.py.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

import pytest
import torch

from lm.commands import load_config
from lm.config.schema.config import Config
from lm.config.schema.finetune import FinetuneConfig
from lm.optim.randomness import fold, seed_all
from lm.reports.ablation import Ablation, Difference, Outcome, difference, in_words
from lm.reports.pairing import kept
from lm.system.errors import CheckpointError, ConfigError, UserError
from lm.system.locks import claim
from tests.support import forked
from tests.support.runs import ROOT, config_file, write_trained
from tools.ablate import main, short_name, without
from tools.selfcheck import parts_of


class QuickChild:
    """A run that starts at once, forked from a process that has imported everything."""

    def __init__(self, words: list[str], stdout: IO[str]):
        assert words[:2] == [sys.executable, str(ROOT / "train.py")]
        self.run = forked.train(Path(stdout.name).with_suffix(""), *words[2:])
        self.returncode: int | None = None

    def communicate(self) -> tuple[None, str]:
        self.returncode = self.run.wait(600)
        return None, self.run.err


def ablate(config: Path, *arguments: str) -> tuple[str, str]:
    """Run the command here and its runs in other processes; return stdout and stderr."""
    out, said = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(said),
    ):
        patch.setattr(sys, "argv", ["ablate", "--config", str(config), *arguments])
        patch.setattr(
            "tools.ablate.child",
            lambda words, stdout: contextlib.nullcontext(QuickChild(words, stdout)),
        )
        main()
    return out.getvalue(), said.getvalue()


@pytest.mark.parametrize(
    ("pairs", "t"),
    [(2, 12.7062), (3, 4.3027), (4, 3.1824), (5, 2.7764), (10, 2.2622), (31, 2.0423)],
)
def test_the_interval_is_that_of_students_table(pairs: int, t: float) -> None:
    """The sample variance of the differences 0, 1, 2, ... is n (n + 1) / 12."""
    found = difference([0.0] * pairs, [float(i) for i in range(pairs)])
    assert found is not None and found.high is not None
    assert found.high - found.mean == pytest.approx(t * math.sqrt((pairs + 1) / 12), rel=1e-4)


@pytest.mark.usefixtures("takes_seconds")
def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Each simulation has 3 pairs with normal differences around 0.5. A pair's large common part
    must not matter.
    """
    chance, held = random.Random(0), 0
    for _ in range(4000):
        common = [chance.gauss(0, 100) for _ in range(3)]
        found = difference(common, [value + chance.gauss(0.5, 1) for value in common])
        assert found is not None and found.low is not None and found.high is not None
        held += found.low < 0.5 < found.high
    assert held / 4000 == pytest.approx(0.95, abs=0.012)  # three and a half standard errors


def test_pairs_that_are_not_whole_are_left_out() -> None:
    found = difference([1.0, None, 3.0], [2.0, 5.0, 5.0])
    assert found is not None and found.values == (1.0, 2.0)
    assert found[1:] == pytest.approx((1.5, 1.5 - 12.7062 / 2, 1.5 + 12.7062 / 2), abs=1e-4)
    assert difference([1.0, None], [None, 1.0]) is None
    assert difference([1.0], [0.5]) == Difference((-0.5,), -0.5, None, None)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (
            Difference((-0.02, -0.04), -0.031, -0.05, -0.012),
            "variant is better by 0.0310 nats [0.0120, 0.0500] over 2 seeds",
        ),
        (
            Difference((0.02, 0.04), 0.031, 0.012, 0.05),
            "variant is worse by 0.0310 nats [0.0120, 0.0500] over 2 seeds",
        ),
        (
            Difference((-0.1, 0.04), -0.03, -0.08, 0.02),
            (
                "cannot be told apart: variant is better by 0.0300 nats on average, and the"
                " interval holds 0: [-0.0200, 0.0800] over 2 seeds"
            ),
        ),
        (
            Difference((0.0, 0.0), 0.0, 0.0, 0.0),
            "no difference at all: the same nats to the last digit over 2 seeds",
        ),
        (
            Difference((0.2,), 0.2, None, None),
            (
                "variant is worse by 0.2000 nats with this seed; one seed gives no interval,"
                " so another may show the opposite"
            ),
        ),
        (None, "cannot be compared: no seed completed both runs"),
    ],
)
def test_in_words(found: Difference | None, words: str) -> None:
    assert in_words(found, "nats") == words


def start(folder: Path, *flags: str) -> tuple[Any, dict[str, torch.Tensor], list[torch.Tensor]]:
    """Return a run's configuration, its first weights, and the rows of its first steps."""
    loaded = load_config(config_file(folder), list(flags))
    parts = parts_of(loaded)
    seed_all(fold(loaded.config.trainer.seed))
    weights = dict(parts.make_decoder().named_parameters())
    rows = [
        item["input_ids"] for item, _ in zip(parts.data.train_dataloader(), range(3), strict=False)
    ]
    return loaded.config, weights, rows


@pytest.mark.usefixtures("takes_seconds")
@pytest.mark.parametrize(
    ("change", "rows", "batches", "weights"),
    [
        ("optimizer.lr=1e-2", True, True, True),
        ("model.dropout=0.5", True, True, True),
        ("data.document_mask=true", True, True, True),
        ("model.d_model=64", True, True, False),
        ("model.n_layers=3", True, True, False),
        ("model.init_std=0.02", True, True, False),
        ("trainer.batch_size=4", True, False, True),
        ("data.sequence_length=8", False, False, True),
        ("data.val_fraction=0.5", False, False, True),
    ],
)
def test_what_a_pair_has_in_common_is_true(
    change: str, rows: bool, batches: bool, weights: bool, tmp_path: Path
) -> None:
    one, first, seen = start(tmp_path)
    other, second, also_seen = start(tmp_path, f"--{change}")
    found = kept(one, other)
    assert (found.rows, found.batches, found.weights) == (rows, batches, weights)
    assert all(map(torch.equal, seen, also_seen)) == batches
    in_order = [torch.cat([step.flatten(0, 1) for step in steps]) for steps in (seen, also_seen)]
    n = min(map(len, in_order))
    if rows:
        assert torch.equal(in_order[0][:n], in_order[1][:n])
    same = first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )
    assert same == weights
    assert found.validation == ("val_fraction" not in change)


def of(loss: float, bits: float = 1.0, seconds: float = 10.0) -> Outcome:
    return Outcome(None, loss, loss - 0.5, bits, bits - 0.1, 1000, seconds)


def ablation(
    folder: Path, baseline: list[Outcome], variant: list[Outcome], *flags: str
) -> Ablation:
    one, other = (
        load_config(config_file(folder)).config,
        load_config(config_file(folder), list(flags)).config,
    )
    seeds = list(range(len(baseline)))
    return Ablation(
        "c.yaml",
        ["a.b=1"],
        seeds,
        baseline,
        variant,
        "nats per token",
        kept(one, other),
        ("a: 1\nb: 2\n", "a: 1\nb: 3\n"),
    )


def test_one_seed_has_a_report_too(tmp_path: Path) -> None:
    assert (
        ablation(tmp_path, [of(3.0)], [of(2.9)]).lines()[1]
        == "final loss: -0.1000 (one seed: no interval)"
    )


def test_the_report(tmp_path: Path) -> None:
    found = ablation(tmp_path, [of(3.0), of(3.2)], [of(2.9, seconds=15), of(3.0, seconds=15)])
    assert found.time_ratio == 1.5
    assert [round(each.mean, 6) for each in found.differences.values()] == [-0.15, -0.15, 0, 0]
    assert found.verdict.startswith(
        "cannot be told apart: variant is better by 0.1500 nats per token on average"
    )
    found.write(tmp_path)
    text = (tmp_path / "ablation.md").read_text()
    assert (
        "| 0 | 3.0000 | 2.9000 | -0.1000 | 2.5000 | 2.4000 | -0.1000 | 1,000 | 10.0 | 15.0 |"
        in text
    )
    assert "```diff\n-b: 2\n+b: 3\n```" in text
    assert json.loads((tmp_path / "ablation.json").read_text()) == json.loads(
        json.dumps(found.as_json())
    )


def test_a_run_that_diverged_leaves_its_pair_out(tmp_path: Path) -> None:
    found = ablation(tmp_path, [of(3.0), of(3.2)], [Outcome("diverged"), of(3.0)])
    assert found.table()[1] == [
        "0",
        "3.0000",
        "diverged",
        "–",
        "2.5000",
        "–",
        "–",
        "1,000",
        "10.0",
        "–",
    ]
    assert found.verdict.endswith(
        "so another may show the opposite; skipped 1 of 2 seeds, in which a run did not complete"
    )
    all_of_them = ablation(tmp_path, [of(3.0)], [Outcome("diverged")])
    assert all_of_them.verdict.startswith("cannot be compared")
    assert (all_of_them.differences, all_of_them.time_ratio) == ({}, None)


def test_other_tokens_compare_by_bytes(tmp_path: Path) -> None:
    found = ablation(tmp_path, [of(3.0, 2.0)], [of(2.0, 2.5)], "--tokenizer.name=gpt2")
    assert list(found.differences) == ["final bits per byte", "lowest bits per byte"]
    assert found.verdict.startswith("variant is worse by 0.5000 bits per byte")
    assert found.table()[1][1:4] == ["2.0000", "2.5000", "+0.5000"]


def test_other_validation_text_is_said(tmp_path: Path) -> None:
    assert (
        "validated on different texts"
        in ablation(tmp_path, [of(3.0)], [of(2.0)], "--data.val_fraction=0.5").verdict
    )


def test_flags() -> None:
    flags = ["--a.b", "1", "--c=2", "--a.bc=3"]
    assert without(flags, {"a.b"}) == ["--c=2", "--a.bc=3"]
    assert without(flags, {"c"}) == ["--a.b", "1", "--a.bc=3"]
    assert short_name(["--optimizer.lr=1e-3"]) == "lr-1e-3"
    assert (
        short_name(["--model.n_layers=2", "--data.source.files=/x/y z"]) == "n_layers-2-files-x-y-z"
    )


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--change", "optimizer.lrr=1"], "optimizer.lrr: unknown key"),
        (["--change", "optimizer.lr=fast"], "optimizer.lr: not a number"),
        (["--change", "optimizer.lr"], "optimizer.lr: no value"),
        (["--change", "trainer.seed=3"], "--change trainer.seed: this command sets it"),
        (["--change", "optimizer.lr=1", "--seeds", "0"], "--seeds: 0 is not a number of pairs"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_runs(
    arguments: list[str], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        ablate(config_file(tmp_path), *arguments, "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def too_slow(
    tmp_path_factory: pytest.TempPathFactory, starts_processes: None
) -> tuple[Path, dict[str, Any]]:
    """Ablate a good learning rate against one near zero; return the folder and the printed JSON."""
    folder = tmp_path_factory.mktemp("slow")
    arguments = [
        "--change",
        "optimizer.lr=1e-7",
        "--seeds",
        "2",
        "--json",
        "--out",
        str(folder / "out"),
    ]
    out, said = ablate(config_file(folder), *arguments)
    assert said.startswith("baseline, seed 1337: validation loss ")
    return folder, json.loads(out)


def test_a_known_difference_is_found(too_slow: tuple[Path, dict[str, Any]]) -> None:
    found = too_slow[1]
    assert found["seeds"] == [1337, 1338]
    final = found["differences"]["final loss"]
    assert final["mean"] > 0.5 and final["mean"] == pytest.approx(statistics.fmean(final["values"]))
    runs = [
        too_slow[0] / "out" / f"{name}-seed-1337" / "evaluations.jsonl"
        for name in ("baseline", "variant")
    ]
    first = [json.loads(file.read_text().splitlines()[0]) for file in runs]
    assert first[0]["loss"] == first[1]["loss"], "the same first weights"
    assert [run["tokens"] for run in found["baseline"]] == [12 * 8 * 16] * 2
    assert {file.name for file in (too_slow[0] / "out").iterdir()} >= {
        "ablation.md",
        "ablation.json",
        "baseline.yaml",
        "variant.yaml",
    }
    assert not (too_slow[0] / "run").exists()


@pytest.mark.usefixtures("starts_processes")
def test_another_ablation_is_not_mixed_in(too_slow: tuple[Path, dict[str, Any]]) -> None:
    folder = too_slow[0]
    before = (folder / "out" / "variant.yaml").read_text()
    with pytest.raises(ConfigError, match=r"holds another ablation \(variant.yaml differs\)"):
        ablate(
            folder / "config.yaml", "--change", "optimizer.lr=1e-6", "--out", str(folder / "out")
        )
    assert (folder / "out" / "variant.yaml").read_text() == before


@pytest.mark.usefixtures("starts_processes")
def test_interrupted_it_goes_on_and_comes_to_the_same(
    too_slow: tuple[Path, dict[str, Any]],
) -> None:
    folder, straight = too_slow
    arguments = [
        "--change",
        "optimizer.lr=1e-7",
        "--seeds",
        "1",
        "--json",
        "--out",
        str(folder / "again"),
    ]
    config = folder / "config.yaml"
    command = [sys.executable, "-m", "tools.ablate", "--config", str(config), *arguments]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    first = folder / "again" / "baseline-seed-1337"
    while process.poll() is None and not [*first.glob("step-*3.ckpt/meta.json")]:
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate()
    assert (process.returncode, said) == (143, "stopped by SIGTERM; go on with the same command\n")
    assert not (first / "final.ckpt").exists(), "it was in the middle of the first run"
    with claim(first):  # its run has also ended, or the folder would be in use
        pass
    found = json.loads(ablate(config, *arguments)[0])
    for name in ("baseline", "variant"):
        assert [
            found[name][0][key] == straight[name][0][key]
            for key in ("final", "lowest", "final_bits_per_byte", "tokens")
        ] == [True] * 4


@pytest.mark.usefixtures("starts_processes")
def test_the_same_twice_is_no_difference_and_a_variant_that_diverges_is_said(
    tmp_path: Path,
) -> None:
    config = config_file(tmp_path, trainer={"max_steps": 4})
    out, _ = ablate(
        config, "--change", "optimizer.lr=3e-3", "--seeds", "1", "--out", str(tmp_path / "same")
    )
    assert "no difference at all: the same nats per token to the last digit over 1 seed" in out
    out, _ = ablate(
        config, "--change", "model.init_std=1e39", "--seeds", "1", "--out", str(tmp_path / "burst")
    )
    assert "variant, seed 1337: diverged" in out
    assert "cannot be compared: no seed completed both runs" in out


@pytest.mark.usefixtures("starts_processes")
def test_a_file_that_is_edited_while_the_runs_go_on_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_file(tmp_path, trainer={"max_steps": 4})
    communicate = QuickChild.communicate

    def edit(self: QuickChild) -> tuple[None, str]:
        config_file(tmp_path, trainer={"max_steps": 2})
        return communicate(self)

    monkeypatch.setattr(QuickChild, "communicate", edit)
    out, _ = ablate(
        config,
        "--change",
        "optimizer.lr=1e-3",
        "--seeds",
        "1",
        "--json",
        "--out",
        str(tmp_path / "out"),
    )
    found = json.loads(out)
    assert [run["tokens"] for name in ("baseline", "variant") for run in found[name]] == [
        4 * 8 * 16
    ] * 2


@pytest.mark.usefixtures("starts_processes")
def test_what_is_learnt_for_other_ends_does_not_compare(tmp_path: Path) -> None:
    base = config_file(tmp_path)
    parts = parts_of(load_config(base))
    trained = write_trained(
        tmp_path, parts.make_decoder(), parts.tokenizer, parts.config.model_dump(mode="json")
    )
    with pytest.raises(ConfigError, match="losses do not compare"):
        ablate(base, "--change", f"finetune.base={trained}", "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_conversations_that_fit_one_row_length_and_not_the_other_are_other_text(
    tmp_path: Path,
) -> None:
    config = load_config(config_file(tmp_path)).config
    chat = {"format": "chat", "files": "x.jsonl", "template": "instruction-output"}
    talk = Config.model_validate(
        config.model_dump() | {"data": {"source": chat, "document_mask": True}}
    )
    shorter = talk.model_copy(update={"data": talk.data.model_copy(update={"sequence_length": 8})})
    assert not kept(talk, shorter).validation
    assert kept(talk, talk).validation
    assert kept(
        config,
        config.model_copy(update={"data": config.data.model_copy(update={"sequence_length": 8})}),
    ).validation


@pytest.mark.parametrize(
    ("one", "other", "rows"),
    [
        ((0.0, "a"), (0.0, "b"), True),  # nothing of either base is replayed
        ((0.2, "a"), (0.2, "a"), True),
        ((0.2, "a"), (0.2, "b"), False),
        ((0.2, "a"), (0.0, "a"), False),
    ],
)
def test_replayed_text_of_a_base_is_a_part_of_the_rows(
    tmp_path: Path, one: tuple[float, str], other: tuple[float, str], rows: bool
) -> None:
    config = load_config(config_file(tmp_path)).config
    tunings = [FinetuneConfig(replay=replay, base=base) for replay, base in (one, other)]
    pair = [config.model_copy(update={"finetune": tuning}) for tuning in tunings]
    found = kept(*pair)
    assert found.rows is rows and found.weights is (one[1] == other[1])


@pytest.mark.usefixtures("starts_processes")
def test_runs_that_do_not_come_to_their_end_say_why(tmp_path: Path) -> None:
    config = config_file(tmp_path)
    with pytest.raises(
        CheckpointError,
        match=r"baseline-seed-1337: the run was stopped before its end \(trainer.max_minutes\?\)",
    ):
        ablate(
            config,
            "--change",
            "optimizer.lr=1e-3",
            "--trainer.max_minutes=1e-6",
            "--out",
            str(tmp_path / "late"),
        )
    with pytest.raises(UserError, match=r"ended with exit code 3: .*nothing\.txt") as caught:
        ablate(
            config,
            "--change",
            "optimizer.lr=1e-3",
            "--data.source.files=nothing.txt",
            "--out",
            str(tmp_path / "none"),
        )
    assert caught.value.exit_code == 3
