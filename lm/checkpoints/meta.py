"""What a checkpoint says of itself beyond lm/checkpoints/folder.py's own fields, held against what
this version of the project knows.

A hash proves that a file is as it was written, not who wrote it: each value is checked here before
anything is built from it. No torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationError

from lm.config.schema.config import Config
from lm.config.schema.finetune import LoraConfig
from lm.config.schema.model import ModelConfig
from lm.config.schema.section import Section
from lm.system.disk import read_text
from lm.system.errors import CheckpointError

if TYPE_CHECKING:
    from lm.tokenizer.tokenizer import Tokenizer

COMMIT = re.compile("[0-9a-f]{40,64}")  # it names a folder
MOST_TOKENIZER = 2**29  # bytes; the largest vocabularies in use need some 40 million

PathText = Annotated[str, Field(pattern=r"^[^\x00]+$")]  # what the operating system takes for one


class AdaptersBase(Section):
    """The checkpoint beside whose weights adapters were trained."""

    path: PathText
    from_run: PathText  # the same, seen from the run's folder
    manifest_sha256: str


class Adapters(Section):
    """What a checkpoint holds instead of a model's weights, as its meta.json has it."""

    method: Literal["lora", "qlora"]
    lora: LoraConfig
    n_parameters: int
    base: AdaptersBase


def read_model(path: Path, meta: Mapping[str, Any]) -> ModelConfig:
    """The shape of a checkpoint's decoder. Raises CheckpointError if it is none that this version
    can build.
    """
    try:
        shape = ModelConfig.model_validate(meta["model"])
    except ValidationError as error:
        raise CheckpointError(f"{path / 'meta.json'}: {_first_problem('model', error)}") from error
    if shape.vocab_size is None:
        raise CheckpointError(
            f"{path / 'meta.json'}: model.vocab_size is missing, and no decoder is without"
        )
    return shape


def read_config(path: Path, stored: Mapping[str, Any]) -> Config:
    """The `config` of a checkpoint's meta.json; keys that are newer than it have their defaults.
    Raises CheckpointError.
    """
    try:
        return Config.model_validate(stored)
    except ValidationError as error:
        raise CheckpointError(f"{path / 'meta.json'}: {_first_problem('config', error)}") from error


def read_adapters(path: Path, meta: Mapping[str, Any]) -> Adapters | None:
    """The `adapters` of a checkpoint's meta.json; None of a checkpoint with all of a model's
    weights. Raises CheckpointError.
    """
    if "adapters" not in meta:
        return None
    try:
        return Adapters.model_validate(meta["adapters"])
    except ValidationError as error:
        raise CheckpointError(
            f"{path / 'meta.json'}: {_first_problem('adapters', error)}"
        ) from error


def check_session(path: Path, meta: Mapping[str, Any]) -> None:
    """Raise CheckpointError unless a run can go on from what meta.json says of the session that
    wrote it; what is missing is not asked.
    """
    seconds, versions = meta.get("seconds", 0.0), meta.get("versions", {"torch": ""})
    wrong = []
    if type(seconds) not in (int, float) or not 0 <= seconds < math.inf or seconds > 10**12:
        wrong.append("seconds")
    if not isinstance(versions, dict) or not isinstance(versions.get("torch"), str):
        wrong.append("versions.torch")
    revisions = meta.get("revisions", {})
    if not isinstance(revisions, dict) or not all(
        isinstance(sha, str) and COMMIT.fullmatch(sha) for sha in revisions.values()
    ):
        wrong.append("revisions")
    parent = meta.get("parent")
    if parent is not None and not (
        isinstance(parent, dict) and isinstance(parent.get("manifest_sha256"), str)
    ):
        wrong.append("parent.manifest_sha256")
    if wrong:
        raise CheckpointError(
            f"{path / 'meta.json'} is damaged: {', '.join(wrong)} is missing or not what it"
            " should be"
        )


def read_tokenizer(path: str | Path, meta: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that travels in a checkpoint, checked against the hash and the model in its
    meta.json. Raises CheckpointError.
    """
    from lm.tokenizer.tokenizer import from_definition

    file = Path(path) / "tokenizer.json"
    try:
        stored = meta["tokenizer"]
        definition = read_text(file, MOST_TOKENIZER)
        tokenizer = from_definition(
            definition, str(stored["name"]), int(stored["eos_id"]), int(stored["pad_id"])
        )
        same = tokenizer.sha256 == stored["sha256"]
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{file}: the tokenizer cannot be read: {reason}") from error
    if not same:
        raise CheckpointError(
            f"{file} is not the tokenizer that meta.json names ({stored['name']},"
            f" {str(stored['sha256'])[:12]})"
        )
    if not all(
        0 <= number < tokenizer.vocab_size for number in (tokenizer.eos_id, tokenizer.pad_id)
    ):
        raise CheckpointError(
            f"{file}: the tokenizer has no ids {tokenizer.eos_id} and {tokenizer.pad_id}, which"
            " meta.json names"
        )
    rows = meta.get("model", {}).get("vocab_size")
    if isinstance(rows, int) and tokenizer.vocab_size > rows:
        raise CheckpointError(
            f"{file}: the tokenizer has {tokenizer.vocab_size:,} ids, but the model of meta.json"
            f" only {rows:,}"
        )
    return tokenizer


def _first_problem(section: str, error: ValidationError) -> str:
    first = error.errors()[0]
    return (
        f"{'.'.join(map(str, (section, *first['loc'])))}: {first['msg']}; another version of the"
        " project wrote it"
    )
