"""Draw which room imports which: the mermaid graph of docs/ARCHITECTURE.md, from the real imports.

    python -m tools.draw_rooms            # rewrite the graph in the document
    python -m tools.draw_rooms --check    # exit with 6 if it is stale

An arrow points from a room to a room that it imports. An arrow that follows from two others is
omitted. Imports in functions and under TYPE_CHECKING count.
"""

from __future__ import annotations

import ast
import functools
from collections import defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from lm.commands import command_parser
from lm.system import errors
from lm.system.errors import CheckFailed, UserError

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs/ARCHITECTURE.md"
BEGIN, END = "<!-- rooms: begin -->\n", "<!-- rooms: end -->\n"
CORES = ("model", "data")
LABELS = {
    "model": "model.py",
    "data": "data.py",
    "shared": "lm/commands.py",
    "commands": "train.py, infer.py, ...",
    "tools": "tools/",
}

Edges = dict[str, set[str]]  # a room -> the rooms that it imports


def room(module: str) -> str | None:
    """Return the room of a module, None for `lm` itself and for modules that are not ours."""
    first, *rest = module.split(".")
    if first == "lm":
        name = rest[0] if rest else "__init__"
        return {"commands": "shared", "__init__": None}.get(name, name)
    if first in (*CORES, "tools"):
        return first
    return "commands" if (ROOT / f"{first}.py").is_file() else None


@functools.cache
def parsed(path: Path) -> ast.Module:
    """Return the syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(tree: ast.Module) -> Iterator[str]:
    """Yield every module that a file imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "lm":
            yield from (f"lm.{alias.name}" for alias in node.names if _is_room(alias.name))
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@functools.cache
def edges() -> Edges:
    """Return every import between rooms. The late `load` of lm/__init__.py does not count."""
    result: Edges = defaultdict(set)
    for path in [*ROOT.glob("*.py"), *(ROOT / "tools").glob("*.py"), *ROOT.glob("lm/**/*.py")]:
        source = room(".".join(path.relative_to(ROOT).with_suffix("").parts))
        if source is None:
            continue
        for name in imported(parsed(path)):
            target = room(name)
            if target is not None and target != source:
                result[source].add(target)
    return dict(result)


def reduced(every: Edges) -> Edges:
    """Remove each edge that follows from a longer way. The edges must not form a circle."""
    reached: Edges = {}
    for name in TopologicalSorter(every).static_order():
        direct = every.get(name, set())
        reached[name] = direct.union(*(reached[target] for target in direct))
    return {
        name: {
            target
            for target in direct
            if not any(target in reached[other] for other in direct - {target})
        }
        for name, direct in every.items()
    }


def floors(every: Edges) -> dict[str, int]:
    """Return the length of the longest way down from each room."""
    result: dict[str, int] = {}
    for name in TopologicalSorter(every).static_order():
        result[name] = max((result[target] + 1 for target in every.get(name, ())), default=0)
    return result


def drawing() -> str:
    """Return the mermaid block. Raises UserError if the rooms import each other in a circle."""
    try:
        floor = floors(edges())
    except CycleError as error:
        raise UserError(f"the rooms import each other in a circle: {error.args[1]}") from error
    order = sorted(floor, key=lambda name: (-floor[name], name))
    kept = reduced(edges())
    lines = [f'    {name}["{LABELS.get(name, name)}"]' for name in order]
    for name in order:
        lines += [f"    {name} --> {target}" for target in order if target in kept.get(name, ())]
    return "\n".join(["```mermaid", "graph TD", *lines, "```", ""])


def stale() -> bool:
    """Return whether the document's graph differs from the imports."""
    return _with_drawing() != DOCUMENT.read_text(encoding="utf-8")


def main() -> None:
    """Rewrite the graph.

    Raises:
        CheckFailed: --check was given, and the graph is stale.
    """
    parser = command_parser("python -m tools.draw_rooms", __doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 6 if stale")
    check = parser.parse_args().check
    if not stale():
        return
    name = DOCUMENT.relative_to(ROOT)
    if check:
        raise CheckFailed(f"{name}: stale, run python -m tools.draw_rooms")
    DOCUMENT.write_text(_with_drawing(), encoding="utf-8")
    print(f"{name}: written")


def _with_drawing() -> str:
    """Return the document with today's graph between its two markers."""
    text = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, marker, after = rest.partition(END)
    if not marker:
        raise UserError(f"{DOCUMENT}: {BEGIN.strip()} and {END.strip()} are missing; add them")
    return before + BEGIN + drawing() + END + after


def _is_room(name: str) -> bool:
    return (ROOT / "lm" / name).is_dir() or (ROOT / "lm" / f"{name}.py").is_file()


if __name__ == "__main__":
    errors.run(main)
