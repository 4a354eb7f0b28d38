"""Which checkpoints and files of cases a person means by paths and globs, each once, whatever links
lead to it. No torch.
"""

from __future__ import annotations

import functools
import glob
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lm.checkpoints.folder import (
    links_to,
    open_checkpoint,
    read_manifest,
    read_meta,
    step_directories,
)
from lm.checkpoints.meta import read_config, read_tokenizer
from lm.documents.templates import TEMPLATES, ChatFormat
from lm.runs.results import RecordedValidation, read_by_checkpoint
from lm.system.errors import CheckpointError, ConfigError, DataError, printable

# for a checkpoint that was never taught one, if its tokenizer has what that needs
DEFAULT_TEMPLATE = "instruction-output"


class Candidate(NamedTuple):
    """A checkpoint that says what it is; whether its weights can be loaded is not known yet.

    Attributes:
        path: of the folder itself, absolute, with no link in it.
        name: as much of the path as tells it from the others, without its ending; safe to show.
        links: names beside it that mean it, such as "best".
        meta: its meta.json.
        recorded: what the run's own validation measured; None: nothing.
        sha256: of its manifest, which stands for all of its files.
    """

    path: Path
    name: str
    links: tuple[str, ...]
    meta: dict[str, Any]
    recorded: RecordedValidation | None
    sha256: str


class Failure(NamedTuple):
    """A checkpoint that could not be measured, and why, in one line."""

    name: str
    reason: str


def find(patterns: Sequence[str]) -> tuple[list[Candidate], list[Failure]]:
    """The checkpoints that paths and globs mean, in the order of their paths; of a run's folder,
    all in it.

    What a glob matches beside checkpoints is passed over: files, and folders that are none and are
    not called *.ckpt.

    Raises:
        CheckpointError: a path or glob means no checkpoint. It says what is there.
    """
    found: dict[Path, tuple[dict[str, Any], RecordedValidation | None, str]] = {}
    results = functools.cache(read_by_checkpoint)  # so that what is damaged in one is said once
    failures: dict[str, Failure] = {}
    for pattern in map(os.path.expanduser, patterns):
        for named in _matches(pattern):
            inside = [] if (named / "meta.json").exists() else step_directories(named)
            for one in inside or [named]:
                try:
                    path = open_checkpoint(one)
                    if path not in found:
                        meta, sha256 = read_meta(path), read_manifest(path)["sha256"]
                        found[path] = (
                            meta,
                            results(path.parent).get((meta["step"], sha256)),
                            sha256,
                        )
                except CheckpointError as error:
                    failures[os.path.realpath(one)] = Failure(printable(str(one)), str(error))
    paths = sorted(found)
    names = _told_apart(paths)
    candidates = [
        Candidate(path, name, tuple(links_to(path)), *found[path])
        for path, name in zip(paths, names, strict=True)
    ]
    return candidates, list(failures.values())


def case_files(named: Sequence[str]) -> list[Path]:
    """The files that paths mean, each once; of a folder, all *.yaml in it. Raises ConfigError where
    there is none.
    """
    files: dict[Path, Path] = {}
    for path in map(Path, named):
        inside = (
            sorted(file for file in path.iterdir() if file.suffix in (".yaml", ".yml"))
            if path.is_dir()
            else [path]
        )
        if not inside:
            raise ConfigError(f"--cases {path}: the folder holds no file of cases (*.yaml)")
        for file in inside:
            files.setdefault(file.resolve(), file)
    stems = [file.stem for file in files.values()]
    if twice := next((stem for stem in stems if stems.count(stem) > 1), None):
        raise ConfigError(
            f"--cases: two files are called {twice}, by which their results are told apart; rename"
            " one, or rank by one at a time"
        )
    return list(files.values())


def format_of(path: Path, meta: dict[str, Any], template: str | None) -> ChatFormat | None:
    """How a checkpoint is asked in a chat: as it was fine-tuned, unless another template is named.
    None: it has none, nor what the default one needs.

    Raises:
        ConfigError: there is no such template.
        DataError: the tokenizer lacks its special tokens, which others may have.
        CheckpointError: meta.json does not hold a configuration, or the tokenizer cannot be read.
    """
    from lm.generation.chat import chat_format

    untaught = template is None and read_config(path, meta["config"]).data.chat is None
    if untaught and not set(TEMPLATES[DEFAULT_TEMPLATE].specials) <= set(
        read_tokenizer(path, meta).specials
    ):
        return None
    try:
        return chat_format(path, DEFAULT_TEMPLATE if untaught else template)
    except ConfigError as error:
        if template not in TEMPLATES:
            raise
        raise DataError(f"{path}: {error}") from error


def _matches(pattern: str) -> list[Path]:
    """What a path or glob means; a name with a bracket in it is first of all a name. Raises
    CheckpointError where that is nothing.
    """
    if os.path.lexists(pattern):
        return [Path(pattern)]
    matches = [
        path
        for path in map(Path, sorted(glob.glob(pattern, recursive=True)))  # noqa: PTH207 (as the shell does it)
        if _looks_like_one(path)
    ]
    if not matches:
        raise _nothing(pattern)
    return matches


def _looks_like_one(path: Path) -> bool:
    return (
        path.suffix == ".ckpt"
        or (path / "meta.json").exists()
        or (path.is_dir() and bool(step_directories(path)))
    )


def _nothing(pattern: str) -> CheckpointError:
    """The error for a path or glob that means nothing, with what stands in the last folder of it
    that is no pattern.
    """
    if not glob.has_magic(pattern):
        try:
            open_checkpoint(pattern)
        except CheckpointError as error:
            return error
    parts = list(itertools.takewhile(lambda part: not glob.has_magic(part), Path(pattern).parts))
    folder = Path(*parts)
    there = [step.name for step in step_directories(folder)]
    held = (
        f"holds {', '.join(there[-3:])}"
        if there
        else "holds no checkpoint itself"
        if folder.is_dir()
        else "does not exist"
    )
    return CheckpointError(f"--checkpoints {pattern}: matches no checkpoint; {folder} {held}")


def _told_apart(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that are all different, equally many parts of each; with the
    folder where there are several.
    """
    names: list[str] = []
    for parts in range(
        1 if len({path.parent for path in paths}) == 1 else 2,
        max((len(path.parts) for path in paths), default=0) + 1,
    ):
        names = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return [printable(name.removesuffix(".ckpt")) for name in names]
