"""The checkpoints and files of cases that paths and globs name. Links and their targets count once.

The module imports no torch.
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
    Checkpoint,
    checkpoints_in,
    links_to,
    open_checkpoint,
    step_directories,
)
from lm.checkpoints.meta import read_meta
from lm.documents.templates import TEMPLATES, ChatFormat
from lm.runs.results import RecordedValidation, read_by_checkpoint
from lm.system.errors import CheckpointError, ConfigError, DataError, printable

# for checkpoints without a template of their own, if their tokenizer has its special tokens
DEFAULT_TEMPLATE = "instruction-output"


class Candidate(NamedTuple):
    """A checkpoint with a readable meta.json. Its weights have not been loaded yet.

    Attributes:
        path: the folder, absolute and without links.
        name: the shortest end of the path that differs from those of the others, without .ckpt and
            safe to print.
        links: names in the same folder that mean it, such as "best".
        meta: its meta.json.
        recorded: the run's own validation of it, or None.
        sha256: the hash of its manifest, which contains the hashes of all its files.
        copies: other paths that were named too, and hold the same checkpoint.
    """

    path: Path
    name: str
    links: tuple[str, ...]
    meta: dict[str, Any]
    recorded: RecordedValidation | None
    sha256: str
    copies: tuple[Path, ...] = ()


class Failure(NamedTuple):
    """A checkpoint that could not be measured, and the reason in one line."""

    name: str
    reason: str


def find(patterns: Sequence[str]) -> tuple[list[Candidate], list[Failure]]:
    """Return the checkpoints that paths and globs name, each once, in the order of their paths, and
    those that are damaged. The path of a run's folder names all checkpoints in it.

    A glob skips files, and folders that are no checkpoint and are not called *.ckpt.

    Raises:
        CheckpointError: a path or glob names no checkpoint. The message says what is there.
    """
    checkpoints: dict[Path, tuple[dict[str, Any], RecordedValidation | None, str]] = {}
    # The cache keeps the warning about a damaged file of results from being printed again.
    validations = functools.cache(read_by_checkpoint)
    failures: dict[str, Failure] = {}
    for pattern in patterns:
        for match in _matches(pattern):
            try:
                inside = [] if (match / "meta.json").exists() else checkpoints_in(match)
            except CheckpointError as error:
                failures[os.path.realpath(match)] = Failure(printable(str(match)), str(error))
                continue
            for folder in inside or [match]:
                try:
                    checkpoint = open_checkpoint(folder)
                    path, sha256 = checkpoint.path, checkpoint.sha256
                    if path not in checkpoints:
                        recorded = validations(path.parent).get((checkpoint.step, sha256))
                        checkpoints[path] = checkpoint.meta, recorded, sha256
                except CheckpointError as error:
                    failures[os.path.realpath(folder)] = Failure(printable(str(folder)), str(error))
    # Copies of one checkpoint enter once, under the first of their paths.
    copies: dict[str, list[Path]] = {}
    for path in sorted(checkpoints):
        copies.setdefault(checkpoints[path][2], []).append(path)
    names = _distinct_names([paths[0] for paths in copies.values()])
    candidates = [
        Candidate(path, name, tuple(links_to(path)), *checkpoints[path], tuple(others))
        for (path, *others), name in zip(copies.values(), names, strict=True)
    ]
    return candidates, list(failures.values())


def case_files(named: Sequence[str]) -> list[Path]:
    """Return the files that paths name, each once. A folder names all *.yaml and *.yml files in it.

    Raises:
        ConfigError: a folder has no such file, or two files have the same name.
    """
    files: dict[Path, Path] = {}
    for path in map(Path, named):
        inside = (
            sorted(file for file in path.iterdir() if file.suffix in (".yaml", ".yml"))
            if path.is_dir()
            else [path]
        )
        if not inside:
            raise ConfigError(
                f"--cases {path}: the folder holds no file of cases; name one that holds *.yaml or"
                " *.yml files"
            )
        for file in inside:
            files.setdefault(file.resolve(), file)
    stems = [file.stem for file in files.values()]
    if twice := next((stem for stem in stems if stems.count(stem) > 1), None):
        raise ConfigError(
            f"--cases: two files are called {twice}, by which their results are told apart; rename"
            " one, or rank by one at a time"
        )
    return list(files.values())


def format_of(path: Path, template: str | None) -> ChatFormat | None:
    """Return the format of chats with a checkpoint: the one of its fine-tuning, unless `template`
    names another. Return None if it has none and its tokenizer cannot encode the default one.

    Raises:
        ConfigError: the template does not exist.
        DataError: this checkpoint's tokenizer lacks the template's special tokens.
        CheckpointError: meta.json contains no configuration, or the tokenizer cannot be read.
    """
    from lm.generation.chat import chat_format

    checkpoint = Checkpoint(path)
    meta = read_meta(checkpoint)
    use_default = template is None and meta.config.data.chat is None
    if use_default and not set(TEMPLATES[DEFAULT_TEMPLATE].specials) <= set(
        meta.load_tokenizer().specials
    ):
        return None
    try:
        return chat_format(checkpoint, DEFAULT_TEMPLATE if use_default else template)
    except ConfigError as error:
        if template not in TEMPLATES:
            raise
        raise DataError(f"{path}: {error}") from error


def _matches(pattern: str) -> list[Path]:
    """Return the paths that a path or glob names. Raises CheckpointError if there are none."""
    # A name may contain brackets: an existing path is not a glob.
    if os.path.lexists(pattern):
        return [Path(pattern)]
    paths = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 (the shell's rules)
    matches = [path for path in map(Path, paths) if _is_candidate(path)]
    if not matches:
        raise _no_match(pattern)
    return matches


def _is_candidate(path: Path) -> bool:
    return (
        path.suffix == ".ckpt"
        or (path / "meta.json").exists()
        or (path.is_dir() and bool(checkpoints_in(path)))
    )


def _no_match(pattern: str) -> CheckpointError:
    """Return the error for a path or glob without a match. Its message describes the last folder in
    front of the first wildcard.
    """
    if not glob.has_magic(pattern):
        try:
            open_checkpoint(pattern)
        except CheckpointError as error:
            return error
    parts = list(itertools.takewhile(lambda part: not glob.has_magic(part), Path(pattern).parts))
    folder = Path(*parts)
    steps = [step.name for step in step_directories(folder)]
    content = (
        f"holds {', '.join(steps[-3:])}"
        if steps
        else "holds no checkpoint itself"
        if folder.is_dir()
        else "does not exist"
    )
    return CheckpointError(f"--checkpoints {pattern}: matches no checkpoint; {folder} {content}")


def _distinct_names(paths: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the paths that are all different. Each has the same number of
    parts, and includes the folder if there are several folders.
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
