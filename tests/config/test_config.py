"""The configuration reader from outside: imports, exit codes, and any input at all."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.commands import load_config
from lm.config import keys
from lm.config.describe import describe, to_yaml
from lm.system.errors import CheckpointError, ConfigError
from tests.support.configs import BASE, BOTH, MIXTURE

ROOT = Path(__file__).resolve().parents[2]

# ---------------------------------------------------------------- the project


@pytest.mark.usefixtures("starts_processes")
def test_a_configuration_is_answered_without_anything_heavy(write) -> None:
    program = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from lm.commands import load_config
from lm.config import keys
from lm.config import describe
from lm.system import errors
loaded = load_config({str(Path(write(BASE)).resolve())!r})
describe.describe(loaded.config, loaded.origins), keys.help_text()
try:
    load_config("nothing.yaml")
except errors.ConfigError:
    pass
heavy = {{"torch", "numpy", "lightning", "transformers", "datasets", "matplotlib"}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.usefixtures("starts_processes")
def test_a_mistake_leaves_with_exit_code_2_and_no_traceback(write) -> None:
    program = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from lm.commands import load_config
from lm.system import errors
errors.run(lambda: load_config("c.yaml", sys.argv[1:]))
"""
    write(BASE + "  sed: 1\n")
    done = subprocess.run(
        [sys.executable, "-c", program, "--optimizer.lr", b"\xff"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "c.yaml:7: trainer.sed: unknown key, got 1, did you mean trainer.seed?",
        (
            r'command line: --optimizer.lr: a character that text does not have, got "\U0000DCFF",'
            r" remove it"
        ),
    ]


@pytest.mark.usefixtures("takes_seconds")
def test_no_key_without_a_reader() -> None:
    """Some code reads an attribute of each key's name.

    In the schema's own code, only properties count.
    """
    treats_all_alike = {
        ROOT / "lm/config/reader.py",
        ROOT / "lm/config/keys.py",
        ROOT / "lm/config/scalars.py",
        ROOT / "lm/config/yaml_reader.py",
        ROOT / "tools/config_docs.py",
    }
    files = {
        *ROOT.glob("*.py"),
        *ROOT.glob("lm/**/*.py"),
        *ROOT.glob("tools/**/*.py"),
    } - treats_all_alike
    read: set[str] = set()
    for file in files:
        scopes: list[ast.AST] = [ast.parse(file.read_text(encoding="utf-8"))]
        if file.is_relative_to(ROOT / "lm/config/schema"):
            functions = [node for node in ast.walk(scopes[0]) if isinstance(node, ast.FunctionDef)]
            scopes = [
                node
                for node in functions
                if any(
                    isinstance(by, ast.Name) and by.id == "property" for by in node.decorator_list
                )
            ]
        for node in (node for scope in scopes for node in ast.walk(scope)):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                read.add(node.attr)
    # row_keys.py and layouts.py take all columns as one table
    unread = sorted(
        key.name
        for key in keys.leaves()
        if key.short not in read and not key.section.endswith(".columns")
    )
    assert not unread, f"nothing reads {', '.join(unread)}"


# ---------------------------------------------------------------- anything at all

NASTY = [
    "", "null", "true", "no", "-5", "0", "1e400", "3e-5", ".nan", "010", "1:30", "fast", "''", '"',
    "[", "]", "[1, 2]", "{a: 1}", "{", "&a 1", "*a", "!!python/name:os.system x", "!x", "|", ">",
    "%", "@", "`", "? a", "- a", ": ", "# c", "\t", "\0", "\ufeff", "\u2028", "é", "\x85",
    "<<: {a: 1}", "---", "...", "%YAML 9.9", "%TAG ! x", '"\\ud800"', '"\\UFFFFFFFF"', '"\\x"',
    "9" * 5000, "a" * 200, "[" * 50, "txt", "hub",
]  # fmt: skip
PLACE = st.integers(0, 10_000)
MUTATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("insert"), PLACE, st.sampled_from(NASTY) | st.text(max_size=8)),
        st.tuples(st.just("value"), PLACE, st.sampled_from(NASTY)),
        st.tuples(
            st.just("key"), PLACE, st.sampled_from([*NASTY, "lr", "seed", "files", "n_layer"])
        ),
        st.tuples(st.just("cut"), PLACE, st.integers(1, 30)),
        st.tuples(st.just("drop"), PLACE, st.none()),
        st.tuples(st.just("double"), PLACE, st.none()),
        st.tuples(st.just("indent"), PLACE, st.sampled_from([" ", "  ", "    ", "\t"])),
    ),
    max_size=3,
)
FLAGS = st.lists(
    st.sampled_from([f"--{key.name}" for key in keys.keys().values()])
    | st.sampled_from([*NASTY, "--a\n", "--model.\x85"])
    | st.builds(
        "--{}={}".format,
        st.sampled_from([*keys.keys(), "a.b", "model.", ".model", "..", "data.txt.x", "a\n.b"]),
        st.sampled_from(NASTY),
    ),
    max_size=4,
)
JARGON = re.compile(
    r"Input should|Value error|Field required|pydantic|Extra inputs|block"
    r" mapping|<stream|dict_type|Traceback"
)


def mutated(text: str, mutations: list[tuple[str, int, Any]]) -> str:
    for kind, place, what in mutations:
        lines = text.split("\n")
        at, row = place % (len(text) + 1), place % len(lines)
        if kind == "insert":
            text = text[:at] + what + text[at:]
            continue
        if kind == "cut":
            text = text[:at] + text[at + what :]
            continue
        head, _, tail = lines[row].partition(":")
        changed = {
            "value": [f"{head}: {what}"],
            "key": [f"{head[: len(head) - len(head.lstrip())]}{what}:{tail}"],
            "drop": [],
        }
        lines[row : row + 1] = changed.get(
            kind, [lines[row]] * 2 if kind == "double" else [f"{what}{lines[row]}"]
        )
        text = "\n".join(lines)
    return text


@pytest.fixture(scope="module")
def one_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mutations") / "m.yaml"


@pytest.mark.usefixtures("takes_seconds")
@settings(max_examples=300, deadline=None)
@given(given=st.sampled_from([BOTH, MIXTURE]), long=st.booleans(), mutations=MUTATIONS, flags=FLAGS)
def test_anything_is_a_configuration_or_a_list_of_complaints(
    one_file: Path, given: str, long: bool, mutations: list[Any], flags: list[str]
) -> None:
    if long:
        one_file.write_text(given)
        given = to_yaml(load_config(one_file).config)
    text = mutated(given, mutations)
    one_file.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        loaded = load_config(one_file, flags)
    except ConfigError as error:
        for line in str(error).split("\n"):
            place = rf"{re.escape(str(one_file))}(:\d+)?"  # what is absent has no line
            assert re.fullmatch(rf"({place}|command line): \S.*", line), line
            assert line.isprintable() and not JARGON.search(line), line
    except CheckpointError as error:  # a base that does not exist
        assert "no such checkpoint" in str(error)
    else:
        one_file.write_text(describe(loaded.config, loaded.origins))
        assert load_config(one_file).config == loaded.config
