"""The house's rules, read from the source: python -m pytest tests/house/test_structure.py.

Who imports whom, how long things are, what is never done.

lm/*   <-   model.py, data.py (neither imports the other)   <-   root commands and tools/*   <-   tests, benchmarks
"""

from __future__ import annotations

import ast
import fnmatch
import functools
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORES = ("model", "data")
LONGEST = {"model": 550, "data": 500, "leaf": 250, "tool": 150, "command": 150}
LONGEST_FUNCTION = 60
MAY_IMPORT = {
    "leaf": {"leaf"},
    "core": {"leaf"},
    "command": {"leaf", "core"},
    "tool": {"leaf", "core"},
    "benchmark": {"leaf", "core", "command", "tool", "benchmark"},
    "test": {"leaf", "core", "command", "tool", "benchmark", "test"},
}
# What takes seconds to load, and so waits until help, listings and configuration errors are
# answered.
HEAVY = {
    "torch",
    "lightning",
    "transformers",
    "datasets",
    "tokenizers",
    "matplotlib",
    "tensorboard",
    "lm_eval",
}
# They run code that is in the data they read, or are made to.
RUN_WHAT_THEY_READ = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
    "jinja2",
}
YAML_READERS = {"load", "load_all", "full_load", "full_load_all", "unsafe_load", "unsafe_load_all"}


def module_name(path: Path) -> str:
    """lm/config/schema/config.py -> lm.config.schema.config."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources() -> dict[str, Path]:
    """Every module of the repository, by name."""
    found = [
        *ROOT.glob("*.py"),
        *(
            path
            for folder in ("lm", "tools", "tests", "benchmarks")
            for path in (ROOT / folder).rglob("*.py")
        ),
    ]
    return {module_name(path): path for path in found}


SOURCES = sources()
SHIPPED = sorted(name for name in SOURCES if name.split(".")[0] not in ("tests", "benchmarks"))


def kind(name: str) -> str:
    first = name.split(".")[0]
    if first in CORES:
        return "core"
    return {"lm": "leaf", "tools": "tool", "tests": "test", "benchmarks": "benchmark"}.get(
        first, "command"
    )


@functools.cache
def parsed(name: str) -> ast.Module:
    return ast.parse(SOURCES[name].read_text(encoding="utf-8"))


def imported(nodes: Iterator[ast.AST]) -> Iterator[str]:
    """Dotted names that these statements import; `from a import b` gives a and a.b, since b may be
    a module.
    """
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")
            yield from (
                f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names
            )
        elif isinstance(node, ast.Call) and _called(node) in (
            "importlib.import_module",
            "import_module",
            "__import__",
        ):
            yield from (
                str(argument.value)
                for argument in node.args[:1]
                if isinstance(argument, ast.Constant)
            )


def wrong_imports(name: str, tree: ast.Module) -> list[str]:
    """The imports of a module that go against the direction."""
    wrong = []
    for target in imported(ast.walk(tree)):
        if target.startswith("."):
            wrong.append(f"{name} imports {target}: relative, write the whole name")
        elif target in SOURCES and target != name and not _may_import(name, target):
            wrong.append(f"{name} ({kind(name)}) imports {target} ({kind(target)})")
        elif target.split(".")[0] in ("tests", "conftest") and kind(name) != "test":
            wrong.append(f"{name} imports {target}")
    return wrong


def _may_import(name: str, target: str) -> bool:
    package = target in ("lm", "tools", "tests")  # comes along with everything in it
    return kind(target) in MAY_IMPORT[kind(name)] or (package and kind(target) == kind(name))


def at_import(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """The nodes that run when a module is imported: not what is in functions, nor what only the
    type checker sees.
    """
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.dump(statement.test):
            yield from at_import(statement.orelse)
        elif inner := [
            getattr(statement, field)
            for field in ("body", "orelse", "finalbody")
            if getattr(statement, field, None)
        ]:
            for statements in inner:
                yield from at_import(statements)
            for handler in getattr(statement, "handlers", []):
                yield from at_import(handler.body)
        else:
            yield from ast.walk(statement)


def heavy_imports(name: str) -> list[str]:
    """How importing a module brings in something heavy, as chains of modules."""
    chains: list[str] = []
    waiting: list[tuple[str, ...]] = [(name,)]
    seen = {name}
    while waiting:
        chain = waiting.pop()
        for target in imported(at_import(parsed(chain[-1]).body)):
            if target in HEAVY:
                chains.append(" -> ".join([*chain, target]))
            elif target in SOURCES and target not in seen:
                seen.add(target)
                waiting.append((*chain, target))
    return chains


def forbidden(tree: ast.Module, foreign_files: bool = False) -> list[str]:
    """What is never done, as `line: what`. `foreign_files`: hostile files and other projects' files
    may be made here.
    """
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            found.append(f"{node.lineno}: bare except")
        elif isinstance(node, ast.Call):
            found += [f"{node.lineno}: {what}" for what in _wrong_call(node)]
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = set(imported(iter([node])))
            found += [
                f"{node.lineno}: imports {name}"
                for name in sorted(
                    names & {"torch.load", *(f"yaml.{load}" for load in YAML_READERS)}
                )
            ]
            if not foreign_files:
                found += [
                    f"{node.lineno}: imports {name}"
                    for name in sorted(names)
                    if name.split(".")[0] in RUN_WHAT_THEY_READ
                ]
    return found


def _wrong_call(call: ast.Call) -> Iterator[str]:
    function = _called(call)
    keywords = {keyword.arg: getattr(keyword.value, "value", "?") for keyword in call.keywords}
    if function in (
        "eval",
        "exec",
        "os.system",
        "os.popen",
        *(f"yaml.{load}" for load in YAML_READERS),
    ):
        yield f"{function}()"
    if function == "torch.load" and keywords.get("weights_only") is not True:
        yield "torch.load() without weights_only=True"
    if function.endswith(".load_from_checkpoint"):
        yield "load_from_checkpoint()"
    yield from (
        f"{flag}"
        for flag in ("shell", "trust_remote_code", "allow_pickle")
        if keywords.get(flag, False) is not False
    )


def _called(call: ast.Call) -> str:
    return ast.unparse(call.func)


def too_long(tree: ast.Module) -> list[str]:
    functions = [
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    return [
        f"{name}: {length} lines" for name, length in lengths.items() if length > LONGEST_FUNCTION
    ]


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_imports_go_one_way(name: str) -> None:
    assert wrong_imports(name, parsed(name)) == []


@pytest.mark.parametrize("name", [name for name in SHIPPED if kind(name) in ("command", "tool")])
def test_commands_load_nothing_heavy_before_they_need_it(name: str) -> None:
    assert heavy_imports(name) == []


@pytest.mark.parametrize(
    "name", [name for name in SHIPPED if name.startswith("lm.config.schema.config")]
)
def test_the_schema_is_light(name: str) -> None:
    assert heavy_imports(name) == []


@pytest.mark.parametrize("name", SHIPPED)
def test_files_fit_in_a_head(name: str) -> None:
    lines = len(SOURCES[name].read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST.get(name, LONGEST.get(kind(name), 0))


@pytest.mark.parametrize("name", sorted(name for name in SOURCES if kind(name) != "test"))
def test_functions_fit_on_a_screen(name: str) -> None:
    assert too_long(parsed(name)) == []


@pytest.mark.parametrize("name", sorted(name for name in SOURCES if kind(name) != "test"))
def test_every_module_says_what_it_is(name: str) -> None:
    assert ast.get_docstring(parsed(name))


def test_every_leaf_has_a_place_in_the_architecture() -> None:
    named = re.findall(
        r"`(lm/[\w*]+\.py)`", (ROOT / "docs/ARCHITECTURE.md").read_text(encoding="utf-8")
    )
    leaves = [
        f"lm/{path.name}" for path in (ROOT / "lm").glob("*.py") if path.name != "__init__.py"
    ]
    assert [leaf for leaf in leaves if not any(fnmatch.fnmatch(leaf, name) for name in named)] == []


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_nothing_runs_what_it_reads(name: str) -> None:
    assert forbidden(parsed(name), foreign_files=kind(name) in ("test", "benchmark")) == []


def test_pyproject_lists_what_there_is() -> None:
    """A flat layout is not found by setuptools: a module that is not listed is missing in an
    installation.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed, checked = project["tool"]["setuptools"], project["tool"]["mypy"]["files"]
    assert sorted(listed["py-modules"]) == sorted(
        name for name in SHIPPED if kind(name) in ("core", "command")
    )
    folders = {path.parent for name, path in SOURCES.items() if kind(name) in ("leaf", "tool")}
    assert sorted(listed["packages"]) == sorted(
        module_name(folder / "__init__.py") for folder in folders
    )
    assert all((folder / "__init__.py").exists() for folder in folders)
    assert sorted(checked) == sorted(
        [*(f"{name}.py" for name in listed["py-modules"]), "lm", "tools"]
    )


def test_no_name_is_a_trap() -> None:
    """A root tokenize.py breaks `import torch`, a tokenizers.py hides the library; common
    .gitignore files swallow lib/ and parts/.
    """
    assert not {"tokenize", "tokenizers"} & {name.split(".")[-1] for name in SOURCES}
    assert not [folder for folder in ("lib", "parts") for _ in ROOT.glob(folder)]
    assert not [
        name for name in SOURCES if name.split(".")[-1] in ("utils", "helpers", "common", "misc")
    ]


WRONG_IMPORTS = [
    ("lm.optim.loss", "import model"),
    ("lm.optim.loss", "from data import PackedDataModule"),
    ("lm.optim.loss", "def f():\n    from train import main"),
    ("lm.optim.loss", "from tools import plot_curves"),
    ("lm.optim.loss", "from . import errors"),
    ("lm.optim.loss", "import importlib\nimportlib.import_module('model')"),
    ("model", "import data"),
    ("data", "from model import Decoder"),
    ("data", "import train"),
    ("train", "from infer import main"),
    ("train", "import tools.plot_curves"),
    ("tools.plot_curves", "import list"),
    ("tools.plot_curves", "from tools.config_docs import main"),
    ("train", "from tests import conftest"),
    ("lm.optim.loss", "import tests.anything"),
]


@pytest.mark.parametrize(("name", "code"), WRONG_IMPORTS)
def test_a_wrong_import_is_seen(name: str, code: str) -> None:
    assert wrong_imports(name, ast.parse(code))


RIGHT_IMPORTS = [
    (
        "lm.optim.loss",
        (
            "import torch\nfrom lm.system import errors\nfrom lm.config.schema.model import"
            " ModelConfig"
        ),
    ),
    ("model", "from lm.optim.loss import token_losses"),
    (
        "train",
        (
            "from model import Decoder\nfrom data import PackedDataModule\nfrom lm.system import"
            " errors"
        ),
    ),
    ("tools.plot_curves", "import model\nfrom lm.display.curves import draw"),
    ("tests.training.test_train", "import train\nfrom tests import conftest"),
]


@pytest.mark.parametrize(("name", "code"), RIGHT_IMPORTS)
def test_a_right_import_is_let_through(name: str, code: str) -> None:
    assert wrong_imports(name, ast.parse(code)) == []


WRONG_CODE = [
    "try:\n    pass\nexcept:\n    pass",
    "import pickle",
    "def f():\n    from pickle import loads",
    "import torch\ntorch.load(path)",
    "torch.load(path, weights_only=False)",
    "torch.load(path, weights_only=flag)",
    "from torch import load",
    "eval(text)",
    "exec(text)",
    "yaml.load(text, yaml.SafeLoader)",
    "from yaml import unsafe_load",
    "AutoModel.from_pretrained(name, trust_remote_code=True)",
    "AutoModel.from_pretrained(name, trust_remote_code=flag)",
    "subprocess.run(command, shell=True)",
    "os.system(command)",
    "numpy.load(path, allow_pickle=True)",
    "LanguageModel.load_from_checkpoint(path)",
    "from jinja2 import Template",
]


@pytest.mark.parametrize("code", WRONG_CODE)
def test_wrong_code_is_seen(code: str) -> None:
    assert len(forbidden(ast.parse(code))) >= 1


def test_right_code_is_let_through() -> None:
    code = (
        "model.eval()\ntorch.load(path, weights_only=True)\nsubprocess.run([command],"
        " shell=False)\njson.load(file)"
    )
    code += (
        "\nAutoTokenizer.from_pretrained(name, trust_remote_code=False)\ntry:\n    pass\nexcept"
        " OSError:\n    pass"
    )
    assert forbidden(ast.parse(code)) == []


def test_a_long_function_is_seen() -> None:
    assert too_long(ast.parse("def f():\n" + "    pass\n" * 59)) == []
    assert too_long(ast.parse("class A:\n  def f(self):\n" + "    pass\n" * 60)) == ["f: 61 lines"]


def test_only_what_runs_at_import_counts_as_loaded() -> None:
    code = """
import a
if TYPE_CHECKING:
    import b
def f():
    import c
class D:
    import d
    def g(self):
        import e
try:
    import f
except ImportError:
    import g
with x:
    import h
"""
    assert list(imported(at_import(ast.parse(code).body))) == ["a", "d", "f", "g", "h"]
