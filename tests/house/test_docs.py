"""README, docs and the comments of configurations name only what exists: files, names, commands.

Each test collects all violations and prints them.
"""

from __future__ import annotations

import ast
import functools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from lm.config.keys import keys
from tools import draw_rooms

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
CONFIGURATIONS = sorted([*ROOT.glob("config*.yaml"), *ROOT.glob("c*/*.yaml")])
# This section is about files and names of other projects.
ELSEWHERE = "## The same promises in other projects"

FENCE = re.compile(r"^```.*?^```$", re.M | re.S)
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
# A path below one of our folders, or a Python file anywhere.
PATH = re.compile(
    r"(?:lm|tools|tests|docs|configs|cases|benchmarks|data)/[\w*./-]*|[\w*./-]+\.py"
    r"|(?:README|CONTRIBUTING|[A-Z_]{4,})\.md|config\w*\.yaml|requirements[\w-]*\.txt|Makefile"
)
IDENTIFIER = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*(?:\(\))?")
LISTED = r"`[A-Za-z_][\w.]*`(?:\(\))?(?:(?:, and |, | and )`[A-Za-z_][\w.]*`)*"
COMMAND = re.compile(
    r"(?:^|[\s;|(])(?:\S*python3? (?P<rest>.*)|(?:torchrun|srun) .*?(?P<script>\w+\.py .*))$"
)
# Flags of torchrun, srun, sbatch and pip, and of another project.
FLAGS_OF_OTHERS = {
    "--shm-size",
    "--kill-on-bad-exit", "--version", "--section.key", "--master-addr", "--master-port",
    "--node-rank", "--ntasks",
    "--rdzv-endpoint", "--shutdown-timeout", "--signals-to-handle", "--long",
}  # fmt: skip
# LEARNING_PATH.md shows how this mistake is reported.
MISTAKES = {"--trainer.max_stepz"}
MESSAGES_OF_SYSTEMS = {
    "", "Killed", "No space left on device", "ModuleNotFoundError: No module named 'pydantic'",
}  # fmt: skip
# Names of Python, torch, Lightning, transformers, systems and file formats in the docs.
NAMES_OF_OTHERS = {"ckpt_path", "NCCL_SOCKET_IFNAME", "MALLOC_MMAP_THRESHOLD_"}


def prose(page: Path) -> str:
    """Return a page without its blocks of code and without the section about other projects."""
    return FENCE.sub("", page.read_text(encoding="utf-8").split(ELSEWHERE)[0])


def located(page: Path, part: str) -> str:
    """Return `page:line` of the first occurrence of a part of a page."""
    text = page.read_text(encoding="utf-8")
    return f"{page.relative_to(ROOT)}:{text[: text.find(part)].count(chr(10)) + 1}"


def slug(heading: str) -> str:
    """Return the anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def test_links_lead_somewhere() -> None:
    wrong = []
    for page in PAGES:
        for target in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
            if re.match(r"https?:", target):
                continue
            file, _, anchor = target.partition("#")
            goal = (page.parent / file).resolve() if file else page
            headings = re.findall(r"^#+ (.*)$", goal.read_text(), re.M) if anchor else []
            if not goal.exists() or (anchor and anchor not in map(slug, headings)):
                wrong.append(f"{located(page, target)}: {target}")
    assert not wrong, "\n".join(wrong)


def test_paths_exist() -> None:
    """Paths of RELIABILITY.md start in tests/; placeholders such as tools/NAME.py are skipped."""
    wrong = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8").split(ELSEWHERE)[0]
        for span in [*SPAN.findall(prose(page)), *re.findall(r"\S+", "".join(FENCE.findall(text)))]:
            path = span.strip("(),:;\"'")
            if not PATH.fullmatch(path) or "NAME" in path:
                continue
            if path == "__init__.py" or any(any(f.glob(path)) for f in (ROOT, ROOT / "tests")):
                continue
            wrong.append(f"{located(page, span)}: {path}")
    assert not wrong, "\n".join(sorted(set(wrong)))


@functools.cache
def definitions(file: Path) -> frozenset[str]:
    """Return the names that a file defines: classes, functions, methods, constants, fields."""
    names: set[str] = set()

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.ClassDef, ast.FunctionDef)):
                names.update((child.name, prefix + child.name))
                visit(child, f"{prefix}{child.name}.")
            elif isinstance(child, ast.Assign):
                names.update(target.id for target in child.targets if isinstance(target, ast.Name))
            elif isinstance(child, ast.AnnAssign) and isinstance(child.target, ast.Name):
                names.update((child.target.id, prefix + child.target.id))
            else:
                visit(child, prefix)

    visit(draw_rooms.parsed(file), "")
    return frozenset(names)


def places(text: str) -> Iterator[tuple[str, str]]:
    """Yield (path, name) for every name that a text puts into a file.

    The forms are `name` in `file.py`, `file.py`: `name`, `file.py` (`name`), and in diagrams
    file.py: name, name.
    """
    flat = " ".join(FENCE.sub("", text).split())
    for form in (
        rf"(?P<names>{LISTED}) in `(?P<path>[\w/.]+\.py)`",
        rf"`(?P<path>[\w/.]+\.py)`(?:: | \(| )(?P<names>{LISTED})",
    ):
        for match in re.finditer(form, flat):
            for name in SPAN.findall(match["names"]):
                yield match["path"], name
    for block in FENCE.findall(text):
        for path, names in re.findall(r"(\w[\w/]*\.py): (\w[\w.]*(?:, \w[\w.]*)*)", block):
            for name in names.split(", "):
                yield path, name


def test_names_are_defined_where_the_text_says() -> None:
    wrong = [
        f"{page.name}: {name} in {path}"
        for page in PAGES
        for path, name in places(page.read_text(encoding="utf-8").split(ELSEWHERE)[0])
        if not (ROOT / path).is_file() or name not in definitions(ROOT / path)
    ]
    assert not wrong, "\n".join(sorted(set(wrong)))


@functools.cache
def words_of_the_code() -> frozenset[str]:
    """Return every identifier and every word of a string in the shipped code and its tests."""
    files = [
        path
        for folder in ("lm", "tools", "tests", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        if path != Path(__file__)
    ]
    text = "\n".join(path.read_text(encoding="utf-8") for path in [*ROOT.glob("*.py"), *files])
    keyed = {part for name in keys() for part in name.split(".")}
    return frozenset({*re.findall(r"\w+", text), *keyed})


def test_names_exist() -> None:
    """A span that looks like a name of the code (snake_case, CamelCase, a.b, f()) occurs in it."""
    wrong = []
    for page in PAGES:
        for span in SPAN.findall(prose(page)):
            if not IDENTIFIER.fullmatch(span) or not re.search(r"[a-z][A-Z]|[_.(]", span):
                continue
            missing = set(re.findall(r"\w+", span)) - words_of_the_code() - NAMES_OF_OTHERS
            if missing and not re.search(
                r"\.(py|yaml|md|json\w*|csv|png|html|txt|bin|ckpt|pt)$", span
            ):
                wrong.append(f"{located(page, f'`{span}`')}: {span}")
    assert not wrong, "\n".join(sorted(set(wrong)))


def commands(path: Path) -> Iterator[str]:
    """Yield the command lines of a page or of a configuration's comments."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".yaml":
        yield from joined(re.sub(r"^#   ?", "", text, flags=re.M))
        return
    yield from joined("".join(FENCE.findall(text)))
    outside = FENCE.sub("", text)
    yield from joined("\n".join(re.findall(r"^    (.*)$", outside, re.M)))
    yield from SPAN.findall(re.sub(r"\s+", " ", outside))


def joined(block: str) -> Iterator[str]:
    yield from re.sub(r"\\\n\s*", " ", block).splitlines()


@functools.cache
def flags(file: Path) -> frozenset[str]:
    """Return the flags of a command: those in its source and in the parsers that it imports."""
    source = file.read_text(encoding="utf-8")
    imported = re.findall(r"^from (lm[\w.]*) import|^import (lm[\w.]*)", source, re.M)
    for module in {name for pair in imported for name in pair if name}:
        other = ROOT / f"{module.replace('.', '/')}.py"
        if other.is_file() and "add_argument" in other.read_text(encoding="utf-8"):
            source += other.read_text(encoding="utf-8")
    result = set(re.findall(r"[\"'](--[\w-]+)[\"']", source)) | {"--help"}
    if "Sampling" in source:  # infer.py makes a flag of each field
        fields = definitions(ROOT / "lm/generation/sampling.py")
        result |= {f"--{name[9:].replace('_', '-')}" for name in fields if "Sampling." in name}
    return frozenset(result)


@functools.cache
def config_flags() -> frozenset[str]:
    return frozenset(f"--{name}" for name in keys())


def wrong_parts(line: str) -> Iterator[str]:
    """Yield the parts of a command line that do not exist: its file, a flag, a configuration."""
    match = COMMAND.search(line)
    if not match:
        return
    rest = match["rest"] or match["script"]
    if re.match("-c|-? ?<<", rest):  # a program, not a command of ours
        return
    words = shlex.split(rest, comments=True)
    if not words:
        return
    if words[0] == "-m":
        module = words[1]
        if module == "pytest":
            yield from (w for w in words[2:] if w.startswith("tests") and not (ROOT / w).exists())
        if not module.startswith("tools."):
            return
        words, file = words[2:], ROOT / f"{module.replace('.', '/')}.py"
    else:
        file = ROOT / words.pop(0)
    if "NAME" in file.name or not re.search(r"\.py$", file.name):
        return
    if not file.is_file():
        yield str(file.relative_to(ROOT))
        return
    for word, following in zip(words, [*words[1:], ""], strict=False):
        flag = word.split("=")[0]
        if word in ("|", ">", ";", "&&"):
            return
        if word.startswith("--") and flag not in flags(file) | config_flags() | MISTAKES:
            yield flag
        if re.match("configs?[_./]", following) and not (ROOT / following).is_file():
            yield following
        if word == "--change" and f"--{following.split('=')[0]}" not in config_flags():
            yield following


def test_commands_and_their_flags_exist() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}: {part} in: {line.strip()}"
        for path in [*PAGES, *CONFIGURATIONS]
        for line in commands(path)
        for part in wrong_parts(line)
    ]
    assert not wrong, "\n".join(wrong)


def test_flags_in_the_text_exist() -> None:
    files = [
        *ROOT.glob("*.py"),
        *(ROOT / "tools").glob("*.py"),
        *(ROOT / "benchmarks").glob("*.py"),
    ]
    known = frozenset.union(config_flags(), *(flags(file) for file in files)) | FLAGS_OF_OTHERS
    wrong = [
        f"{located(page, span)}: {flag}"
        for page in PAGES
        for span in SPAN.findall(prose(page))
        if not span.startswith(("torchrun", "srun", "git", "make", "pip"))
        for flag in re.findall(r"(?<!\S)--[\w.-]+[\w]", span)
        if flag not in known
    ]
    assert not wrong, "\n".join(wrong)


@functools.cache
def messages() -> str:
    """Return all strings of the shipped code and the Makefile, with NUL for what is filled in."""
    strings = [(ROOT / "Makefile").read_text(encoding="utf-8")]
    for path in [*ROOT.glob("*.py"), *(ROOT / "tools").glob("*.py"), *(ROOT / "lm").rglob("*.py")]:
        for node in ast.walk(draw_rooms.parsed(path)):
            if isinstance(node, ast.JoinedStr):
                parts = [v.value if isinstance(v, ast.Constant) else "\0" for v in node.values]
                strings.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                strings.append(node.value)
    return "\n".join(strings)


def test_quoted_messages_are_printed_by_the_code() -> None:
    """The bold headings of TROUBLESHOOTING.md quote messages; `...` stands for anything."""
    text = (ROOT / "docs/TROUBLESHOOTING.md").read_text(encoding="utf-8")
    wrong = []
    for heading in re.findall(r"^\*\*(.*)\*\*$", text, re.M):
        for part in (p.strip() for span in SPAN.findall(heading) for p in span.split("...")):
            if part in MESSAGES_OF_SYSTEMS or part in messages():
                continue
            words = re.split(r"(\w+)", part)
            form = "".join(f"(?:{w}|\0)" if w.isalnum() else re.escape(w) for w in words)
            if not re.search(form, messages()):
                wrong.append(part)
    assert not wrong, "\n".join(wrong)


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][\w-]*):", makefile, re.M))
    wrong = [
        f"{page.name}: make {target}"
        for page in PAGES
        for line in commands(page)
        for target in re.findall(r"^make (?:[A-Z_]+=\S+ )*([a-z]+)", line)
        if target not in targets
    ]
    assert not wrong, "\n".join(wrong)


def test_the_readme_is_short_and_begins_with_the_essentials() -> None:
    """A title, a picture, commands, the file tree, the rest. The tree has every room."""
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    blocks = FENCE.findall(text)
    order = ["# ", "![", blocks[0], blocks[1], "\n## "]
    assert [text.index(part) for part in order] == sorted(text.index(part) for part in order)
    assert "make smoke" in blocks[0] and len(blocks[0].splitlines()) == 5
    rooms = [path.parent.name for path in (ROOT / "lm").glob("*/__init__.py")]
    shown = re.findall(r"^lm/(\w+)/", blocks[1], re.M)
    assert sorted(shown) == sorted(rooms)
    wrong = [
        f"{name} imports {target}, which stands below it in the tree"
        for name, targets in draw_rooms.edges().items()
        for target in targets
        if {name, target} <= set(shown) and shown.index(target) > shown.index(name)
    ]
    assert not wrong, "\n".join(wrong)
    pages = {page.name for page in PAGES} - {"README.md"}
    assert not pages - {Path(target).name for target in LINK.findall(text)}, "not linked"


def test_figures_of_several_pages_agree() -> None:
    """A loss on a page that only tells about results is one that a page of results has measured."""
    measured = " ".join(
        (ROOT / "docs" / name).read_text(encoding="utf-8")
        for name in ("EXPECTED_RESULTS.md", "BENCHMARKS.md")
    )
    known = set(re.findall(r"\b\d\.\d{3}\b", measured))
    known |= {f"{float(figure):.3f}" for figure in re.findall(r"\b\d\.\d{4}\b", measured)}
    results = README.read_text(encoding="utf-8").partition("## Results")[2].partition("\n## ")[0]
    base = re.findall(r"validation loss (\d\.\d{3})", prose(ROOT / "docs" / "FINETUNING.md"))
    figures = re.findall(r"\b\d\.\d{2,3}\b", results)
    assert figures and base
    assert not [figure for figure in [*figures, *base] if figure not in known]


@pytest.mark.parametrize("page", [*PAGES, *CONFIGURATIONS], ids=lambda page: page.name)
def test_no_sentence_begins_like_a_translation(page: Path) -> None:
    """No sentence begins with What, Whatever or Of, unless it is a question."""
    text = re.sub(r"^(?:#+|\s*[-*|]|\d+\.) ?", "", prose(page), flags=re.M)
    starts = re.findall(r"(?:^|[.!|] +|\n\n)((?:What|Whatever|Of|So is)\b[^.?|]*)[.|\n]", text)
    assert not starts, "\n".join(starts)


def test_the_drawing_of_the_rooms_is_true() -> None:
    assert not draw_rooms.stale(), "run: python -m tools.draw_rooms"
