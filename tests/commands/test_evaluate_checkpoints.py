"""The command on checkpoints whose order is known."""

from __future__ import annotations

import csv
import itertools
import json
import math
import os
import re
import shutil
import socket
import string
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

import evaluate_checkpoints
from lm.checkpoints import write as checkpoint
from lm.checkpoints.base import open_base
from lm.config.schema.config import Config
from lm.config.schema.model import ModelConfig
from lm.system import errors
from lm.tokenizer.tokenizer import Tokenizer, from_definition, load_tokenizer
from model import Decoder
from tests.reliability.hostile_checkpoints import seal
from tests.support import runs

ROOT = Path(__file__).parents[2]
BYTE = load_tokenizer("byte")
LETTERS = string.ascii_lowercase[:24]
NOWHERE: dict[str, object] = {
    "data": {
        "source": {"format": "txt", "files": "/nowhere/text.txt"},
        "cache_dir": "/nowhere/cache",
    },
    "trainer": {"max_steps": 200},
}


def pairs_of_letters() -> Tokenizer:
    """Return a tokenizer of bytes, with one more token for each of ab, cd, ef and so on."""
    names = ["<e>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges = list(zip(LETTERS[::2], LETTERS[1::2], strict=True))
    backend = Backend(
        models.BPE({name: i for i, name in enumerate([*names, *map("".join, merges)])}, merges)
    )
    backend.pre_tokenizer, backend.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    return from_definition(backend.to_str(), "pairs", 0, 0)


def follower(
    tokenizer: Tokenizer, tokens: Sequence[int], probability: float, known: int
) -> Decoder:
    """Return a decoder that predicts the first `known` tokens of a row with this probability.
    Everything else is equally likely.
    """
    size = tokenizer.vocab_size + tokenizer.vocab_size % 2
    shape = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        context_length=512,
        n_layers=1,
        n_heads=1,
        d_model=size,
        dropout=0.0,
        norm_eps=1e-12,
        tie_embeddings=False,
    )
    decoder = Decoder(shape)
    with torch.no_grad():
        for parameter in decoder.layers.parameters():
            parameter.zero_()
        decoder.embed_tokens.weight.copy_(torch.eye(tokenizer.vocab_size, size))
        decoder.lm_head.weight.zero_()
        logit = math.log(probability / (1 - probability) * (tokenizer.vocab_size - 1))
        for token, after in list(itertools.pairwise(tokens))[:known]:
            # the norm's output for a single 1
            decoder.lm_head.weight[after, token] = logit / math.sqrt(size)
    return decoder


def letters(folder: Path, step: int, probability: float, known: int = 23) -> Path:
    """Save a checkpoint that knows the letters after the first letters of the alphabet."""
    return runs.write_trained(
        folder, follower(BYTE, BYTE.encode(LETTERS), probability, known), BYTE, NOWHERE, step
    )


def save_cases(file: Path, cases: Sequence[dict[str, Any]], **keys: Any) -> Path:
    file.write_text(
        yaml.safe_dump(
            {"about": "Letters of the alphabet.", "max_new_tokens": 2, **keys, "cases": list(cases)}
        )
    )
    return file


def next_letters() -> list[dict[str, Any]]:
    """Return cases with two choices for the next letter. Guessing takes the first one, which is
    wrong.
    """
    return [
        {
            "prompt": f"-{a}",
            "target": b,
            "choices": ["?", b],
            "tags": ["early" if a < "m" else "late"],
        }
        for a, b in itertools.pairwise(LETTERS)
    ]


def next_texts() -> list[dict[str, Any]]:
    """Return cases without choices: the next one to nine letters."""
    return [
        {"prompt": f"-{LETTERS[i]}", "target": LETTERS[i + 1 : i + 2 + i % 9]} for i in range(14)
    ]


@pytest.fixture(autouse=True)
def letters_may_continue_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accept targets that continue the prompt's word, as all these cases do. Files of cases may not
    have them.
    """
    monkeypatch.setattr("lm.ranking.cases._in_a_word", lambda character: False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a run with three checkpoints: nothing learnt, a little, all but the last letters."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for step, probability, known in ((100, 0.3, 0), (200, 0.4, 12), (300, 0.6, 21)):
        letters(folder, step, probability, known)
    checkpoint.point(folder, "best.ckpt", folder / "step-00000200.ckpt")
    for name in ("last.ckpt", "final.ckpt"):
        checkpoint.point(folder, name, folder / "step-00000300.ckpt")
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "checkpoints", symlinks=True)
    return tmp_path / "checkpoints"


class Done:
    """The result of a command: `code`, `out`, `err`, and `ranking(i)` of the printed JSON."""

    def __init__(self, code: int, out: str, err: str):
        self.code, self.out, self.err = code, out, err

    def ranking(self, i: int = 0) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads(
            self.out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON")
        )
        return facts["rankings"][i]

    def order(self, i: int = 0) -> list[str]:
        return [row["checkpoint"] for row in self.ranking(i)["checkpoints"]]


@pytest.fixture
def rank(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run evaluate_checkpoints.py in this process."""

    def command(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["evaluate_checkpoints.py", *map(str, arguments)])
        code = 0
        try:
            errors.run(evaluate_checkpoints.main)
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        return Done(code, *capsys.readouterr())

    return command


def test_a_known_order_is_found(run: Path, tmp_path: Path, rank: Any) -> None:
    cases = save_cases(tmp_path / "next.yaml", next_letters())
    done = rank("--checkpoints", f"{run}/*.ckpt", "--cases", cases, "--json")
    assert done.code == 0 and done.order() == ["step-00000300", "step-00000200", "step-00000100"]
    rows = done.ranking()["checkpoints"]
    assert [row["accuracy"] for row in rows] == [pytest.approx(known / 23) for known in (21, 12, 0)]
    assert [row["centred_accuracy"] for row in rows] == [
        pytest.approx(2 * known / 23 - 1) for known in (21, 12, 0)
    ]
    assert [(row["rank_best"], row["rank_worst"]) for row in rows] == [(1, 1), (2, 2), (3, 3)]
    assert done.ranking()["chance"] == 0.5 and done.ranking()["by"] == "accuracy"
    # Each is ranked once, through any number of links.
    assert [row["links"] for row in rows] == ["last final", "best", ""]
    assert rows[2]["accuracy_low"] == 0 and 0.1 < rows[2]["accuracy_high"] < 0.2
    assert [pair["told_apart"] for pair in done.ranking()["pairs"]] == [True, True, True]
    assert done.ranking()["tags"]["late"] == {
        "cases": 11,
        "values": {f"step-00000{k}00": pytest.approx(n / 11) for k, n in ((3, 9), (2, 0), (1, 0))},
    }


def test_bits_per_byte_are_those_of_the_probabilities(run: Path, tmp_path: Path, rank: Any) -> None:
    """Known letters have p = 0.6, or -log2 0.6 bits. Unknown bytes have log2 260 bits."""
    letters(run, 400, 0.6)
    cases = save_cases(tmp_path / "texts.yaml", next_texts())
    done = rank(
        "--checkpoints",
        run / "step-00000400.ckpt",
        run / "step-00000100.ckpt",
        "--cases",
        cases,
        "--json",
    )
    assert done.ranking()["by"] == "bits_per_byte" and done.ranking()["chance"] is None
    first, second = done.ranking()["checkpoints"]
    assert first["bits_per_byte"] == pytest.approx(-math.log2(0.6), abs=1e-5)
    assert first["nats_per_token"] == pytest.approx(-math.log(0.6), abs=1e-5)
    assert second["bits_per_byte"] == pytest.approx(math.log2(260), abs=1e-5)
    assert "accuracy" not in first and first["exact"] > second["exact"] == 0


def test_words_and_table(run: Path, tmp_path: Path, rank: Any) -> None:
    letters(tmp_path / "copy", 301, 0.6, 21)
    again = tmp_path / "spare" / "step-00000300.ckpt"
    shutil.copytree(run / "step-00000300.ckpt", again)
    cases = save_cases(tmp_path / "next.yaml", next_letters())
    done = rank(
        "--checkpoints",
        run / "best.ckpt",
        run / "final.ckpt",
        again,
        tmp_path / "copy" / "*",
        "--cases",
        cases,
        "--no-link",
    )
    heading, names, first, second, third, *sentences = done.out.splitlines()
    assert heading == "next: 23 cases, chance 50.0 % accuracy"
    assert names.split("  ")[0] == "checkpoint" and "accuracy, % [low, high]" in names
    assert first.split()[:5] == ["checkpoints/step-00000300", "(last,", "final)", "1–2", "91.3"]
    assert second.split()[:3] == ["copy/step-00000301", "1–2", "91.3"]
    assert third.split()[:4] == ["checkpoints/step-00000200", "(best)", "3", "52.2"]
    assert (
        sentences[0]
        == "checkpoints/step-00000300 and copy/step-00000301 cannot be told apart on 23 cases "
        "(difference 0.0 points of accuracy [-18.8, 18.8])"
    )
    assert re.fullmatch(
        r"checkpoints/step-00000300 is better than checkpoints/step-00000200 by 39\.1 points of"
        r" accuracy \[[\d.]+, [\d.]+\]",
        sentences[1],
    )
    same = f"{again} is the same checkpoint as {run}/step-00000300.ckpt, and enters once"
    assert same in done.err
    assert sentences[2] == "and 1 more pair: --json or --out has them"
    assert max(map(len, (names, first, second, third))) <= 100 and "\x1b" not in done.out
    assert "the search for copies did not cover all training text" in done.out


def test_none_can_be_told_apart(run: Path, tmp_path: Path, rank: Any) -> None:
    for step in (400, 500):
        letters(run, step, 0.6, 21)
    cases = save_cases(tmp_path / "next.yaml", next_letters())
    done = rank("--checkpoints", run / "step-00000[345]00.ckpt", "--cases", cases)
    assert (
        "none of these 3 can be told apart on 23 cases: differences up to 18.8 points of accuracy"
        " would not show" in done.out
    )


def test_five_cases_tell_nothing(run: Path, tmp_path: Path, rank: Any) -> None:
    cases = save_cases(tmp_path / "few.yaml", next_letters()[:5])
    done = rank(
        "--checkpoints", run / "step-00000300.ckpt", run / "step-00000100.ckpt", "--cases", cases
    )
    assert "step-00000300 and step-00000100 cannot be told apart on 5 cases (too few)" in done.out


def test_one_that_is_damaged_is_named_and_the_others_are_ranked(
    run: Path, tmp_path: Path, rank: Any
) -> None:
    weights = run / "step-00000200.ckpt" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    letters(run, 400, 0.5)
    (run / "step-00000400.ckpt" / "meta.json").write_text("{")
    letters(run, 500, 0.5)
    meta = run / "step-00000500.ckpt" / "meta.json"
    meta.write_text(meta.read_text().replace('"format": 1', '"format": 9'))
    cases = save_cases(tmp_path / "next.yaml", next_letters())
    done = rank("--checkpoints", f"{run}/*.ckpt", "--cases", cases, "--json")
    assert done.code == 0 and done.order() == ["step-00000300", "step-00000100"]
    failed = json.loads(done.out)["failed"]
    assert [re.search(r"step-\d+", failure["name"])[0] for failure in failed] == [
        "step-00000400",
        "step-00000500",
        "step-00000200",
    ]  # type: ignore[index]
    lines = [line for line in done.err.splitlines() if line.startswith("not ranked: ")]
    assert len(lines) == 3 and "format 9" in lines[1] and "model.safetensors" in lines[2]
    assert not any("\n" in failure["reason"] for failure in failed)


def test_weights_that_are_no_numbers_are_reported_and_memory_too(
    run: Path, tmp_path: Path, rank: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = follower(BYTE, BYTE.encode(LETTERS), 0.5, 5)
    with torch.no_grad():
        broken.lm_head.weight[0, 0] = math.nan
    runs.write_trained(run, broken, BYTE, NOWHERE, 400)
    cases, load = save_cases(tmp_path / "next.yaml", next_letters()), evaluate_checkpoints_load()

    def no_room(path: Path, device: str) -> Any:
        if path.name == "step-00000100.ckpt":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return load(path, device)

    monkeypatch.setattr("lm.ranking.entrants.load", no_room)
    done = rank("--checkpoints", f"{run}/step*", "--cases", cases, "--json")
    assert done.code == 0 and done.order() == ["step-00000300", "step-00000200"]
    first, second = (failure["reason"] for failure in json.loads(done.out)["failed"])
    assert (
        first == f"{run / 'step-00000100.ckpt'}: out of memory"
        and "not finite" in second
        and "step-00000400.ckpt" in second
    )


def evaluate_checkpoints_load() -> Any:
    from lm import load

    return load


@pytest.mark.parametrize("names", [[], ["config.yaml"]])
def test_nothing_to_rank_says_what_is_there(
    run: Path, tmp_path: Path, rank: Any, names: list[str]
) -> None:
    (run / "config.yaml").touch()
    cases = save_cases(tmp_path / "next.yaml", next_letters())
    done = rank("--checkpoints", run / "step-*9.ckpt", "--cases", cases)
    assert done.code == 5 and done.err.endswith(
        "step-*9.ckpt: matches no checkpoint; "
        + f"{run} holds step-00000100.ckpt, step-00000200.ckpt, step-00000300.ckpt\n"
    )
    done = rank("--checkpoints", run / "step-00000999.ckpt", "--cases", cases)
    assert done.code == 5 and "no such checkpoint" in done.err and "step-00000300.ckpt" in done.err
    done = rank("--checkpoints", tmp_path / "nowhere" / "*.ckpt", "--cases", cases)
    assert done.code == 5 and f"{tmp_path / 'nowhere'} does not exist" in done.err
    for path in run.glob("step-*"):
        (path / "model.safetensors").unlink()
    done = rank("--checkpoints", run, *(run / name for name in names), "--cases", cases)
    assert (
        done.code == 5 and done.err.endswith("no checkpoint is left to rank\n") and done.out == ""
    )


def test_a_folder_a_glob_and_links_mean_each_checkpoint_once(
    run: Path, tmp_path: Path, rank: Any
) -> None:
    cases = save_cases(tmp_path / "next.yaml", next_letters())
    (run / "dangling.ckpt").symlink_to("gone.ckpt")
    done = rank(
        "--checkpoints",
        run,
        f"{run}/*",
        run / "best.ckpt",
        f"{run}/**",
        "--cases",
        cases,
        "--json",
        "--no-link",
    )
    assert sorted(done.order()) == ["step-00000100", "step-00000200", "step-00000300"]
    (failed,) = json.loads(done.out)["failed"]
    assert "the link leads nowhere" in failed["reason"]


def test_other_tokenizers_compare_by_bytes(tmp_path: Path, rank: Any) -> None:
    """A probability of 0.25 for two bytes means fewer bits per byte than 0.4 for each byte, and
    more nats per token.
    """
    pairs = pairs_of_letters()
    tokens = [pairs.encode(LETTERS[i : i + 2])[0] for i in range(0, 24, 2)]
    runs.write_trained(tmp_path / "pairs", follower(pairs, tokens, 0.25, 23), pairs, NOWHERE)
    runs.write_trained(
        tmp_path / "bytes", follower(BYTE, BYTE.encode(LETTERS), 0.4, 23), BYTE, NOWHERE
    )
    whole = [
        {"prompt": f"-{LETTERS[i : i + 2]}", "target": LETTERS[i + 2 : i + 4 + 2 * (i % 3)]}
        for i in range(0, 16, 2)
    ]
    cases = save_cases(tmp_path / "texts.yaml", whole)
    done = rank("--checkpoints", tmp_path / "*" / "step*", "--cases", cases, "--json")
    first, second = done.ranking()["checkpoints"]
    assert (first["checkpoint"], second["checkpoint"]) == (
        "pairs/step-00000150",
        "bytes/step-00000150",
    )
    assert (first["bits_per_byte"], second["bits_per_byte"]) == (
        pytest.approx(1, abs=1e-5),
        pytest.approx(-math.log2(0.4), abs=1e-5),
    )
    assert first["nats_per_token"] > second["nats_per_token"]
    assert (first["tokenizer"], second["tokenizer"]) == ("pairs", "byte")
    shown = rank("--checkpoints", tmp_path / "*" / "step*", "--cases", cases)
    assert "these checkpoints have different tokenizers: compare bits per byte" in shown.out
    done = rank(
        "--checkpoints", tmp_path / "*" / "step*", "--cases", cases, "--by", "nats_per_token"
    )
    assert done.code == 2 and "different tokenizers" in done.err
    done = rank("--checkpoints", tmp_path / "*" / "step*", "--cases", cases, "--tokenizer", "byte")
    assert done.code == 2 and "is not the model's own" in done.err


@pytest.mark.usefixtures("starts_processes")
def test_the_winner_is_linked_listed_kept_and_a_base(run: Path, tmp_path: Path, rank: Any) -> None:
    cases = save_cases(tmp_path / "next.yaml", next_letters())
    letters(run, 150, 0.9, 23)
    done = rank("--checkpoints", f"{run}/*.ckpt", "--cases", cases)
    link = run / "ranked-best.ckpt"
    assert link.readlink() == Path("step-00000150.ckpt") and str(link) in done.err
    listed = subprocess.run(
        [sys.executable, ROOT / "list.py", run], capture_output=True, text=True
    ).stdout
    assert re.search(r"^ *150 .*ranked-best", listed, re.MULTILINE)
    checkpoint.retain(run, keep=1)
    assert [path.name for path in checkpoint.step_directories(run)] == [
        "step-00000150.ckpt",
        "step-00000200.ckpt",
        "step-00000300.ckpt",
    ]
    config = Config.model_validate({**NOWHERE, "finetune": {"base": str(link)}})
    assert open_base(config).checkpoint.path == link.resolve()
    # The link is another name of its target.
    again = rank("--checkpoints", f"{run}/*.ckpt", "--cases", cases, "--json")
    assert again.ranking()["checkpoints"][0]["links"] == "ranked-best"


def test_no_link_where_it_is_not_wanted_or_there_is_no_contest(
    run: Path, tmp_path: Path, rank: Any
) -> None:
    cases = save_cases(tmp_path / "next.yaml", next_letters())
    rank("--checkpoints", run, "--cases", cases, "--no-link")
    rank("--checkpoints", run / "best.ckpt", "--cases", cases)
    assert not os.path.lexists(run / "ranked-best.ckpt")


def test_a_folder_that_refuses_the_link_is_not_fatal(run: Path, tmp_path: Path, rank: Any) -> None:
    cases = save_cases(tmp_path / "next.yaml", next_letters())
    (run / "ranked-best.ckpt").mkdir()
    done = rank("--checkpoints", run / "step*", "--cases", cases)
    assert done.code == 0 and "no link: " in done.err and "was not made by a run" in done.err


@pytest.mark.usefixtures("takes_seconds")
def test_files_and_json_have_the_same_numbers(run: Path, tmp_path: Path, rank: Any) -> None:
    save_cases(tmp_path / "next.yaml", next_letters())
    save_cases(
        tmp_path / "texts.yaml",
        [*next_texts(), {"prompt": "-a", "contains": "bc"}, {"prompt": "-b", "regex": "^c"}],
    )
    out = tmp_path / "new" / "out"
    done = rank(
        "--checkpoints",
        run,
        "--cases",
        tmp_path / "next.yaml",
        tmp_path / "texts.yaml",
        "--json",
        "--out",
        out,
    )
    assert sorted(path.name for path in out.iterdir()) == [
        "ranking.csv",
        "ranking.json",
        "ranking.md",
        "ranking.png",
    ]
    facts = json.loads((out / "ranking.json").read_text())
    assert facts == json.loads(done.out)
    flat = [(ranking, row) for ranking in facts["rankings"] for row in ranking["checkpoints"]]
    lines = list(csv.DictReader((out / "ranking.csv").open()))
    assert len(lines) == len(flat) == 9
    page = (out / "ranking.md").read_text().replace("\\", "")
    for (ranking, row), line in zip(flat, lines, strict=True):
        assert line["set"] == " + ".join(ranking["sets"])
        for key, value in row.items():
            assert line[key] == ("" if value is None else str(value))
        by = row["by"]
        value, low, high = (
            f"{100 * row[key]:.1f}" if "accuracy" in by else f"{row[key]:.3f}"
            for key in (by, f"{by}_low", f"{by}_high")
        )
        limited = re.escape(f"{value} [{low}, {high}]")
        assert re.search(
            r"^\| " + row["checkpoint"] + r".*\| " + limited + r" \|", page, re.MULTILINE
        )
    for ranking in facts["rankings"]:
        assert all(f"- {pair['words']}\n" in page for pair in ranking["pairs"])
    assert (out / "ranking.png").read_bytes().startswith(b"\x89PNG")
    answer = facts["rankings"][1]["answers"][0]
    chosen = answer["checkpoints"]
    assert (
        answer["prompt"] == "-a"
        and chosen["step-00000300"]["chosen"] == "b"
        and chosen["step-00000100"]["right"] is False
    )


@pytest.mark.usefixtures("trains")
def test_what_was_copied_is_looked_for_in_the_text_that_the_run_has_read(
    tmp_path: Path, rank: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    # A high learning rate, so that the model writes letters.
    config = runs.config_file(tmp_path, optimizer={"lr": 3e-2, "warmup_steps": 2})
    runs.train(config)
    capsys.readouterr()
    cases = save_cases(
        tmp_path / "cases.yaml",
        [{"prompt": "the model", "target": " reads"}, {"prompt": "", "target": "a"}],
    )
    ranking = rank(
        "--checkpoints", tmp_path / "run" / "final.ckpt", "--cases", cases, "--json"
    ).ranking()
    row, copied = ranking["checkpoints"][0], ranking["longest_copied_text"]["step-00000012"]
    written = [
        answer["checkpoints"]["step-00000012"]["continuation"] for answer in ranking["answers"]
    ]
    assert (
        copied
        and copied in (tmp_path / "corpus.txt").read_text()
        and any(copied in text for text in written)
    )
    assert row["longest_copied"] == len(copied.encode())


def test_several_sets_make_one_order_in_which_each_counts_alike(
    run: Path, tmp_path: Path, rank: Any
) -> None:
    """The mean is over two sets, of 23 and 8 cases. A file without choices does not count."""
    folder = tmp_path / "cases"
    folder.mkdir()
    save_cases(folder / "a.yaml", next_letters())
    save_cases(
        folder / "b.yaml",
        [{**case, "choices": ["?", "!", *case["choices"][1:], "."]} for case in next_letters()[:8]],
    )
    save_cases(folder / "c.yaml", next_texts())
    done = rank("--checkpoints", run, "--cases", folder, "--json")
    total = done.ranking()
    assert (
        total["sets"] == ["a", "b"]
        and total["by"] == "centred_accuracy"
        and total["asked"] == {"centred_accuracy": 31}
    )
    accuracies = {row["checkpoint"]: row["centred_accuracy"] for row in total["checkpoints"]}
    both = {100: (-1, -1 / 3), 200: (1 / 23, 1), 300: (19 / 23, 1)}
    assert accuracies == {
        f"step-00000{step}": pytest.approx(sum(parts) / 2) for step, parts in both.items()
    }
    assert [done.ranking(i)["sets"] for i in (1, 2, 3)] == [["a"], ["b"], ["c"]]


def test_each_set_ranks_by_what_is_asked_for(run: Path, tmp_path: Path, rank: Any) -> None:
    save_cases(tmp_path / "next.yaml", next_letters())
    save_cases(
        tmp_path / "hits.yaml", [{"prompt": f"-{a}", "contains": chr(ord(a) + 1)} for a in LETTERS]
    )
    both = [tmp_path / "next.yaml", tmp_path / "hits.yaml"]
    done = rank("--checkpoints", run, "--cases", *both, "--by", "contains", "--json")
    assert [ranking["by"] for ranking in json.loads(done.out)["rankings"]] == [
        "contains",
        "accuracy",
        "contains",
    ]
    assert done.ranking(2)["checkpoints"][0]["contains"] == pytest.approx(21 / 24)
    done = rank("--checkpoints", run, "--cases", *both, "--by", "regex")
    assert done.code == 2 and "no case of" in done.err
    done = rank("--checkpoints", run, "--cases", *both, "--by", "luck")
    assert done.code == 2 and "write one of accuracy, bits_per_byte" in done.err


def test_cases_that_are_wrong_or_missing(run: Path, tmp_path: Path, rank: Any) -> None:
    (tmp_path / "empty").mkdir()
    done = rank("--checkpoints", run, "--cases", tmp_path / "empty")
    assert done.code == 2 and "holds no file of cases" in done.err
    wrong = save_cases(tmp_path / "wrong.yaml", [{"prompt": "a", "tarjet": "b"}])
    done = rank("--checkpoints", run, "--cases", wrong)
    assert done.code == 2 and f"{wrong}:" in done.err and "tarjet" in done.err
    twice = save_cases(tmp_path / "empty" / "wrong.yaml", next_letters())
    done = rank("--checkpoints", run, "--cases", wrong, twice)
    assert done.code == 2 and "two files are called wrong" in done.err


def test_a_chat_is_asked_of_those_who_can_be_spoken_to(tmp_path: Path, rank: Any) -> None:
    """The byte tokenizer has the token that ends an answer. The other tokenizer does not, and has
    no template.
    """
    pairs = pairs_of_letters()
    runs.write_trained(
        tmp_path / "pairs", follower(pairs, pairs.encode(LETTERS), 0.5, 23), pairs, NOWHERE
    )
    runs.write_trained(
        tmp_path / "bytes", follower(BYTE, BYTE.encode(LETTERS), 0.5, 23), BYTE, NOWHERE
    )
    texts, chat = save_cases(tmp_path / "texts.yaml", next_texts()), tmp_path / "chat.yaml"
    save_cases(chat, [{"prompt": "a?", "target": "b"}], chat=True)
    done = rank("--checkpoints", tmp_path / "*" / "step*", "--cases", texts, chat, "--json")
    assert done.code == 0, done.err
    assert [len(ranking["checkpoints"]) for ranking in json.loads(done.out)["rankings"]] == [
        1,
        2,
        1,
    ]
    assert json.loads(done.out)["notes"][2:4] == [
        "chat is a chat, not asked of pairs/step-00000150: no template (--template NAME gives one)",
        "not in the mean, without results on all of its sets: pairs/step-00000150",
    ]
    done = rank("--checkpoints", tmp_path / "*" / "step*", "--cases", chat, "--json")
    assert (
        len(done.order()) == 1
        and "pairs/step-00000150.ckpt has no template, and all cases are chats" in done.err
    )
    done = rank(
        "--checkpoints", tmp_path / "*" / "step*", "--cases", chat, "--template", "alpaca", "--json"
    )
    assert len(done.order()) == 2
    done = rank("--checkpoints", tmp_path / "*" / "step*", "--cases", chat, "--template", "parrot")
    assert done.code == 2 and "there is alpaca" in done.err


def test_a_template_that_one_cannot_speak_is_no_reason_to_ask_nobody(
    tmp_path: Path, rank: Any
) -> None:
    pairs = pairs_of_letters()
    runs.write_trained(
        tmp_path / "pairs", follower(pairs, pairs.encode(LETTERS), 0.5, 23), pairs, NOWHERE
    )
    runs.write_trained(
        tmp_path / "bytes", follower(BYTE, BYTE.encode(LETTERS), 0.5, 23), BYTE, NOWHERE
    )
    chat = save_cases(tmp_path / "chat.yaml", [{"prompt": "a?", "target": "b"}], chat=True)
    done = rank(
        "--checkpoints",
        tmp_path / "*" / "step*",
        "--cases",
        chat,
        "--template",
        "instruction-output",
        "--json",
    )
    assert done.code == 0 and done.order() == ["bytes/step-00000150"]
    (failed,) = json.loads(done.out)["failed"]
    assert (
        failed["name"] == "pairs/step-00000150"
        and "instruction-output needs <|sep|>" in failed["reason"]
    )


@pytest.mark.usefixtures("takes_seconds")
def test_a_winner_that_has_gone_or_was_replaced_is_not_linked(
    run: Path, tmp_path: Path, rank: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run in progress may delete its old checkpoints, or write one of them again."""
    cases, show = save_cases(tmp_path / "next.yaml", next_letters()), evaluate_checkpoints.show

    def meanwhile(change: Any) -> Done:
        with monkeypatch.context() as patch:
            patch.setattr(evaluate_checkpoints, "show", lambda rankings: (show(rankings), change()))
            done: Done = rank("--checkpoints", run, "--cases", cases)
            return done

    done = meanwhile(lambda: letters(run, 300, 0.7))
    assert done.code == 0 and "step-00000300.ckpt was replaced since it was ranked" in done.err
    done = meanwhile(lambda: shutil.rmtree(run / "step-00000300.ckpt"))
    assert done.code == 0 and "no link: " in done.err
    assert not (run / "ranked-best.ckpt").is_symlink()


def test_one_that_is_replaced_while_it_waits_is_not_ranked(
    run: Path, tmp_path: Path, rank: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recorded loss would be that of other weights."""
    cases, load = save_cases(tmp_path / "next.yaml", next_letters()), evaluate_checkpoints_load()

    def late(path: Path, device: str) -> Any:
        if path.name == "step-00000100.ckpt":
            letters(run, 200, 0.9)
        return load(path, device)

    monkeypatch.setattr("lm.ranking.entrants.load", late)
    done = rank("--checkpoints", run, "--cases", cases, "--json")
    assert done.order() == ["step-00000300", "step-00000100"]
    assert "was replaced while others were measured" in json.loads(done.out)["failed"][0]["reason"]


def test_a_name_that_is_taken_by_a_folder_leaves_nothing(
    run: Path, tmp_path: Path, rank: Any
) -> None:
    (run / "ranked-best.ckpt").mkdir()
    before = sorted(path.name for path in run.iterdir())
    done = rank("--checkpoints", run, "--cases", save_cases(tmp_path / "next.yaml", next_letters()))
    assert (
        done.code == 0
        and "no link: " in done.err
        and sorted(path.name for path in run.iterdir()) == before
    )


def test_a_disk_that_refuses_the_files_costs_no_ranking(
    run: Path, tmp_path: Path, rank: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases, file = save_cases(tmp_path / "next.yaml", next_letters()), tmp_path / "file"
    file.touch()
    done = rank("--checkpoints", run, "--cases", cases, "--out", file)
    assert done.code == 5 and "1 of 3" not in done.err  # before anything is measured

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    done = rank("--checkpoints", run, "--cases", cases, "--out", tmp_path / "out")
    assert (
        done.code == 5
        and "ranking.png could not be written: No space left" in done.err
        and "step-00000300 is better than" in done.out
    )


def test_a_training_text_that_goes_away_costs_one_checkpoint(
    run: Path, tmp_path: Path, rank: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lm.ranking.entrants

    measure_set = lm.ranking.entrants.measure_set
    calls: list[object] = []

    def gone(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 1:
            raise FileNotFoundError(2, "No such file or directory", "train.bin")
        return measure_set(*arguments)

    monkeypatch.setattr("lm.ranking.entrants.measure_set", gone)
    done = rank(
        "--checkpoints",
        run,
        "--cases",
        save_cases(tmp_path / "next.yaml", next_letters()),
        "--json",
    )
    assert done.code == 0 and done.order() == ["step-00000300", "step-00000200"]
    assert "train.bin cannot be read" in json.loads(done.out)["failed"][0]["reason"]


@pytest.mark.usefixtures("takes_seconds")
def test_names_from_outside_command_nothing(trained: Path, tmp_path: Path, rank: Any) -> None:
    evil = tmp_path / "a\x1b[31m|b$x$" / "run"
    shutil.copytree(trained, evil, symlinks=True)
    shutil.copytree(trained, tmp_path / "b" / "run", symlinks=True)
    for step in evil.glob("step-*"):  # equal checkpoints would be ranked once
        meta = json.loads((step / "meta.json").read_text())
        (step / "meta.json").write_text(json.dumps(meta | {"note": "another run"}))
        seal(step)
    cases = save_cases(tmp_path / "next.yaml", next_letters())
    done = rank(
        "--checkpoints",
        f"{evil}/step*",
        tmp_path / "b" / "run",
        "--cases",
        cases,
        "--out",
        tmp_path / "out",
    )
    assert (
        done.code == 0
        and "\x1b" not in done.out + done.err + (tmp_path / "out" / "ranking.md").read_text()
    )
    assert "\\|b\\$x\\$" in (tmp_path / "out" / "ranking.md").read_text()
    formula = tmp_path / "=HYPERLINK('x')"
    (tmp_path / "b" / "run").rename(formula)
    cases = cases.rename(tmp_path / "@next.yaml")
    assert (
        rank(
            "--checkpoints",
            formula / "step*",
            f"{evil}/*",
            "--cases",
            cases,
            "--out",
            tmp_path / "out",
        ).code
        == 0
    )
    for line in csv.DictReader((tmp_path / "out" / "ranking.csv").open()):
        assert line["set"] == "'@next" and not line["checkpoint"].startswith("=")
        # Numbers stay numbers.
        assert float(line["centred_accuracy"]) in (
            -1.0,
            pytest.approx(1 / 23),
            pytest.approx(19 / 23),
        )


def test_the_recorded_validation_stands_beside(run: Path, tmp_path: Path, rank: Any) -> None:
    manifest = checkpoint.Checkpoint(run / "step-00000300.ckpt").sha256
    line = {"step": 300, "manifest_sha256": manifest, "loss": 1.25, "bits_per_byte": 1.75}
    other = {"step": 200, "manifest_sha256": "of other bytes", "loss": 0.5, "bits_per_byte": 0.5}
    (run / "evaluations.jsonl").write_text(json.dumps(other) + "\n{\n" + json.dumps(line) + "\n")
    cases = save_cases(tmp_path / "next.yaml", next_letters())
    done = rank("--checkpoints", run, "--cases", cases, "--json")
    rows = done.ranking()["checkpoints"]
    # The damaged line is named once, although three checkpoints share the folder.
    assert done.err.count("evaluations.jsonl: damaged and left out: line 2\n") == 1
    assert [(row["val_loss"], row["val_bits_per_byte"]) for row in rows] == [
        (1.25, 1.75),
        (None, None),
        (None, None),
    ]


@pytest.mark.usefixtures("takes_seconds")
def test_no_network_and_the_same_table_each_time(
    run: Path, tmp_path: Path, rank: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        pytest.fail("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    cases = save_cases(tmp_path / "next.yaml", next_letters())
    first = rank("--checkpoints", run, "--cases", cases, "--no-link")
    second = rank("--checkpoints", run, "--cases", cases, "--no-link")
    strip = re.compile(r"[\d,]+$", re.MULTILINE)  # the speeds differ
    assert strip.sub("", first.out) == strip.sub("", second.out) and first.code == 0


def test_a_run_that_is_stopped_leaves_nothing_half(
    run: Path, tmp_path: Path, rank: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C arrives during the second measurement, and while the first file is written."""
    cases, out = save_cases(tmp_path / "next.yaml", next_letters()), tmp_path / "out"
    out.mkdir()
    (out / "ranking.md").write_text("earlier")
    load = evaluate_checkpoints_load()
    before = sorted(path.name for path in run.iterdir())

    def interrupted(path: Path, device: str) -> Any:
        if path.name == "step-00000200.ckpt":
            raise KeyboardInterrupt
        return load(path, device)

    with monkeypatch.context() as patch:
        patch.setattr("lm.ranking.entrants.load", interrupted)
        assert rank("--checkpoints", run, "--cases", cases, "--out", out).code == 130

    def stop(self: Path, *_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("matplotlib.figure.Figure.savefig", stop)
        assert rank("--checkpoints", run, "--cases", cases, "--out", out).code == 130
    assert [path.name for path in out.iterdir()] == ["ranking.md"] and (
        out / "ranking.md"
    ).read_text() == "earlier"
    assert sorted(path.name for path in run.iterdir()) == before


@pytest.mark.usefixtures("starts_processes")
def test_help_is_instant() -> None:
    """Help imports nothing heavy, not even numpy."""
    code = (
        "import sys, evaluate_checkpoints\n"
        "sys.argv[1:] = ['--help']\n"
        "try:\n    evaluate_checkpoints.main()\nexcept SystemExit:\n    pass\n"
        "print(sorted({'numpy', 'torch', 'scipy', 'matplotlib', 'pydantic'} & set(sys.modules)),"
        " file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == "[]\n" and "ranked-best.ckpt" in done.stdout
