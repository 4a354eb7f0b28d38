"""The house's rules, read from the source: `python -m pytest tests/house/test_structure.py`.

Each rule is one test that collects all violations in the repository and prints them.
"""

from __future__ import annotations

import ast
import functools
import gc
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# The rooms, lower ones first. A room imports itself and lower rooms.
ORDER = [
    *("system", "config", "optim", "model", "tokenizer", "documents", "tokens", "surgery"),
    *("checkpoints", "runs", "display", "generation", "evaluation", "training", "ranking"),
    *("checks", "reports", "commands", "data", "root"),
]
ABOVE = ["tools", "tests", "benchmarks"]  # these may import everything in ORDER
ONE_BY_ONE = ("root", "tools")  # the commands do not import each other
SHARED = {("finetune", "train")}  # but these do: a fine-tuning is assembled as a pretraining is
LATE = ("lm", "lm.generation.load")  # the one exception: `from lm import load` is fetched late

# A learner reads these files to know how a model is trained.
CORE_PATH = [
    *("train.py", "model.py", "data.py", "lm/training/module.py"),
    *("lm/optim/loss.py", "lm/optim/optimizers.py", "lm/optim/schedule.py"),
]
LONGEST_CORE_PATH = 1300  # up to 1300 for a new feature, with the reason in the commit

# Importing these takes seconds. Help, listings and configuration errors do not wait for them.
HEAVY = {
    *("torch", "lightning", "transformers", "datasets", "tokenizers"),
    *("matplotlib", "tensorboard", "lm_eval"),
}
# These run code that is in the data they read, or can be made to.
RUN_WHAT_THEY_READ = {
    *("pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jinja2"),
}
YAML_READERS = {"load", "load_all", "full_load", "full_load_all", "unsafe_load", "unsafe_load_all"}

# Violations that are still there, by rule. The list may only shrink: a violation that is gone
# makes its test fail until its line here is gone too.
KNOWN: dict[str, list[str]] = {}


def module_name(path: Path) -> str:
    """Return the dotted name: lm/optim/loss.py -> lm.optim.loss, lm/__init__.py -> lm."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources() -> dict[str, Path]:
    """Return every module of the repository by its name."""
    folders = ("lm", "tools", "tests", "benchmarks")
    paths = [
        *ROOT.glob("*.py"),
        *(path for name in folders for path in (ROOT / name).rglob("*.py")),
    ]
    return {module_name(path): path for path in sorted(paths)}


SOURCES = sources()
SHIPPED = [name for name in SOURCES if name.split(".")[0] not in ("tests", "benchmarks")]


@functools.cache
def trees() -> dict[str, ast.Module]:
    """Parse every module. The garbage collector would search all the trees again for each file."""
    gc.disable()
    try:
        modules = {name: ast.parse(path.read_text("utf-8")) for name, path in SOURCES.items()}
        for tree in modules.values():
            nodes(tree)
        gc.freeze()
    finally:
        gc.enable()
    return modules


def parsed(name: str) -> ast.Module:
    return trees()[name]


@functools.cache
def nodes(tree: ast.Module) -> list[ast.AST]:
    return list(ast.walk(tree))


@functools.cache
def imports_anywhere(tree: ast.Module) -> list[str]:
    """Return all imports of a module: also those in functions and under TYPE_CHECKING."""
    return sorted(set(imported(nodes(tree))))


def room(name: str) -> str:
    """Return the room of a module: lm.optim.loss -> optim, model -> model, train -> root.

    `lm` itself is a room below all others.
    """
    first, *rest = name.split(".")
    if first == "lm":
        return rest[0] if rest else "lm"
    return first if first in (*ORDER, *ABOVE) else "root"


def imported(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Yield the dotted names that these nodes import.

    `from a import b` gives a and a.b, because b may be a module.
    """
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and _called(node).endswith(
            ("import_module", "__import__", "run_module", "run_path")
        ):
            yield _named_by(node)


def _named_by(call: ast.Call) -> str:
    """Return the module or file that a call loads, "?" if it is computed."""
    argument = call.args[0] if call.args else None
    return str(argument.value) if isinstance(argument, ast.Constant) else "?"


def _called(call: ast.Call) -> str:
    """Return the dotted name of the function, without what stands before a computed object."""
    names, node = [], call.func
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return ".".join([*names, node.id if isinstance(node, ast.Name) else "?"][::-1])


def of_ours(target: str) -> str | None:
    """Return the module of ours that an import loads: `from lm import load` fetches a room's."""
    return LATE[1] if target == "lm.load" else target if target in SOURCES else None


def wrong_imports(name: str, tree: ast.Module) -> list[str]:
    """Return the imports of a module that go against ORDER, wherever in the file they stand."""
    wrong = []
    for target in imports_anywhere(tree):
        module = of_ours(target)
        if target.startswith("."):
            wrong.append(f"{name} imports {target}: write the whole name")
        elif target == "?" and room(name) != "tests":
            wrong.append(f"{name} imports a module whose name is computed")
        elif target.split(".")[0] in ("tests", "conftest") and room(name) != "tests":
            wrong.append(f"{name} imports {target}")
        elif module and module != name and not may_import(name, module):
            wrong.append(f"{name} ({room(name)}) imports {module} ({room(module)})")
        elif target == "runpy" and room(name) != "tests":
            wrong.append(f"{name} uses runpy: import it instead")
    return wrong


def may_import(name: str, target: str) -> bool:
    importer, imported_room = room(name), room(target)
    if (name, target) in SHARED:
        return True
    if importer == imported_room:
        return importer not in ONE_BY_ONE or target in ABOVE
    if importer == "tests" or (name, target) == LATE or imported_room == "lm":
        return True
    if importer == "lm" or imported_room == "tests":
        return False
    floors = [*ORDER, *ABOVE]
    return floors.index(imported_room) < floors.index(importer)


def circles(imports: dict[str, set[str]]) -> list[str]:
    """Return the circles of modules that import each other, directly or through others."""
    reached = {name: _reachable(name, imports) for name in imports}
    rings = {
        frozenset({name} | {other for other in reached[name] if name in reached.get(other, ())})
        for name in imports
        if name in reached[name]
    }
    return sorted(" <-> ".join(sorted(ring)) for ring in rings)


def _reachable(name: str, imports: dict[str, set[str]]) -> set[str]:
    reached: set[str] = set()
    waiting = [name]
    while waiting:
        new = imports.get(waiting.pop(), set()) - reached
        reached |= new
        waiting += new
    return reached


def imports_of_ours(name: str, tree: ast.Module) -> set[str]:
    modules = {of_ours(target) for target in imports_anywhere(tree)}
    return {module for module in modules if module and SOURCES[module].stem != "__init__"}


def at_import(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """Yield the nodes that run when a module is imported.

    Functions do not, nor do blocks that only the type checker sees.
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
    """Return the ways in which importing a module brings in something heavy, as chains."""
    chains: list[str] = []
    waiting: list[tuple[str, ...]] = [(name,)]
    seen = {name}
    while waiting:
        chain = waiting.pop()
        for target in imported(at_import(parsed(chain[-1]).body)):
            if target.split(".")[0] in HEAVY:
                chains.append(" -> ".join([*chain, target]))
            elif target in SOURCES and target not in seen:
                seen.add(target)
                waiting.append((*chain, target))
    return chains


def forbidden(tree: ast.Module, foreign_files: bool = False) -> list[str]:
    """Return the calls and imports that this project never makes, as `line: call`.

    Args:
        tree: a module.
        foreign_files: the module may make hostile files and the files of other projects.
    """
    wrong = []
    for node in nodes(tree):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            wrong.append(f"{node.lineno}: bare except")
        elif isinstance(node, ast.Call):
            wrong += [f"{node.lineno}: {call}" for call in _wrong_call(node)]
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = set(imported([node]))
            never = names & {"torch.load", *(f"yaml.{load}" for load in YAML_READERS)}
            if not foreign_files:
                never |= {name for name in names if name.split(".")[0] in RUN_WHAT_THEY_READ}
            wrong += [f"{node.lineno}: imports {name}" for name in sorted(never)]
    return wrong


def _wrong_call(call: ast.Call) -> Iterator[str]:
    function = _called(call)
    keywords = {keyword.arg: getattr(keyword.value, "value", "?") for keyword in call.keywords}
    readers = [f"yaml.{load}" for load in YAML_READERS]
    if function in ("eval", "exec", "os.system", "os.popen", *readers):
        yield f"{function}()"
    if function == "torch.load" and keywords.get("weights_only") is not True:
        yield "torch.load() without weights_only=True"
    if function.endswith(".load_from_checkpoint"):
        yield "load_from_checkpoint()"
    for flag in ("shell", "trust_remote_code", "allow_pickle"):
        if keywords.get(flag, False) is not False:
            yield flag


def more_than_a_docstring(tree: ast.Module) -> bool:
    return not ast.get_docstring(tree) or len(tree.body) > 1


def links_out(links: dict[str, str]) -> list[str]:
    """Return the links that leave the tree; `links` has their targets by path, `/` between."""
    wrong = []
    for path, target in links.items():
        place = os.path.normpath(os.path.join(os.path.dirname(path), target))  # noqa: PTH118,PTH120
        if target.startswith("/") or place.split("/")[0] == "..":
            wrong.append(f"{path} -> {target}")
    return wrong


def check(rule: str, violations: Iterable[str]) -> None:
    """Fail with all violations of a rule that are new, and all in KNOWN that are gone."""
    present, known = set(violations), set(KNOWN.get(rule, []))
    new, gone = sorted(present - known), sorted(known - present)
    message = f"{len(new)} violations of `{rule}`:\n  " + "\n  ".join(new)
    assert not new, message
    message = f"`{rule}` holds there now, so remove these lines from KNOWN in {__file__}:\n  "
    assert not gone, message + "\n  ".join(gone)


def test_a_room_imports_only_itself_and_lower_rooms() -> None:
    check("order", (wrong for name in SOURCES for wrong in wrong_imports(name, parsed(name))))


def test_every_module_has_a_room() -> None:
    rooms = {room(name) for name in SOURCES} - {"lm"}
    assert rooms == {*ORDER, *ABOVE}
    loose = [n for n in SOURCES if n.count(".") == 1 and n.startswith("lm.")]
    assert {name for name in loose if SOURCES[name].stem != "__init__"} == {"lm.commands"}


def test_no_files_of_a_room_import_each_other_in_a_circle() -> None:
    check("circles", circles({name: imports_of_ours(name, parsed(name)) for name in SHIPPED}))


def test_commands_load_nothing_heavy_before_they_need_it() -> None:
    commands = [name for name in SHIPPED if room(name) in ("root", "tools", "commands")]
    check("heavy", (chain for name in commands for chain in heavy_imports(name)))


def test_the_schema_is_light() -> None:
    schema = [name for name in SHIPPED if name.startswith("lm.config")]
    check("light schema", (chain for name in schema for chain in heavy_imports(name)))


def test_every_module_says_what_it_is() -> None:
    named = [name for name in SOURCES if room(name) != "tests"]
    check("docstring", (name for name in named if not ast.get_docstring(parsed(name))))


def test_a_sign_is_a_docstring_and_nothing_else() -> None:
    """`lm` fetches `load` late and may do nothing else."""
    signs = [name for name, path in SOURCES.items() if path.stem == "__init__" and name != "lm"]
    check("signs", (name for name in signs if more_than_a_docstring(parsed(name))))


def test_nothing_runs_what_it_reads() -> None:
    violations = {
        name: forbidden(parsed(name), foreign_files=room(name) in ("tests", "benchmarks"))
        for name in SOURCES
    }
    check("forbidden", (f"{name}:{line}" for name, lines in violations.items() for line in lines))


def test_no_name_is_a_trap() -> None:
    """A root tokenize.py breaks `import torch`; a tokenizers.py hides the library; common
    .gitignore files swallow lib/ and parts/; utils and the like say nothing.
    """
    files = {"tokenize", "tokenizers", "utils", "helpers", "common", "misc"}
    folders = {"lib", "parts", "utils", "helpers", "common", "misc"}
    traps = [
        name
        for name in SOURCES
        if name.split(".")[-1] in files or folders & {*name.split(".")[:-1]}
    ]
    check("names", traps)


def test_all_code_that_is_shipped_is_type_checked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    commands = [f"{name}.py" for name in SHIPPED if "." not in name]
    files = {"lm", "tools", *commands} - {"lm.py", "tools.py"}
    assert sorted(project["tool"]["mypy"]["files"]) == sorted(files)


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.parametrize("flags", [["."], ["-e", "."]])
def test_pip_is_refused_with_what_to_do_instead(flags: list[str]) -> None:
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert "clone the repository and run `make smoke`" in done.stdout + done.stderr


def test_every_package_is_pinned_once() -> None:
    """requirements.txt pins what the project depends on; requirements-dev.txt pins the extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [name for names in project["optional-dependencies"].values() for name in names]
    assert pinned("requirements.txt") == packages(project["dependencies"])
    assert pinned("requirements-dev.txt") == packages(extras)


def packages(requirements: Iterable[str]) -> list[str]:
    names = [re.split(r"[<>=\[ ]", requirement)[0] for requirement in requirements]
    return sorted(name.lower().replace("_", "-") for name in names)


def pinned(name: str) -> list[str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if line and not line.startswith(("#", "-r "))]
    assert [line for line in lines if not re.match(r"[\w-]+==[\d.]+(  # |$)", line)] == []
    return packages(lines)


def test_the_core_path_is_short() -> None:
    lines = {
        name: len((ROOT / name).read_text(encoding="utf-8").splitlines()) for name in CORE_PATH
    }
    total = sum(lines.values())
    assert total <= LONGEST_CORE_PATH, f"{total} lines, at most {LONGEST_CORE_PATH}: {lines}"


def test_no_link_leaves_the_tree(tracked: dict[str, str]) -> None:
    links = [path for path, mode in tracked.items() if mode == "120000"]
    check("links", links_out({path: os.readlink(ROOT / path) for path in links}))  # noqa: PTH115


# The rest shows that the rules above can fail.

WRONG_IMPORTS = [
    ("lm.optim.loss", "import model"),
    ("lm.optim.loss", "from lm.tokens.plan import Plan"),
    ("lm.optim.loss", "def f():\n    from train import main"),
    ("lm.optim.loss", "if TYPE_CHECKING:\n    from model import Decoder"),
    ("lm.optim.loss", "from lm import load"),
    ("lm.optim.loss", "from tools import plot_curves"),
    ("lm.optim.loss", "from . import errors"),
    ("lm.optim.loss", "import importlib\nimportlib.import_module('model')"),
    ("lm.optim.loss", "import importlib\nimportlib.import_module(name)"),
    ("lm.optim.loss", "import tests.anything"),
    ("lm.system.errors", "from lm.config.schema.model import ModelConfig"),
    ("lm.reports.run", "import lm.commands"),
    ("lm.commands", "import data"),
    ("lm.commands", "import train"),
    ("lm", "from lm.optim import loss"),
    ("model", "import data"),
    ("model", "from lm.checkpoints.weights import read_weights"),
    ("data", "import train"),
    ("train", "from infer import main"),
    ("train", "import tools.plot_curves"),
    ("tools.plot_curves", "from tools.config_docs import main"),
    ("tools.plot_curves", "import runpy"),
    ("tools.plot_curves", "from runpy import run_path\nrun_path('train.py')"),
    ("train", "from tests import conftest"),
]
RIGHT_IMPORTS = [
    ("lm.optim.loss", "import torch\nfrom lm.system import errors"),
    ("lm.optim.loss", "from lm.config.schema.model import ModelConfig\nimport lm.optim.schedule"),
    ("lm", "from lm.generation.load import load"),
    ("lm.training.module", "from lm import load"),
    ("model", "from lm.optim.loss import token_losses"),
    ("lm.tokens.plan", "if TYPE_CHECKING:\n    from model import Decoder"),
    ("data", "from model import Decoder\nimport lm.commands"),
    ("train", "from model import Decoder\nfrom data import PackedDataModule"),
    ("train", "import lm.commands\nfrom lm.system import errors"),
    ("tools.plot_curves", "import model\nimport train\nfrom lm.display.curves import draw"),
    ("tests.training.test_train", "import train\nimport runpy\nfrom tests import conftest"),
]


def test_a_wrong_import_is_seen() -> None:
    missed = [case for case in WRONG_IMPORTS if not wrong_imports(case[0], ast.parse(case[1]))]
    assert missed == []


def test_a_right_import_is_let_through() -> None:
    assert [w for name, code in RIGHT_IMPORTS for w in wrong_imports(name, ast.parse(code))] == []


def test_a_circle_is_seen() -> None:
    assert circles({"a": {"b", "d"}, "b": {"c"}, "c": {"a"}, "d": set()}) == ["a <-> b <-> c"]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


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
RIGHT_CODE = """
model.eval()
torch.load(path, weights_only=True)
subprocess.run([command], shell=False)
json.load(file)
AutoTokenizer.from_pretrained(name, trust_remote_code=False)
try:
    pass
except OSError:
    pass
"""
RUNS_AT_IMPORT = """
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


def test_wrong_code_is_seen() -> None:
    assert [code for code in WRONG_CODE if not forbidden(ast.parse(code))] == []
    assert forbidden(ast.parse(RIGHT_CODE)) == []


def test_only_what_runs_at_import_counts_as_loaded() -> None:
    assert list(imported(at_import(ast.parse(RUNS_AT_IMPORT).body))) == ["a", "d", "f", "g", "h"]


def test_wrong_signs_and_links_are_seen() -> None:
    codes = ["", "import a", '"""A room."""\nimport a', '"""A room."""']
    assert [more_than_a_docstring(ast.parse(code)) for code in codes] == [True, True, True, False]
    links = {"a/b": "c", "a/c": "../d", "a/d": "../../e", "e": "/etc", "f": "a/../../g"}
    assert links_out(links) == ["a/d -> ../../e", "e -> /etc", "f -> a/../../g"]
