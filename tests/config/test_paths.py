"""Every key that is a path means what a shell would make of it: python -m pytest
tests/config/test_paths.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lm.config.reader import load
from lm.config.schema.config import Config
from lm.config.schema.section import flattened
from lm.system.errors import ConfigError

TEXT = """data:
  source: {format: txt, files: a.txt}
trainer: {max_steps: 500}
"""
CHAT = """data:
  source: {format: chat, files: a.jsonl}
  document_mask: true
trainer: {max_steps: 500}
finetune: {base: b}
"""
KEYS = [
    (TEXT, "checkpoint.directory"),
    (TEXT, "data.cache_dir"),
    (TEXT, "tokenizer.name"),
    (TEXT, "data.source.files"),
    (CHAT, "data.source.files"),
    (CHAT, "finetune.base"),
]


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("SCRATCH", "/scratch")


def value(text: str, key: str, written: str) -> Any:
    """Return what a key holds if a flag gives it."""
    Path("c.yaml").write_text(text)
    found = flattened(load("c.yaml", [f"--{key}", written]).config.model_dump())[key]
    return found[0] if isinstance(found, list) else found


@pytest.mark.parametrize(("text", "key"), KEYS)
def test_home_and_variables_are_replaced_in_every_key_that_is_a_path(text: str, key: str) -> None:
    assert value(text, key, "~/x") == "/home/ada/x"
    assert value(text, key, "$SCRATCH/x") == "/scratch/x"
    assert value(text, key, "x/~") == "x/~"
    with pytest.raises(ConfigError, match=rf"command line: --{key}.*: the variable \$NOWHERE is"):
        value(text, key, "$NOWHERE/x")


def test_also_inside_lists_and_the_place_is_named(tmp_path: Path) -> None:
    files = TEXT.replace("files: a.txt", "files: [a.txt, ~/b.txt, $NOWHERE]")
    Path("c.yaml").write_text(files)
    with pytest.raises(ConfigError) as caught:
        load("c.yaml")
    assert str(caught.value) == (
        "c.yaml:2: data.source.files[2]: the variable $NOWHERE is not set; set it, or write the"
        " whole path"
    )
    Path("c.yaml").write_text(files.replace(", $NOWHERE", ""))
    source = load("c.yaml").config.data.source
    assert source.files == ["a.txt", "/home/ada/b.txt"]  # type: ignore[union-attr]


def test_a_stored_configuration_may_name_what_this_machine_lacks() -> None:
    Path("c.yaml").write_text(TEXT)
    stored = load("c.yaml").config.model_dump(mode="json")
    stored["data"]["cache_dir"] = "$NOWHERE/x"
    assert Config.model_validate(stored).data.cache_dir == "$NOWHERE/x"
