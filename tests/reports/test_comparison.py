"""Compare two runs with known results, without a model: python -m pytest
tests/reports/test_comparison.py.
"""

from __future__ import annotations

import json
import math
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from lm.checkpoints.folder import step_name
from lm.checkpoints.write import point, write_checkpoint, write_json
from lm.reports.comparison import (
    Comparison,
    Reached,
    Value,
    aligned,
    at,
    choose_yardstick,
    compare,
    differences,
    first_reached,
)
from lm.reports.comparison_views import as_json, page, terminal
from lm.runs.metrics import MetricsLog
from lm.runs.record import read_run
from lm.system.errors import ConfigError
from lm.system.units import duration
from lm.tokenizer.tokenizer import ByteTokenizer, FastTokenizer
from lm.tokens.store import Counts
from tools import compare as tool

CONFIG: dict[str, Any] = {
    "model": {"context_length": 16},
    "tokenizer": {"name": "byte"},
    "data": {
        "source": {"format": "txt", "files": ["a.txt"]},
        "sequence_length": None,
        "cache_dir": "cache",
    },
    "optimizer": {"lr": 0.001},
    "trainer": {"validation_rows": None},
    "checkpoint": {"directory": "a"},
    "finetune": None,
}
META: dict[str, Any] = {
    "format": 1,
    "model": {},
    "n_parameters": 1234,
    "tokenizer": {"name": "byte", "sha256": "t"},
    "data_sha256": "d",
    "parent": None,
    "versions": {"torch": "2.0"},
}
HOSTILE = '<script>alert("x")</script>\x1b[2J\u202e'


def run_folder(
    folder: Path,
    losses: dict[int, float],
    config: dict[str, Any] | None = None,
    tokens: int = 100,
    sources: bool = False,
    **meta: object,
) -> Path:
    """Write a run that was validated at these steps of so many tokens. A step takes half a second,
    and every validation leaves a checkpoint.
    """
    folder.mkdir(parents=True)
    log, lines = MetricsLog(folder / "metrics.csv", resume_step=None), []
    for step, loss in losses.items():
        content = {
            **META,
            "config": config or CONFIG,
            "step": step,
            "tokens": step * tokens,
            **meta,
        }
        path = folder / step_name(step)
        sha256 = (
            write_checkpoint(
                path, {"meta.json": lambda file, content=content: write_json(file, content)}
            )["sha256"]
            if step
            else None
        )
        log.append(
            step, "val", loss=loss, bits_per_byte=loss / 2, tokens=step * tokens, seconds=step / 2
        )
        log.append(step, "train", loss=loss + 0.5, tokens=step * tokens, seconds=step / 2)
        line = {
            "step": step,
            "manifest_sha256": sha256,
            "loss": loss,
            "perplexity": math.exp(loss),
            "bits_per_byte": loss / 2,
        }
        line |= {"tokens": 99, "seconds": 0.5, "sample": f"{folder.name} wrote at {step} {HOSTILE}"}
        lines.append(
            line
            | (
                {
                    "sources": {
                        "x": {"loss": loss + 1, "tokens": 50},
                        folder.name: {"loss": loss, "tokens": 49},
                    }
                }
                if sources
                else {}
            )
        )
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    point(folder, "final.ckpt", folder / step_name(max(losses)))
    return folder


FIRST = {0: 6.0, 10: 4.0, 20: 3.0, 30: 2.5}
SECOND = {0: 6.0, 10: 5.0, 20: 4.0, 30: 3.5, 40: 2.25}


def changed(section: str, **keys: object) -> dict[str, Any]:
    return {**CONFIG, section: {**(CONFIG[section] or {}), **keys}}


def both(
    folder: Path, a: dict[str, Any] | None = None, b: dict[str, Any] | None = None
) -> Comparison:
    return compare(
        read_run(run_folder(folder / "a", FIRST, **(a or {}))),
        read_run(run_folder(folder / "b", SECOND, **(b or {}))),
    )


# --- alignment


def values(*points: tuple[int, float]) -> list[Value]:
    return [Value(tokens, tokens / 10, value) for tokens, value in points]


def test_common_places_are_taken_alone() -> None:
    a, b = values((0, 9), (10, 8), (15, 7.5), (20, 7)), values((0, 5), (10, 4), (20, 3), (30, 2))
    assert [tuple(place) for place in aligned(a, b)] == [
        (0, 9, 5, ""),
        (10, 8, 4, ""),
        (20, 7, 3, ""),
    ]


def test_else_the_line_between_neighbours_and_nothing_beyond() -> None:
    a, b = values((0, 9), (10, 5)), values((0, 8), (4, 6), (20, 2))
    assert [tuple(place) for place in aligned(a, b)] == [
        (0, 9, 8, ""),
        (4, 9 - 4 * 0.4, 6, "a"),
        (10, 5, 6 - 6 * 0.25, "b"),
    ]
    assert aligned(values((0, 1)), values((5, 1))) == []
    assert at(b, -1) is None and at(b, 21) is None and at([], 3) is None


def test_first_reached() -> None:
    falling = values((0, 10), (10, 6), (20, 7), (30, 4), (40, 8))
    assert first_reached(falling, 8) == Reached(5, 0.5, False)
    assert first_reached(falling, 6) == Reached(10, 1.0, True)
    assert first_reached(falling, 5.5) == Reached(25, 2.5, False)  # not where it was at 6
    assert first_reached(falling, 11) == Reached(0, 0.0, True)
    assert first_reached(falling, 3.9) is None
    assert first_reached([Value(0, None, 4), Value(10, 2.0, 2)], 3) == Reached(5, None, False)


# --- comparison


def test_all_that_differs_is_found(tmp_path: Path) -> None:
    other = changed("optimizer", lr=0.01, betas=[0.9, 0.5]) | {"checkpoint": {"directory": "b"}}
    found = both(
        tmp_path,
        b={
            "config": other,
            "versions": {"torch": "2.1"},
            "parent": {"path": "p", "manifest_sha256": "0" * 64},
        },
    )
    assert [tuple(each) for each in found.config] == [
        ("optimizer.lr", "0.001", "0.01", True),
        ("optimizer.betas", None, "[0.9, 0.5]", True),
        ("checkpoint.directory", '"a"', '"b"', False),
    ]
    assert [each.key for each in found.lineage] == [
        "versions.torch",
        "parent.path",
        "parent.manifest_sha256",
    ]
    assert [tuple(place) for place in found.places] == [
        (t * 100, FIRST[t], SECOND[t], "") for t in FIRST
    ]
    assert found.goals == (2.5, 2.25)
    assert found.reached == [
        (Reached(3000, 15.0, True), Reached(3800, 19.0, False)),
        (None, Reached(4000, 20.0, True)),
    ]
    assert [(a.step, b.step) for a, b in found.samples] == [(0, 0), (10, 10), (30, 30)]


def test_samples_stand_beside_each_other_by_tokens_not_steps(tmp_path: Path) -> None:
    found = both(tmp_path, b={"tokens": 200})
    assert [(a.tokens, b.tokens) for a, b in found.samples] == [(0, 0), (1000, 2000), (3000, 2000)]


def test_a_run_against_itself(tmp_path: Path) -> None:
    run = read_run(run_folder(tmp_path / "a", FIRST))
    found = compare(run, run)
    assert found.config == found.lineage == []
    assert found.notes == ["this compares a run with itself"]
    assert all(place.a == place.b for place in found.places)
    assert found.names == (str(tmp_path / "a"),) * 2
    assert "no key that changes a result differs" in "\n".join(terminal(found))


def test_a_run_and_what_started_from_it(tmp_path: Path) -> None:
    a = read_run(run_folder(tmp_path / "a", FIRST))
    parent = {"path": "p", "manifest_sha256": a.checkpoints[-1].manifest_sha256}
    for name, more, said in (
        ("full", {}, "full started from"),
        ("lora", {"adapters": {"n_parameters": 1000}}, "lora trained 1,000 param"),
    ):
        b = read_run(run_folder(tmp_path / name, SECOND, parent=parent, **more))
        assert compare(a, b).notes[0].startswith(said)
        assert compare(a, b).notes[0].endswith("the weights of a at step 30")
        assert compare(b, a).notes == compare(a, b).notes


DPO = {"config": changed("finetune", objective="dpo")}
CUT = {"config": changed("model", context_length=32)}
OTHER_FILES = changed("data", source={"format": "txt", "files": ["b.txt"]})
BPE = {"tokenizer": {"name": "bpe", "sha256": "u"}, "data_sha256": "e"}


@pytest.mark.usefixtures("takes_seconds")
@pytest.mark.parametrize(
    ("b", "column", "says"),
    [
        ({}, "loss", ""),
        ({"data_sha256": "e"}, None, "different texts"),
        ({"data_sha256": "e", "config": OTHER_FILES}, None, "different texts"),
        (
            BPE | {"config": CONFIG | {"tokenizer": {"name": "bpe"}}},
            "bits_per_byte",
            "their tokenizers differ, so bits per byte",
        ),
        (BPE | {"config": OTHER_FILES}, None, "different texts"),
        (DPO, None, "preferences"),
        (CUT, "loss", "cut into other rows (data.sequence_length)"),
    ],
)
def test_what_validations_can_be_compared_by(
    tmp_path: Path, b: dict[str, Any], column: str | None, says: str
) -> None:
    found = both(tmp_path, b=b)
    assert found.yardstick.column == column
    assert says in found.yardstick.note
    assert bool(found.places) == bool(found.goals) == (column is not None)
    if column == "bits_per_byte":
        assert found.places[-1][:3] == (3000, 1.25, 1.75)
    assert "\n".join(terminal(found))
    assert page(found)


@pytest.mark.parametrize("kind", ["txt", "chat"])
def test_bits_per_byte_of_conversations_by_the_older_rule_are_marked(
    tmp_path: Path, kind: str
) -> None:
    """Records without text_bytes count the bytes of conversations that nobody scored."""
    data = {"data": {**CONFIG["data"], "source": {"format": kind, "files": ["a.txt"]}}}
    config = {"config": CONFIG | data}
    found = both(tmp_path, a=config, b=config | BPE)
    assert found.yardstick.column == "bits_per_byte"
    marked = [note for note in found.notes if "earlier version" in note]
    assert len(marked) == (2 if kind == "chat" else 0)


def test_preferences_of_both_are_compared_by_pairs(tmp_path: Path) -> None:
    found = both(tmp_path, a=DPO, b=DPO)
    assert found.yardstick.column == "loss"
    assert "\nValidation at the same number of tokens, loss per pair of answers" in list(
        terminal(found)
    )


def test_without_checkpoints_configurations_have_to_tell(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "a", FIRST)
    for path in folder.glob("step-*"):
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    (folder / "config.yaml").write_text(json.dumps(CONFIG))
    run = read_run(folder)
    assert run.best_checkpoint is None
    yardstick = choose_yardstick(run, read_run(run_folder(tmp_path / "b", SECOND)))
    assert yardstick.column == "loss"
    assert "no checkpoint proves it" in yardstick.note


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "a", FIRST)
    (folder / "metrics.csv").unlink()
    found = compare(read_run(folder), read_run(run_folder(tmp_path / "b", SECOND)))
    assert "a: metrics.csv is missing" in found.notes
    assert found.places == [] and found.goals is None and found.samples == []
    assert "there is no number of tokens at which both have a value" in " ".join(
        " ".join(terminal(found)).split()
    )
    assert "nothing recorded" not in page(found).split("<h2>")[1]


def test_the_best_checkpoint_is_that_of_the_lowest_loss(tmp_path: Path) -> None:
    run = read_run(run_folder(tmp_path / "a", {0: 5.0, 10: 2.0, 20: 3.0}))
    best = run.best_checkpoint
    assert best is not None and best.step == 10


def test_code_and_machine_are_among_what_can_differ(tmp_path: Path) -> None:
    a, b = (
        {"code": {"commit": name, "changed": False}, "hardware": {"processor": name, "cores": 2}}
        for name in ("one", "two")
    )
    assert [each.key for each in both(tmp_path, a, b).lineage] == [
        "code.commit",
        "hardware.processor",
    ]


def test_a_longer_context_alone_cuts_no_other_rows(tmp_path: Path) -> None:
    a = CONFIG | {"data": CONFIG["data"] | {"sequence_length": 8}}
    found = both(tmp_path, a={"config": a}, b={"config": a | {"model": {"context_length": 32}}})
    assert found.yardstick == ("loss", "")


def test_losses_of_sources_in_other_tokens_are_not_put_up_for_comparison(tmp_path: Path) -> None:
    other = BPE | {"config": CONFIG | {"tokenizer": {"name": "bpe"}}}
    warning = "each in its own tokens"
    assert warning in "\n".join(
        terminal(both(tmp_path / "x", a={"sources": True}, b=other | {"sources": True}))
    )
    assert warning not in "\n".join(
        terminal(both(tmp_path / "y", a={"sources": True}, b={"sources": True}))
    )


def test_no_key_and_null_are_the_same() -> None:
    found = differences(
        {"finetune": None, "a": {"b": None, "c": 0}}, {"finetune": {"base": "x"}, "a": {}}
    )
    assert [tuple(each)[:3] for each in found] == [
        ("a.c", "0", None),
        ("finetune.base", None, '"x"'),
    ]


def test_parameters_of_adapters_are_beside_the_model_s(tmp_path: Path) -> None:
    lines = "\n".join(terminal(both(tmp_path, b={"adapters": {"n_parameters": 77}})))
    assert re.search(r"parameters +1,234 +1,234\n  of adapters +– +77\n", lines)
    assert "of adapters" not in "\n".join(terminal(both(tmp_path / "without")))


def test_differences_that_matter_come_first() -> None:
    a, b = (
        {
            "logging": {"every": n},
            "seed": n,
            "data": {"source": {"files": [n]}},
            "trainer": {"max_epochs": n},
        }
        for n in (1, 2)
    )
    found = [
        ("seed", True),
        ("data.source.files", True),
        ("trainer.max_epochs", True),
        ("logging.every", False),
    ]
    assert [(each.key, each.matters) for each in differences(a, b)] == found


# --- what is shown


class Texts(HTMLParser):
    """The words and the tags of a page."""

    def __init__(self, content: str):
        super().__init__()
        self.tags: set[str] = set()
        self.words: list[str] = []
        self.feed(content)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        assert not any(name.startswith("on") or name in ("src", "href") for name, _ in attributes)

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_same_numbers_everywhere(tmp_path: Path) -> None:
    found = both(
        tmp_path, a={"sources": True}, b={"sources": True, "config": changed("optimizer", lr=0.01)}
    )
    lines, content, values_of = "\n".join(terminal(found)), Texts(page(found)), as_json(found)
    for place in values_of["curve"]:
        for number in (
            f"{place['a']:.4f}",
            f"{place['b']:.4f}",
            f"{place['b'] - place['a']:+.4f}",
            f"{place['tokens']:,}",
        ):
            assert number in lines and number in content.words
    for reached in values_of["reached"]:
        for each in (reached["a"], reached["b"]):
            shown = (
                "never"
                if each is None
                else (
                    f"{each['tokens']:,.0f} tokens,"
                    f" {'' if each['exact'] else '~'}{duration(each['seconds'])}"
                )
            )
            assert shown in lines and any(shown in words for words in content.words)
    assert values_of["sources"] == [
        {"source": "x", "a": 3.5, "b": 3.25},
        {"source": "a", "a": 2.5, "b": None},
        {"source": "b", "a": None, "b": 2.25},
    ]
    assert re.search(r"\n  x +3\.5000 +3\.2500\n  a +2\.5000 +–\n  b +– +2\.2500\n", lines)
    for each in values_of["config"]:
        assert each["key"] in lines and each["key"] in content.words and each["b"] in content.words
    assert json.loads(json.dumps(values_of, allow_nan=False)) == json.loads(json.dumps(values_of))


def test_text_of_models_commands_nothing(tmp_path: Path) -> None:
    strange = run_folder(
        tmp_path / "b\x1b[2J<script>\u202e", SECOND, config=changed("tokenizer", name=HOSTILE)
    )
    found = compare(read_run(run_folder(tmp_path / "a", FIRST)), read_run(strange))
    lines, content = "\n".join(terminal(found)), page(found)
    assert "\x1b" not in lines and "\u202e" not in lines
    assert "script" not in Texts(content).tags and "\x1b" not in content and "\u202e" not in content
    assert "a wrote at 30" in lines and any(
        "a wrote at 30" in words for words in Texts(content).words
    )
    assert not re.search(r"(?:https?:)?//", re.sub(r'xmlns="[^"]*"', "", content))


@pytest.mark.usefixtures("takes_seconds")
def test_a_terminal_of_100_columns_is_wide_enough(tmp_path: Path) -> None:
    long = changed(
        "data", source={"format": "txt", "files": [f"{'x' * 70}{i}.txt" for i in range(9)]}
    )
    found = both(tmp_path / ("n" * 60), b={"config": long})
    assert max(map(len, terminal(found))) <= 100
    assert "x" * 70 + "8.txt" in page(found)


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = run_folder(tmp_path / "a", FIRST), run_folder(tmp_path / "b", SECOND)
    out = tmp_path / "page.html"
    monkeypatch.setattr(
        sys, "argv", ["compare", str(a), str(b), "--no-model", "--json", "--out", str(out)]
    )
    tool.main()
    assert json.loads(capsys.readouterr().out)["runs"][1]["lowest_loss"] == 2.25
    assert out.read_text().startswith("<!doctype html>")


def test_a_wrong_command_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = run_folder(tmp_path / "a", FIRST)
    for arguments, expected in (
        ([str(a), str(tmp_path / "nowhere")], "nowhere: no such folder"),
        ([str(a), str(a / step_name(10))], "one checkpoint, not a run's folder"),
        (
            [str(a), str(a), "--rows", "5"],
            "--rows: fewer than 6 rows give no interval, got 5; write 6 or more",
        ),
    ):
        monkeypatch.setattr(sys, "argv", ["compare", *arguments])
        with pytest.raises(tool.errors.UserError, match=expected):
            tool.main()


def test_a_run_whose_tokenizer_loses_text_has_no_bits_per_byte_to_compare(tmp_path: Path) -> None:
    other = {"tokenizer": {"name": "words", "sha256": "w"}}
    a = read_run(run_folder(tmp_path / "a", {0: 5.0, 10: 4.0}))
    b = read_run(run_folder(tmp_path / "b", {0: math.nan, 10: math.nan}, **other))
    for yardstick in (choose_yardstick(a, b), choose_yardstick(b, a)):
        assert yardstick.column is None
        assert "its tokenizer loses a part of the text" in yardstick.note


def test_bits_per_byte_are_not_judged_on_text_that_a_tokenizer_loses() -> None:
    backend = Tokenizer(models.WordLevel({"<eos>": 0, "<unk>": 1, "a": 2}, unk_token="<unk>"))
    words = FastTokenizer(backend.to_str(), "words", 0, 0)
    for tokenizer, passages, stores in (
        (words, ["b"], []),
        (ByteTokenizer(), ["b"], [Counts(text_tokens=9, unknown_tokens=1)]),
    ):
        with pytest.raises(ConfigError, match=r"the tokenizer of B loses \d+\.\d+% of it"):
            tool.require_whole(tool.Contender("B", None, tokenizer, None), stores, passages)
    tool.require_whole(tool.Contender("B", None, ByteTokenizer(), None), [Counts()], [" b"])
