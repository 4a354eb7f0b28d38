"""Checkpoints on disk: a checkpoint is a directory that is either complete or absent.

    checkpoints/
        step-00000500.ckpt/                            model.safetensors, meta.json, ...: see below
        step-00001000.ckpt/
        best.ckpt, ranked-best.ckpt                    -> step-00000500.ckpt
        last.ckpt, final.ckpt                          -> step-00001000.ckpt

Only the step directories count; `--resume auto` never reads the names. A name is a relative link.
Without links on the file system it is a small file that holds the step's name. In a copy that has
followed the links (cp -rL, scp -r, zip) it is a copied directory, until a run goes on there and
makes it a name again. `pointed` understands all three. An archive made without the links may hold
an empty directory instead: a run that goes on there makes the name anew.

A checkpoint is written under a temporary name in the same folder. Every file is flushed
to the disk, a manifest with the hashes of all files is added, and one rename makes the checkpoint
visible. Whenever the power goes, a directory under a final name is complete. The manifest detects
flipped bits, which neither torch nor safetensors would notice. It proves integrity, not who wrote
the file.

The files of a checkpoint. Each also has tokenizer.json, meta.json and manifest.json.

    ordinary    model.safetensors  train_state.pt  [ema.safetensors]
    sharded     model-00001-of-00002.safetensors       model-00002-of-00002.safetensors
                optimizer-00001-of-00002.safetensors   ...
                [ema-00001-of-00002.safetensors        ...]
                train_state.json
    merged      model.safetensors

A single process writes the ordinary form, several FSDP processes write shards, and tools/merge_lora
writes the merged form, which holds weights alone and cannot be resumed.

This file needs only the standard library, so that `list.py` starts at once. checkpoints/weights.py
and checkpoints/fsdp.py read and write the tensors.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lm.system.disk import (
    fingerprint,
    fingerprint_of,
    read_json,
    read_json_bytes,
    read_text,
)
from lm.system.errors import CheckpointError, ConfigError
from lm.system.paths import expand
from lm.system.refusal import remark

FORMAT = 1
# the last is set by evaluate_checkpoints.py
NAMES = ("best.ckpt", "last.ckpt", "final.ckpt", "ranked-best.ckpt")
STEP_NAME = re.compile(r"step-([0-9]{8,18})\.ckpt")
ORDINARY = ("model.safetensors", "train_state.pt", "tokenizer.json", "meta.json")
# nothing can be resumed from it, but it can be begun from
MERGED = ("model.safetensors", "tokenizer.json", "meta.json")
SHARDED = ("train_state.json", "tokenizer.json", "meta.json")
SHARD_NAME = re.compile(r"([a-z]+)-([0-9]{5})-of-([0-9]{5})\.safetensors")
META_TYPES = {"step": int, "model": dict, "tokenizer": dict, "config": dict}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint directory. Its meta.json and manifest.json are read once, when first needed.

    `open_checkpoint` makes one from a path that a user wrote.

    Raises:
        CheckpointError: every property and method, if the file that it needs is missing or damaged.
    """

    path: Path

    @property
    def meta(self) -> dict[str, Any]:
        """The content of meta.json, whose format, step and sections are checked.

        lm/checkpoints/meta.py checks what is in the sections.
        """
        return self._meta[0]

    @property
    def step(self) -> int:
        """The number of updates that made these weights."""
        step: int = self.meta["step"]
        return step

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The manifest: {"files": {name: {"bytes", "sha256"}}, "sha256"}."""
        file = self.path / "manifest.json"
        manifest = read_json(file)
        files = manifest.get("files")
        if not isinstance(files, dict) or manifest.get("sha256") != hash_of_table(files):
            raise CheckpointError(f"{file} is damaged: its own hash does not match")
        return manifest

    @property
    def files(self) -> dict[str, Any]:
        """The files that belong to the checkpoint: name -> {"bytes", "sha256"}."""
        files: dict[str, Any] = self.manifest["files"]
        return files

    @property
    def sha256(self) -> str:
        """The hash of the table of files, which stands for the content of the whole checkpoint."""
        sha256: str = self.manifest["sha256"]
        return sha256

    def verify(self, names: Iterable[str] | None = None) -> None:
        """Compare every byte with the manifest, of all files or of `names` alone.

        Raises:
            CheckpointError: names the first file that is missing, extra, cut or changed.
        """
        stated = self.files
        try:
            present = {entry.name for entry in self.path.iterdir()} - {"manifest.json"}
            for name in names or sorted({*required(stated), *stated, *present}):
                if name not in present:
                    # an absolute name would replace the path
                    raise CheckpointError(f"{self.path}/{name} is missing")
                if name not in stated:
                    raise CheckpointError(
                        f"{self.path / name} does not belong to this checkpoint: its manifest does"
                        " not have it"
                    )
                if not self._has_content(name, stated[name]):
                    raise CheckpointError(
                        f"{self.path / name} is damaged: its content is not what was saved"
                    )
        except OSError as error:
            raise CheckpointError(
                f"{error.filename or self.path} cannot be read: {error.strerror}"
            ) from error

    @cached_property
    def _meta(self) -> tuple[dict[str, Any], bytes]:
        """The content of meta.json, and its bytes: `verify` hashes those that were parsed."""
        file = self.path / "meta.json"
        meta, content = read_json_bytes(file)
        if meta.get("format") != FORMAT:
            raise CheckpointError(
                f"{file}: format {meta.get('format')!r} is unknown to this version of the project,"
                f" which reads {FORMAT}"
            )
        wrong = [key for key, kind in META_TYPES.items() if type(meta.get(key)) is not kind]
        if wrong or not 0 <= meta["step"] < 10**18:
            raise CheckpointError(
                f"{file} is damaged: {', '.join(wrong) or 'step'} is missing or not what it should"
                " be"
            )
        if step_of(self.path) not in (-1, meta["step"]):
            raise CheckpointError(
                f"{file} is of step {meta['step']}, but its folder is named for another; rename it"
                f" {step_name(meta['step'])}"
            )
        return meta, content

    def _has_content(self, name: str, stated: object) -> bool:
        """Return whether a file is a regular file with the stated size and hash."""
        if name == "meta.json" and "_meta" in vars(self):  # it was read already
            return fingerprint_of(self._meta[1]) == stated
        return (self.path / name).is_file() and fingerprint(self.path / name) == stated


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Return the checkpoint that a path or name means. A run's folder means its best checkpoint,
    else its last; which one is printed.

    Raises:
        CheckpointError: nothing is there, or it is not a checkpoint of this project.
        ConfigError: the path is empty, or holds a variable that is not set.
    """
    try:
        path = Path(expand(str(path)))
    except ValueError as error:
        raise ConfigError(f"checkpoint {str(path)!r}: {error}") from None
    try:
        resolved = Path(os.path.realpath(path))
        target = pointed(resolved.parent, resolved.name) or resolved
        if (target / "meta.json").exists():
            return Checkpoint(target)
        if path.is_dir() and (chosen := _best_in(path)) is not None:
            return chosen
        steps = [step.name for step in step_directories(path.parent)]
        if not target.exists():
            dangling = " (the link leads nowhere)" if os.path.lexists(path) else ""
            problem = f"no such checkpoint{dangling}" + (
                f"; {path.parent} holds {', '.join(steps[-3:])}" if steps else ""
            )
        elif path.is_file() and (path.parent / "meta.json").exists():
            problem = f"this is one file of a checkpoint; write {path.parent}"
        else:
            problem = (
                "not a checkpoint of this project; one is a folder like step-00001000.ckpt with a"
                " meta.json inside"
            )
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    raise CheckpointError(f"{path}: {problem}")


def _best_in(folder: Path) -> Checkpoint | None:
    """Return the checkpoint that a run's folder stands for, and print its name; None without one.

    It is the best one, else the last one, else the newest.
    """
    for name in ("best.ckpt", "last.ckpt"):
        target = pointed(folder, name)
        if target is not None and (target / "meta.json").exists():
            remark(f"{folder}: a run's folder: {name} is used ({target.name})")
            return Checkpoint(target.resolve())
    steps = checkpoints_in(folder)
    if not steps:
        return None
    remark(f"{folder}: a run's folder: {steps[-1].name} is used, the newest")
    return Checkpoint(steps[-1].resolve())


def newest_whole(folder: str | Path) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest checkpoint that verifies, if any, and the problems of newer ones."""
    problems: list[str] = []
    for path in reversed(step_directories(folder)):
        checkpoint = Checkpoint(path)
        try:
            checkpoint.verify()
            _ = checkpoint.meta  # it has to be readable, too
            return checkpoint, problems
        except CheckpointError as error:
            problems.append(str(error))
    return None, problems


def step_name(step: int) -> str:
    """Return the directory name of a step's checkpoint; the names sort by step."""
    return f"step-{step:08d}.ckpt"


def step_of(path: Path) -> int:
    """Return the step in a checkpoint directory's name, or -1 for any other name."""
    match = STEP_NAME.fullmatch(path.name)
    return int(match[1]) if match else -1


def step_directories(folder: str | Path) -> list[Path]:
    """Return the checkpoint directories in a run's folder, oldest first.

    Links, files and unfinished checkpoints are not among them.
    """
    try:
        with os.scandir(folder) as entries:
            directories = [
                Path(folder) / entry.name
                for entry in entries
                if entry.is_dir(follow_symlinks=False)
            ]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error.strerror}") from error
    checkpoints = [path for path in directories if step_of(path) >= 0]
    return sorted(checkpoints, key=lambda path: (step_of(path), path.name))


def checkpoints_in(folder: str | Path) -> list[Path]:
    """Return the checkpoint directories in a run's folder, oldest first, each checkpoint once.

    A name that is a copied directory is among them if the folder lacks the step itself, or if its
    manifest is damaged, so that nobody knows which step it is.
    """
    folder = Path(folder)
    copies: dict[str, Path] = {}
    for name in reversed(NAMES):
        if pointed(folder, name) == folder / name:
            try:
                copies[Checkpoint(folder / name).sha256] = folder / name
            except CheckpointError:
                copies[name] = folder / name
    steps = {path: step_of(path) for path in step_directories(folder)}
    steps |= {path: Checkpoint(path).step for path in copies.values()}
    return sorted(steps, key=lambda path: (steps[path], path.name))


def shard_names(kind: str, count: int) -> list[str]:
    """Return the names of the files that `count` processes write for a kind of tensors.

    The kinds are "model", "optimizer" and "ema".
    """
    return [f"{kind}-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def shard_count(names: Iterable[str]) -> int:
    """Return how many processes wrote the checkpoint with these files; 0 for an ordinary one."""
    return max((int(match[3]) for match in map(SHARD_NAME.fullmatch, names) if match), default=0)


def required(names: Iterable[str]) -> set[str]:
    """Return the files that a checkpoint needs in order to be complete, given those it has."""
    names = list(names)
    count = shard_count(names)
    if count == 0:
        return set(MERGED if set(names) == set(MERGED) else ORDINARY)
    kinds = {"model", "optimizer"} | {
        match[1] for match in map(SHARD_NAME.fullmatch, names) if match
    }
    return {*SHARDED, *(name for kind in kinds for name in shard_names(kind, count))}


def pointed(folder: Path, name: str) -> Path | None:
    """Return the path of the checkpoint that a name in a run's folder means. Return None if there
    is no such name, or if no run has made it.

    A name is a relative link, or a small file that holds the name of a step. Or it is a copied
    directory: then it means the step with the same hash, or itself if that is not there.
    """
    entry = folder / name
    try:
        kind = entry.lstat().st_mode
        if stat.S_ISLNK(kind):
            place, target = os.path.split(entry.readlink())
            inside = os.path.realpath(folder / place) == os.path.realpath(folder)
            return folder / target if inside and STEP_NAME.fullmatch(target) else None
        if stat.S_ISREG(kind):
            target = read_text(entry, most=64).strip()
            return folder / target if STEP_NAME.fullmatch(target) else None
        if not stat.S_ISDIR(kind) or name not in NAMES:
            return None
        copy = Checkpoint(entry)
        step = Checkpoint(folder / step_name(copy.step))
    except (OSError, UnicodeDecodeError, CheckpointError):
        return None
    with contextlib.suppress(CheckpointError):
        if step.sha256 == copy.sha256:
            return step.path
    return entry


def links_to(path: Path) -> list[str]:
    """Return the names that mean a checkpoint, without their ending: "best", "last", ..."""
    return [name.removesuffix(".ckpt") for name in NAMES if pointed(path.parent, name) == path]


def obstacle(folder: Path, step: int) -> Path | None:
    """Return a file or folder that stands under a name which a run needs after `step`, and which
    no run has made; None if there is none.
    """
    for name in ("best.ckpt", "last.ckpt", "final.ckpt"):
        if os.path.lexists(folder / name) and pointed(folder, name) is None:
            return folder / name
    for entry in sorted(folder.iterdir()):
        if step_of(entry) > step and not is_ours(entry):
            return entry
    return None


def is_ours(path: Path) -> bool:
    """Return whether a path is, or links to, the directory of a checkpoint, even a damaged one."""
    return (path / "manifest.json").is_file() or (path / "meta.json").is_file()


def hash_of_table(files: object) -> str:
    """Return the hash of a manifest's table of files: `sha256` of the manifest."""
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
