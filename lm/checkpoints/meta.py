"""meta.json with types: what a checkpoint says about itself, validated before anything is built.

A hash proves that a file is as it was written, not who wrote it. Each part is therefore validated
against the types of this version of the project. A part is validated when it is first used, because
a command must refuse a checkpoint for what it needs and for nothing else: infer.py reads the model
of a checkpoint whose run configuration only a later version understands. Keys that this version
does not know are kept and ignored. lm/checkpoints/folder.py reads the file and checks its format
on the standard library. This file needs pydantic, but not torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lm.checkpoints.folder import Checkpoint
from lm.config.schema.finetune import LoraConfig
from lm.config.schema.model import ModelConfig
from lm.config.schema.section import Section
from lm.system.disk import read_text
from lm.system.errors import CheckpointError

if TYPE_CHECKING:
    from lm.config.schema.config import Config
    from lm.config.schema.tokenizer import TokenizerConfig
    from lm.tokenizer.tokenizer import Tokenizer

PartModel = TypeVar("PartModel", bound=BaseModel)

MOST_TOKENIZER = 2**29  # bytes; the largest vocabularies in use need some 40 million

PathText = Annotated[str, Field(pattern=r"^[^\x00]+$")]  # the operating system takes no NUL
Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40,64}$")]  # it names a folder


class AdaptersBase(Section):
    """The checkpoint that adapters were trained on."""

    path: PathText
    from_run: PathText  # the same place, relative to the run's folder
    manifest_sha256: str


class Adapters(Section):
    """`adapters`: a checkpoint that has it holds adapters instead of a model's weights."""

    method: Literal["lora", "qlora"]
    lora: LoraConfig
    n_parameters: int
    base: AdaptersBase


class MetaPart(BaseModel):
    """A part of meta.json that may have more keys in another version of the project."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, allow_inf_nan=False)


# What runs did before these keys of `model` existed.
BEFORE = {"kernels": "fused"}


class TokenizerFacts(MetaPart):
    """`tokenizer`: identifies the tokenizer in the checkpoint's tokenizer.json."""

    name: str
    sha256: str
    eos_id: int
    pad_id: int
    vocab_size: int | None = None

    @property
    def section(self) -> dict[str, Any]:
        """The section `tokenizer` of a run that takes this tokenizer over."""
        # a vocabulary that was learnt from the run's text has no other name than its size
        return {"name": self.name} | ({"vocab_size": self.vocab_size} if self.name == "bpe" else {})


class Versions(MetaPart):
    """`versions`: the packages that the session ran with."""

    torch: str


class Parent(MetaPart):
    """`parent`: the checkpoint that the run started from."""

    manifest_sha256: str


class Session(MetaPart):
    """The session that wrote the checkpoint, for a run that goes on from it."""

    seconds: float = Field(0.0, ge=0, le=10**12)  # training time of the run so far
    elapsed: float | None = Field(None, ge=0, le=10**12)  # with schedule_by: time; at the wall
    over: bool = False  # its deadline was reached
    costs: dict[str, Annotated[float, Field(ge=0, le=10**9)]] = {}  # seconds of a save, ...
    epochs_per_step: float = Field(0.0, ge=0)  # passes over the text; 0: a stream
    moving_rows: bool = False  # each epoch cuts packed rows elsewhere; earlier runs repeat them
    versions: Versions = Versions(torch="")
    revisions: dict[str, Commit] = {}  # the commits of the streamed datasets, by their keys
    parent: Parent | None = None
    rows_at_once: int | None = Field(None, ge=1)  # of a forward pass; None: not recorded
    compiled: bool | None = None  # None: not recorded

    @property
    def time_spent(self) -> float:
        """The seconds of the run so far, as far as they are known."""
        return self.seconds if self.elapsed is None else self.elapsed


@dataclass(frozen=True)
class Meta:
    """meta.json of the checkpoint in `folder`; each part is validated when it is first used.

    Raises:
        CheckpointError: every property and method, naming the file, the key and the problem.
    """

    folder: Path
    values: Mapping[str, Any]

    @cached_property
    def model(self) -> ModelConfig:
        """The shape of the decoder, with its vocabulary."""
        shape = self._validated(ModelConfig, "model")
        if shape.vocab_size is None:
            raise CheckpointError(
                f"{self.file}: model.vocab_size is missing, and no decoder is without"
            )
        return shape

    @cached_property
    def tokenizer(self) -> TokenizerFacts:
        """The facts that tokenizer.json is compared with."""
        try:
            return TokenizerFacts.model_validate(self.values.get("tokenizer"))
        except ValidationError as error:
            raise CheckpointError(
                f"{self.file}: {_first_problem(error, 'tokenizer')}; the tokenizer cannot be read"
            ) from error

    @cached_property
    def config(self) -> Config:
        """The configuration of the run. Keys that are newer than the checkpoint have defaults."""
        # Late: opening a model does without the configuration of its run, which is slow to import.
        from lm.config.schema.config import Config

        return self._validated(Config, "config")

    @cached_property
    def adapters(self) -> Adapters | None:
        """The facts about adapters; None for a checkpoint with all of a model's weights."""
        return self._validated(Adapters, "adapters") if "adapters" in self.values else None

    @cached_property
    def session(self) -> Session:
        """The session that wrote the checkpoint. Keys that are missing have defaults."""
        try:
            return Session.model_validate(dict(self.values))
        except ValidationError as error:
            raise CheckpointError(f"{self.file} is damaged: {_first_problem(error)}") from error

    @property
    def file(self) -> Path:
        """The path of meta.json, for messages."""
        return self.folder / "meta.json"

    def load_tokenizer(self) -> Tokenizer:
        """Return the checkpoint's own tokenizer, compared with the hash and the model's size."""
        from lm.tokenizer.tokenizer import from_definition

        facts, file = self.tokenizer, self.folder / "tokenizer.json"
        try:
            definition = read_text(file, MOST_TOKENIZER)
            tokenizer = from_definition(definition, facts.name, facts.eos_id, facts.pad_id)
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
            raise CheckpointError(f"{file}: the tokenizer cannot be read: {reason}") from error
        if tokenizer.sha256 != facts.sha256:
            raise CheckpointError(
                f"{file} is not the tokenizer that meta.json names ({facts.name},"
                f" {facts.sha256[:12]})"
            )
        if not all(0 <= number < tokenizer.vocab_size for number in (facts.eos_id, facts.pad_id)):
            raise CheckpointError(
                f"{file}: the tokenizer has no ids {facts.eos_id} and {facts.pad_id}, which"
                " meta.json names"
            )
        # not `self.model`: a run that goes on takes the model's shape from its configuration
        rows = self.values.get("model", {}).get("vocab_size")
        if isinstance(rows, int) and tokenizer.vocab_size > rows:
            raise CheckpointError(
                f"{file}: the tokenizer has {tokenizer.vocab_size:,} ids, but the model of"
                f" meta.json only {rows:,}"
            )
        return tokenizer

    def other_vocabulary(self, wanted: TokenizerConfig) -> Iterator[str]:
        """Yield a line for each key of a written `tokenizer: {name: bpe}` that asks for another
        vocabulary than the checkpoint's.

        A vocabulary may have fewer tokens than requested: both numbers name it.
        """
        if wanted.name != "bpe":
            return
        # not `self.config`: a new run may start from a checkpoint of a later version
        recorded = self.values["config"].get("tokenizer")
        asked = recorded if isinstance(recorded, dict) else {}
        facts, remedy = self.tokenizer, "remove the section tokenizer to keep that"
        if "bpe" not in (facts.name, asked.get("name")):
            yield (
                f"tokenizer.name: bpe would learn a vocabulary, but {self.folder} has the tokenizer"
                f" {facts.name}; {remedy}"
            )
            return
        sizes = asked.get("vocab_size"), facts.vocab_size
        if wanted.vocab_size not in sizes:
            yield (
                f"tokenizer.vocab_size: {wanted.vocab_size}, but the vocabulary of {self.folder}"
                f" was learnt with {sizes[0] or sizes[1]}; {remedy}"
            )
        specials = asked.get("special_tokens") or ()
        if "special_tokens" in wanted.model_fields_set and {*wanted.special_tokens} != {*specials}:
            yield (
                f"tokenizer.special_tokens: {', '.join(wanted.special_tokens) or 'none'}, but the"
                f" vocabulary of {self.folder} was learnt with {', '.join(specials) or 'none'};"
                f" {remedy}"
            )

    def _validated(self, model: type[PartModel], key: str) -> PartModel:
        try:
            return model.model_validate(_completed(self.values.get(key), key))
        except ValidationError as error:
            raise CheckpointError(
                f"{self.file}: {_first_problem(error, key)}; another version of the project wrote"
                " it"
            ) from error


def read_meta(checkpoint: Checkpoint) -> Meta:
    """Return a checkpoint's meta.json with types. Raises CheckpointError."""
    return Meta(checkpoint.path, checkpoint.meta)


def _completed(section: Any, key: str) -> Any:
    """Return `model` or `config` of a meta.json with the keys that were missing when it was
    written, as the runs of that time computed.
    """
    if not isinstance(section, dict):
        return section
    if key == "model":
        return {**BEFORE, **section}
    if key == "config" and isinstance(section.get("model"), dict):
        return {**section, "model": {**BEFORE, **section["model"]}}
    return section


def _first_problem(error: ValidationError, *keys: str) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, (*keys, *first['loc'])))}: {first['msg']}"
