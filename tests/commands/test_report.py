"""A report shows what the run's folder holds, and none of its text becomes markup: python -m pytest
tests/commands/test_report.py.
"""

from __future__ import annotations

import html
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lm.checkpoints.folder import Checkpoint, step_name
from lm.checkpoints.write import point, write_checkpoint, write_json
from lm.display.html import element, visible
from lm.reports.run import report
from lm.runs.metrics import MetricsLog
from lm.runs.record import read_run
from lm.system.locks import claim
from tests.display.test_html import HOSTILE, Read
from tools import report as command

ROOT = Path(__file__).parents[2]
# The hostile text without what a folder's name or a UTF-8 file cannot hold.
NASTY = HOSTILE.replace("/", "∕").replace("\ud800", "")
CONFIG = {
    "data": {"source": {"format": "txt", "files": ["a.txt"]}},
    "optimizer": {"lr": 0.003, "warmup_steps": 2, "grad_clip": 1.0},
    "trainer": {"max_steps": 40, "batch_size": 2},
    "logging": {"sample_prompt": "Once", "sample_temperature": 0.8},
}
TOKENIZER = {"name": "byte", "sha256": "ab" * 32, "vocab_size": 260}
META = {
    "format": 1,
    "model": {"vocab_size": 260, "n_layers": 2},
    "tokenizer": TOKENIZER,
    "n_parameters": 12_345,
    "device": "cpu",
    "threads": 2,
}


def write_run(
    folder: Path,
    losses: tuple[float, ...] = (5.5, 3.25, 3.5),
    sample: str = "Once upon",
    **meta: object,
) -> Path:
    """Write a run of 40 steps with three validations and two checkpoints."""
    folder.mkdir()
    log = MetricsLog(folder / "metrics.csv", resume_step=None)
    lines = []
    for i, (step, loss) in enumerate(zip((0, 20, 40), losses, strict=True)):
        sha256 = None
        if step:
            log.append(
                step,
                "train",
                loss=loss - 0.1,
                tokens=512 * step,
                seconds=step * 10,
                lr=1e-3,
                grad_norm=i,
                tokens_per_second=51.2,
            )
            content = {
                "config": CONFIG,
                **META,
                "step": step,
                "tokens": 512 * step,
                "seconds": step * 10.0,
                **meta,
            }
            sha256 = write_checkpoint(
                folder / step_name(step), {"meta.json": lambda path, c=content: write_json(path, c)}
            )["sha256"]
        log.append(
            step,
            "val",
            loss=loss,
            tokens=512 * step,
            seconds=step * 10,
            perplexity=math.exp(loss),
            bits_per_byte=loss / 2,
        )
        line = {
            "step": step,
            "manifest_sha256": sha256,
            "loss": loss,
            "perplexity": math.exp(loss),
            "bits_per_byte": loss / 2,
        }
        lines.append(line | {"tokens": 999, "seconds": 20.0, "sample": f"{sample} {step}"})
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    point(folder, "best.ckpt", folder / step_name(20))
    return folder


def page_of(folder: Path, **options: object) -> Read:
    return Read(report(read_run(folder), folder / "report.html", {}, **options))


def table_lines(content: str) -> list[list[str]]:
    """Return the cells of each line of all tables."""
    rows = re.findall(r"<tr>(.*?)</tr>", content, re.DOTALL)
    return [
        [
            html.unescape(re.sub(r"<[^>]*>", "", cell))
            for cell in re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL)
        ]
        for row in rows
    ]


@pytest.mark.usefixtures("takes_seconds")
def test_the_numbers_are_those_of_the_files(tmp_path):
    folder = write_run(tmp_path / "run")
    content = report(read_run(folder), folder / "report.html", {})
    read, lines = Read(content), table_lines(content)
    for said in (
        "3.2500",
        "1.6250",
        f"{math.exp(3.25):.2f}",
        "20,480 tokens",
        "12,345",
        "6 min 40 s",
        "ln 260 = 5.561",
        "999 tokens scored",
    ):
        assert said in read.text, said
    assert "The lowest validation loss was at step 20, step-00000020.ckpt." in read.text
    assert ["20 · lowest", "3.2500", "25.79", "1.6250", "999"] in lines and [
        "40",
        "3.5000",
        "33.12",
        "1.7500",
        "999",
    ] in lines
    [line] = [line for line in lines if line[0] == step_name(20)]
    assert (
        line[1:3] == ["10,240", "3.2500"]
        and line[-1] == Checkpoint(folder / step_name(20)).sha256[:12]
    )
    # One of the norms 1 and 2 is above the limit of 1.
    assert "1 of 2 logged steps exceeded it" in read.text
    assert ["validations and samples", "1 min", ""] in [[*line[:2], ""] for line in lines]
    assert ["tokens per second of training, overall", "51"] in lines


@pytest.mark.usefixtures("takes_seconds")
def test_it_needs_nothing_from_elsewhere(tmp_path):
    folder = write_run(tmp_path / "run", sample="see https://example.org/x.png")
    content = report(read_run(folder), folder / "report.html", {})
    read = Read(content)
    assert not re.search(r"@import|url\(|<script|<link|<img|<iframe|src=", content)
    links = [
        value
        for _, attributes in read.tags
        for name, value in attributes.items()
        if name in ("href", "src", "xlink:href", "action")
    ]
    assert links and all(re.fullmatch(r"#[a-z]+|[\w./%-]+", link) for link in links)
    inside = {attributes["id"] for _, attributes in read.tags if "id" in attributes}
    assert {link[1:] for link in links if link.startswith("#")} <= inside
    assert all((folder / link).exists() for link in links if not link.startswith("#"))
    assert "https://example.org/x.png" in read.text


@pytest.mark.usefixtures("takes_seconds")
def test_no_text_becomes_markup(tmp_path):
    """Every place in the files that can hold text holds hostile text."""
    deep = {
        "data": {"source": {"format": "txt", "files": [NASTY], NASTY: NASTY}},
        "logging": {"sample_prompt": NASTY},
        NASTY: {NASTY: NASTY},
    }
    parent = {"path": NASTY, "step": 3, "manifest_sha256": NASTY}
    extra = {
        "tokenizer": TOKENIZER | {"name": NASTY, "sha256": NASTY},
        "versions": {NASTY: NASTY},
        "revisions": {NASTY: NASTY},
    }
    extra |= {
        "device": NASTY,
        "precision": NASTY,
        "saved_at": NASTY,
        "data_sha256": NASTY,
        "code": {"commit": NASTY, "changed": True},
    }
    extra |= {
        "hardware": {"processor": NASTY, "gpu": NASTY, "system": NASTY},
        "adapters": {"n_parameters": 3, "method": NASTY, "base": {"path": NASTY}},
    }
    folder = write_run(tmp_path / NASTY[:60], sample=NASTY, config=deep, parent=parent, **extra)
    with (folder / "evaluations.jsonl").open("a") as file:
        file.write(
            json.dumps(
                {
                    "step": 44,
                    "loss": 3.0,
                    "sources": {NASTY: {"loss": 3.0, "tokens": 3}, "b": {"loss": 2.0, "tokens": 3}},
                }
            )
            + "\n"
        )
    (folder / "incidents.jsonl").write_text(
        json.dumps({"step": 3, "kind": NASTY, "message": NASTY}) + "\n"
    )
    (folder / f"error-{NASTY[:60]}.txt").write_text(NASTY)
    (folder / step_name(40) / "manifest.json").write_text("{" + NASTY)
    turns = [{"role": NASTY, "content": NASTY, "input": NASTY}] * 2
    each = {
        "prompt": turns,
        "reference": NASTY,
        "before": {"answer": NASTY, "ended": False},
        "after": {"answer": NASTY, "ended": True},
    }
    answers = {
        "before": {NASTY: NASTY},
        "after": {"confusion": {NASTY: {NASTY: 3}}},
        "notes": [NASTY],
        "conversations": [each],
    }
    (folder / "answers.json").write_text(json.dumps(answers))
    content = report(read_run(folder), folder / "report.html", {})
    read = Read(content)
    assert not {"script", "img", "link", "iframe"} & {tag for tag, _ in read.tags}
    assert not [name for _, attributes in read.tags for name in attributes if name.startswith("on")]
    assert all(character.isprintable() or character == "\n" for character in content)
    assert all(":" not in (attributes.get("href") or "") for _, attributes in read.tags)
    assert read.text.replace("↵\n", "↵").count(visible(NASTY)) > 25


@pytest.mark.usefixtures("takes_seconds")
def test_how_far_it_came(tmp_path):
    folder = write_run(tmp_path / "run")
    assert "Not finished: it stands at step 40 of 40" in page_of(folder).text
    with claim(folder):
        assert "Still going when this was written: step 40 of 40." in page_of(folder).text
    point(folder, "final.ckpt", folder / step_name(40))
    assert "Finished after step 40 of 40." in page_of(folder).text


@pytest.mark.usefixtures("takes_seconds")
def test_how_far_a_run_of_so_many_passes_came(tmp_path):
    trainer = {key: value for key, value in CONFIG["trainer"].items() if key != "max_steps"}
    config = CONFIG | {"trainer": trainer | {"max_epochs": 2.0}}
    folder = write_run(tmp_path / "run", config=config, epochs_per_step=0.04)
    assert "it stands at step 40 of 50" in page_of(folder).text
    unknown = write_run(tmp_path / "unknown", config=config, epochs_per_step=None)
    assert "it stands at step 40;" in page_of(unknown).text


@pytest.mark.usefixtures("takes_seconds")
@pytest.mark.parametrize(
    "name",
    [
        "metrics.csv",
        "evaluations.jsonl",
        f"{step_name(20)}/meta.json",
        f"{step_name(40)}/meta.json",
    ],
)
@pytest.mark.parametrize(
    "content",
    [
        None,
        "",
        "{",
        "[]\n" * 3,
        '{"format": 1, "step": 40, "model": {}, "tokenizer": {}, "config": {}}',
    ],
)
def test_what_is_missing_or_damaged_is_named_and_the_rest_is_shown(tmp_path, name, content):
    folder = write_run(tmp_path / "run")
    (folder / name).unlink() if content is None else (folder / name).write_text(content)
    read = page_of(folder)
    assert (
        "Missing or damaged" in read.text
        or (content or "").startswith('{"format')
        or (name, content) == ("evaluations.jsonl", "")
    )
    for part in ("Curves", "Configuration", "Checkpoints", "Time, speed and memory"):
        assert part in read.text


def test_only_a_configuration(tmp_path):
    (tmp_path / "config.yaml").write_text("trainer:\n  max_steps: 7\n")
    read = page_of(tmp_path)
    for said in (
        "not recorded",
        "There is no checkpoint",
        "Nothing to draw",
        "No text is recorded",
        "No checkpoint can be read",
        "max_steps",
    ):
        assert said in read.text, said


@pytest.mark.usefixtures("takes_seconds")
def test_samples_of_the_start_the_middle_and_the_end(tmp_path):
    folder = write_run(tmp_path / "run")
    with (folder / "evaluations.jsonl").open("a") as file:
        for step in range(50, 201, 10):
            file.write(json.dumps({"step": step, "loss": 3.0, "sample": f"Once {step}"}) + "\n")
    content = report(read_run(folder), folder / "report.html", {})
    shown, _, rest = content.partition("The other")
    headings = re.findall(r"Step (\d+)<span", shown)
    assert headings == ["20", "100", "200"] and len(re.findall(r"Step (\d+)<span", rest)) == 16
    assert "<b>Once</b> 100" in shown and "50% of the way, validation loss 3.0000" in shown


@pytest.mark.usefixtures("takes_seconds")
def test_differences_from_the_parent_and_from_the_defaults(tmp_path):
    base = write_run(tmp_path / "base")
    parent = {
        "path": "elsewhere/base/" + step_name(40),
        "step": 40,
        "manifest_sha256": Checkpoint(base / step_name(40)).sha256,
    }
    config = CONFIG | {
        "optimizer": CONFIG["optimizer"] | {"lr": 0.25},
        "trainer": {"max_steps": 40},
    }
    folder = write_run(tmp_path / "child", parent=parent, config=config)
    lines = table_lines(report(read_run(folder), folder / "report.html", {}))
    assert ["optimizer.lr", "0.003", "0.25"] in lines and ["trainer.batch_size", "2", "–"] in lines
    assert ["optimizer.lr ●", "0.001", "0.25"] in lines and [
        "optimizer.warmup_steps",
        "100",
        "2",
    ] in lines
    # A value that equals the default is no difference.
    assert not [
        line for line in lines if line[0] == "logging.sample_temperature" and len(line) == 3
    ]
    [line] = [line for line in lines if line[0] == "parent"]
    assert (
        "(step 40)" in line[1]
        and parent["manifest_sha256"] in line[1]
        and "not there" not in line[1]
    )
    shutil.rmtree(base)
    text = page_of(folder).text
    assert "The parent is no longer at its path" in text and "no longer there" in text


def test_the_parent_of_the_parent(tmp_path):
    def parent(folder: Path) -> dict[str, object]:
        return {
            "path": str(folder / step_name(40)),
            "step": 40,
            "manifest_sha256": Checkpoint(folder / step_name(40)).sha256,
        }

    first = write_run(tmp_path / "first")
    second = write_run(tmp_path / "second", parent=parent(first))
    third = write_run(tmp_path / "third", parent=parent(second))
    fourth = write_run(tmp_path / "fourth", parent=parent(third))
    fifth = write_run(tmp_path / "fifth", parent=parent(fourth))
    lines = table_lines(report(read_run(fifth), fifth / "report.html", {}))
    names = ["parent", "grandparent", "great-grandparent", "great-great-grandparent"]
    assert [line[0] for line in lines if line[0].endswith("parent")] == names


@pytest.mark.usefixtures("takes_seconds")
def test_before_and_after_fine_tuning(tmp_path):
    folder = write_run(tmp_path / "run")
    each = {"prompt": [{"role": "user", "content": "2 + 2?"}], "reference": "4"}
    each |= {
        "before": {"answer": "a film\nabout", "ended": False},
        "after": {"answer": "four", "ended": True},
    }
    facts = {
        "before": {"ended": 0.0, "answer_loss": 7.5, "accuracy": None},
        "after": {"ended": 0.954, "answer_loss": 3.0},
    }
    (folder / "answers.json").write_text(
        json.dumps(facts | {"notes": ["109 of 109"], "conversations": [each] * 12})
    )
    content = report(read_run(folder), folder / "report.html", {})
    lines = table_lines(content)
    assert ["answers that end by themselves, %", "0.0", "95.4", "+95.4"] in lines
    assert ["loss of the references, nats per token", "7.5000", "3.0000", "-60.0 %"] in lines
    assert ["before", "a film↵\nabout … (no end)"] in lines and lines.count(["after", "four"]) == 5
    assert "5 of 12 answers" in Read(content).text and "109 of 109" in Read(content).text


@pytest.mark.usefixtures("takes_seconds")
@pytest.mark.parametrize(
    "answers",
    [
        "[]",
        "{}",
        (
            '{"before": 3, "after": {"ended": "x"}, "notes": 3, "conversations": [3, {"after":'
            ' {"answer": "x"}}]}'
        ),
    ],
)
def test_answers_of_any_shape(tmp_path, answers):
    folder = write_run(tmp_path / "run")
    (folder / "answers.json").write_text(answers)
    assert "Curves" in page_of(folder).text


@pytest.mark.usefixtures("takes_seconds")
def test_energy_is_shown_for_a_given_power_only(tmp_path):
    folder = write_run(tmp_path / "run")  # 400 s of steps and 60 s of validations
    assert (
        "Energy: about 46 Wh, which is 360 W (--watts) times the 7 min 40 s of training and"
        " validation." in page_of(folder, watts=360.0).text
    )
    assert " Wh" not in page_of(folder).text


@pytest.mark.usefixtures("takes_seconds")
def test_losses_of_each_source(tmp_path):
    folder = write_run(tmp_path / "run")
    with (folder / "evaluations.jsonl").open("a") as file:
        for step, one in ((50, 3.0), (60, 3.5)):
            sources = {"one": {"loss": one, "tokens": 7}, "two": {"loss": 2.5, "tokens": 9}}
            file.write(json.dumps({"step": step, "loss": 3.0, "sources": sources}) + "\n")
    content = report(read_run(folder), folder / "report.html", {})
    assert ["one", "3.5000", "3.0000", "33.12", "7"] in table_lines(
        content
    ) and "At step 60, and the lowest" in content


@pytest.mark.usefixtures("takes_seconds")
def test_incidents_and_reports_are_shown(tmp_path):
    folder = write_run(tmp_path / "run")
    assert "Incidents" not in page_of(folder).text
    (folder / "incidents.jsonl").write_text(
        '{"step": 6, "kind": "spike", "message": "loss spike: 9.1"}\n'
    )
    (folder / "nonfinite-step-00000005").mkdir()
    content = report(read_run(folder), folder / "report.html", {})
    assert ["7", "spike", "loss spike: 9.1"] in table_lines(
        content
    ) and 'href="nonfinite-step-00000005"' in content


def test_links_lead_from_where_the_page_lies(tmp_path):
    folder = write_run(tmp_path / "a run")
    content = report(read_run(folder), tmp_path / "pages" / "x.html", {})
    assert f'href="../a%20run/{step_name(20)}"' in content


@pytest.mark.usefixtures("takes_seconds")
def test_thousands_of_validations_do_not_make_a_page_that_cannot_be_opened(tmp_path):
    folder = write_run(tmp_path / "run")
    with (folder / "evaluations.jsonl").open("a") as file:
        for step in range(50, 30_050, 10):
            loss = 1.5 if step == 1230 else 3.0
            file.write(
                json.dumps({"step": step, "loss": loss, "sample": "Once " + "word " * 80}) + "\n"
            )
    content = report(read_run(folder), folder / "report.html", {})
    assert len(content) < 400_000
    assert (
        "of 3,003 validations" in content
        and "The other 3,000, 200 of them, evenly chosen" in content
    )
    assert "1,230 · lowest" in [line[0] for line in table_lines(content)] and "30,040" in [
        line[0] for line in table_lines(content)
    ]


@pytest.mark.usefixtures("takes_seconds")
def test_of_preferences_no_loss_is_per_token(tmp_path):
    folder = write_run(
        tmp_path / "run", config=CONFIG | {"finetune": {"base": "b", "objective": "dpo"}}
    )
    text = page_of(folder).text
    assert (
        "nats per token" not in text
        and "Uniform guessing" not in text
        and "tokens scored" not in text
    )
    assert (
        "loss per pair of answers, the lowest; 999 pairs scored" in text
        and "Losses: loss per pair of answers." in text
    )


@pytest.mark.usefixtures("takes_seconds")
def test_names_stay_as_they_are_written(tmp_path):
    folder = write_run(tmp_path / "run", tokenizer=TOKENIZER | {"name": "Files/Own.json"})
    assert "2 layers, tokenizer Files/Own.json." in page_of(folder).text


def test_a_start_from_other_weights_is_no_start_from_random_ones(tmp_path):
    """Before the first checkpoint, only init-from.txt names the start."""
    (tmp_path / "config.yaml").write_text("trainer:\n  max_steps: 7\n")
    assert "trained from random weights" in page_of(tmp_path).text
    (tmp_path / "init-from.txt").write_text("runs/base/last.ckpt\n")
    assert "started from runs/base/last.ckpt" in page_of(tmp_path).text


def test_a_stream_is_read_at_the_commit_that_the_run_read(tmp_path, monkeypatch):
    import data
    from lm.generation import load
    from lm.system.errors import DataError

    folder = write_run(tmp_path / "run", revisions={"data.source": "c0ffee" * 7})
    seen = []

    def asked(config, tokenizer, say, resumed):
        seen.append(resumed)
        raise DataError("enough")

    monkeypatch.setattr(data, "PackedDataModule", asked)
    monkeypatch.setattr(load, "load", lambda path, device: (None, None, {}))
    assert "enough" in command.of_model(read_run(folder), without=False)[0]["surprise"]
    assert seen == [{"data.source": "c0ffee" * 7}]


# --- the command


def run_command(monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["report", *map(str, arguments)])
    command.main()


def test_a_trained_run_with_its_model(smoke_run, tmp_path, monkeypatch, capsys):
    """The report measures the model again and repeats the loss that the run recorded."""
    folder = shutil.copytree(smoke_run / "run", tmp_path / "run", symlinks=True)
    run_command(monkeypatch, folder)
    assert "written: " in capsys.readouterr().out
    content = (folder / "report.html").read_text()
    recorded = min(
        json.loads(line)["loss"] for line in (folder / "evaluations.jsonl").read_text().splitlines()
    )
    assert (
        f"{recorded:.4f} nats per token (the run itself recorded {recorded:.4f})"
        in Read(content).text
    )
    assert "Loss by position in the context" in content and 'title="' in content
    meta = read_run(folder).meta
    assert meta["hardware"]["cores"] >= 1 and "code" in meta
    for weights in (folder / "best.ckpt").glob("*.safetensors"):
        weights.write_bytes(b"cut")
    run_command(monkeypatch, folder, "--out", tmp_path / "other.html")
    assert "without the model: " in capsys.readouterr().out
    assert (
        "Not in this report, nor the loss by position: "
        in Read((tmp_path / "other.html").read_text()).text
    )


@pytest.mark.usefixtures("starts_processes")
def test_without_the_model_nothing_heavy_is_imported(tmp_path):
    folder = write_run(tmp_path / "run")
    code = (
        f"import sys; sys.argv = ['report', {str(folder)!r}, '--no-model']\nfrom tools import"
        " report\nreport.main()"
    )
    code += "\nprint('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "False" and (folder / "report.html").exists()


@pytest.mark.usefixtures("starts_processes")
def test_what_is_no_run_is_answered_in_one_line(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        done = subprocess.run(
            [sys.executable, "-m", "tools.report", path], cwd=ROOT, capture_output=True, text=True
        )
        assert (
            done.returncode == 5
            and done.stderr.count("\n") == 1
            and str(path) in done.stderr
            and done.stdout == ""
        )


def test_a_part_that_was_handed_in_stands_in_its_place(tmp_path):
    folder = write_run(tmp_path / "run")
    content = report(
        read_run(folder),
        folder / "report.html",
        {"positions": element("p", "POSITIONS")},
        style=".mine { color: red }",
    )
    assert (
        'id="positions"' in content
        and "POSITIONS" in content
        and ".mine" in content
        and 'id="surprise"' not in content
    )


# --- a ranking


def ranked(**changes: object) -> dict[str, object]:
    row = {
        "checkpoint": "step-20",
        "path": "x",
        "links": "best",
        "step": 20,
        "rank": 1,
        "rank_best": 1,
        "rank_worst": 2,
        "by": "accuracy",
    }
    rows = [
        row | {"accuracy": 0.625, "accuracy_low": 0.5, "accuracy_high": 0.75, "nothing": None},
        row | {"checkpoint": NASTY, "accuracy": 0.5},
    ]
    pairs = [{"words": f"pair {i} cannot be told apart on 40 cases"} for i in range(8)]
    return {
        "sets": ["smoke"],
        "by": "accuracy",
        "cases": 40,
        "about": "a set",
        "checkpoints": rows,
        "pairs": pairs,
        "notes": [NASTY],
    } | changes


@pytest.mark.usefixtures("takes_seconds")
def test_a_ranking_is_shown(tmp_path):
    folder = write_run(tmp_path / "run")
    facts = {
        "rankings": [ranked(), ranked(checkpoints=3)],
        "failed": [{"name": "step-9", "reason": NASTY}],
        "notes": ["95 % together"],
    }
    (folder / "ranking.json").write_text(json.dumps(facts))
    content = report(read_run(folder), folder / "report.html", {})
    lines = table_lines(content)
    assert ["checkpoint", "rank", "step", "accuracy"] in lines and [
        "step-20",
        "1–2",
        "20",
        "0.625 [0.5, 0.75]",
    ] in lines
    text = Read(content).text
    assert (
        all(f"pair {i} cannot be told apart on 40 cases" in text for i in range(8))
        and "The other 2 pairs" in text
    )
    assert "not ranked: step-9" in text and "95 % together" in text and "<script" not in content


@pytest.mark.usefixtures("takes_seconds")
@pytest.mark.parametrize(
    "content",
    ["3", "[]", '{"rankings": 3}', '{"rankings": [{"checkpoints": [{}]}], "failed": [{}]}'],
)
def test_rankings_of_any_shape(tmp_path, content):
    folder = write_run(tmp_path / "run")
    (folder / "ranking.json").write_text(content)
    assert "Curves" in page_of(folder).text
