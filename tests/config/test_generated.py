"""The reference, the JSON Schema, and the configurations in this repository."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest

from lm.commands import load_config
from lm.config import keys
from lm.config.describe import to_yaml
from lm.config.reader import Loaded
from lm.config.schema.model import ModelConfig
from lm.config.yaml_reader import read_file
from lm.system.errors import CheckFailed
from tests.support.configs import BASE, BOTH, MIXTURE, READ, complaints, editor
from tools import config_docs

ROOT = Path(__file__).resolve().parents[2]


def test_generated_files_are_fresh() -> None:
    for path, text in config_docs.generated().items():
        assert path.read_text(encoding="utf-8") == text, (
            f"{path.name} is stale: run python -m tools.config_docs"
        )


def test_check_names_what_is_stale_and_writing_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(config_docs, "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()

    def main(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["config_docs", *arguments])
        config_docs.main()

    with pytest.raises(
        CheckFailed, match=r"^docs/CONFIG_REFERENCE\.md, docs/config\.schema\.json:"
    ):
        main("--check")
    assert not list((tmp_path / "docs").iterdir())
    main()
    main("--check")
    (tmp_path / "docs" / "CONFIG_REFERENCE.md").write_text("old")
    capsys.readouterr()
    message = r"^docs/CONFIG_REFERENCE\.md: stale, run python -m tools\.config_docs$"
    with pytest.raises(CheckFailed, match=message):
        main("--check")
    assert capsys.readouterr().out == ""
    assert sorted(path.name for path in (tmp_path / "docs").iterdir()) == [
        "CONFIG_REFERENCE.md",
        "config.schema.json",
    ]


def test_the_reference_shows_true_examples(write) -> None:
    text = config_docs.reference()
    assert (
        load_config(write(text.split("```yaml\n")[1].split("```")[0])).config.trainer.max_steps
        == 500
    )
    for line in re.findall(r"^(?:config\.yaml:\d+|command line): (.*)$", text, re.MULTILINE):
        said = complaints(
            write(BASE + "  lr: 3e-5\n  bf16: true\noptimizer: {lr: fast}"),
            "--trainer.max_steps",
            "-3",
        )
        assert any(line.removeprefix("--") in complaint for complaint in said), line
    rows = re.findall(r"^\| `(\S+)` \| ([^|]+) \|", text, re.MULTILINE)
    assert len({*rows}) == len(rows)
    # These repeat the keys of data.source.
    elsewhere = ("data.validation.", "data.source.parts[].source.")
    shown = [
        key for name, key in keys.keys().items() if "." in name and not name.startswith(elsewhere)
    ]
    assert [name for name, _ in rows] == [key.name.partition(".")[2] for key in shown]
    kinds = dict(rows)
    assert kinds["source"] == kinds["source.filter"] == "a section"
    assert (
        kinds["source.parts"]
        == "a list of 1 to 100 sections with weight and source, each after `- `"
    )
    assert kinds["source.parts[].source"] == "a section with the keys of `source`, but no mixture"
    assert kinds["validation"] == "a section with the keys of `source`, but no mixture, or null"
    assert "Which documents are dropped. The log counts them. (every format but mixture) |" in text


def test_the_json_schema_accepts_what_the_reader_accepts(write) -> None:
    written = [to_yaml(load_config(write(text)).config) for text in (BASE, BOTH, MIXTURE)]
    for text in (BASE, BOTH, MIXTURE, *written, *(BASE + text for text, _, _ in READ)):
        assert editor(text) == []


def test_the_json_schema_explains_every_key() -> None:
    schema = json.loads((ROOT / "docs/config.schema.json").read_text(encoding="utf-8"))
    assert schema["$schema"] == "http://json-schema.org/draft-07/schema#"
    assert "prefixItems" not in json.dumps(schema)
    for node in (schema, *schema["$defs"].values()):
        assert node["additionalProperties"] is False
        assert all(child.get("description") for child in node["properties"].values())


SHIPPED = [*sorted(ROOT.glob("*.yaml")), *sorted(ROOT.glob("configs/*.yaml"))]


def check_shipped(path: Path) -> Loaded:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    named = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", first)
    assert named, f"{path.name}: the first line names no schema: {first}"
    assert (path.parent / named[1]).resolve() == ROOT / "docs/config.schema.json"
    assert editor(path.read_text(encoding="utf-8")) == []
    return load_config(path)


@pytest.mark.usefixtures("takes_seconds")
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_yaml_loads_and_names_its_schema(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A fine-tuning configuration names a checkpoint that another run makes first.
    monkeypatch.setattr(
        "lm.checkpoints.base.filled",
        lambda config: config.model_dump() | {"model": ModelConfig(vocab_size=260).model_dump()},
    )
    loaded = check_shipped(path)
    assert load_config(path).config == loaded.config
    assert read_file(path).value


def test_the_check_of_shipped_files_can_fail(tmp_path: Path) -> None:
    good = tmp_path / "c.yaml"
    schema = os.path.relpath(ROOT / "docs/config.schema.json", tmp_path.resolve())
    good.write_text(f"# yaml-language-server: $schema={schema}\n{BASE}")
    check_shipped(good)
    for first in ("", "# yaml-language-server: $schema=docs/config.schema.json\n"):
        good.write_text(first + BASE)
        with pytest.raises(AssertionError):
            check_shipped(good)
