"""The checkpoint that a fine-tuning configuration starts from: it brings the model's shape, the
tokenizer and perhaps a template.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lm.checkpoints.folder import open_checkpoint, read_manifest, read_meta
from lm.checkpoints.meta import read_config, read_model, read_tokenizer
from lm.config.schema.config import Config
from lm.system.errors import ConfigError

if TYPE_CHECKING:
    from lm.tokenizer.tokenizer import Tokenizer

# What a run may decide for itself: it changes how weights are trained, not what they are.
OWN = {"dropout", "gradient_checkpointing"}


class Base(NamedTuple):
    """A base checkpoint.

    Attributes:
        folder: where it is.
        meta: its meta.json.
        config: what it was trained with; names in it are those of that time.
        sha256: of its manifest, which stands for all of its files.
    """

    folder: Path
    meta: dict[str, Any]
    config: Config
    sha256: str


def open_base(config: Config) -> Base:
    """The base of a configuration that has `finetune`. Raises CheckpointError where it is not there
    or not whole.
    """
    assert config.finetune is not None
    folder = open_checkpoint(config.finetune.base)
    meta = read_meta(folder)
    return Base(folder, meta, read_config(folder, meta["config"]), read_manifest(folder)["sha256"])


def filled(config: Config) -> dict[str, Any]:
    """The sections of a configuration that has `finetune`, with what the base decides.

    Raises:
        ConfigError: it says otherwise than the base what the base decides.
        CheckpointError: the base is not there.
    """
    base = open_base(config)
    shape, tokenizer = read_model(base.folder, base.meta), str(base.meta["tokenizer"]["name"])
    for key in sorted(config.model.model_fields_set - OWN):
        if getattr(config.model, key) != getattr(shape, key):
            raise ConfigError(
                f"model.{key}: the model is that of finetune.base; remove it"
                f" ({' and '.join(sorted(OWN))} may be given)"
            )
    if config.tokenizer.model_fields_set and config.tokenizer.name != tokenizer:
        raise ConfigError("tokenizer.name: the tokenizer is that of finetune.base; remove it")
    own = {key: getattr(config.model, key) for key in OWN & config.model.model_fields_set}
    sections = config.model_dump()
    sections["model"] = {**shape.model_dump(), **own}
    sections["tokenizer"] = {"name": tokenizer}
    source, validation = sections["data"]["source"], sections["data"]["validation"] or {}
    for single in [source, *(part["source"] for part in source.get("parts", [])), validation]:
        if single.get("template") == "base":
            chat = base.config.data.chat
            single["template"] = chat.template if chat is not None else _no_template(base)
    return sections


def tokenizer_of(config: Config) -> Tokenizer:
    """The configured tokenizer, or the base's."""
    if config.finetune is None:
        from lm.tokenizer.tokenizer import load_tokenizer

        return load_tokenizer(config.tokenizer.name)
    base = open_base(config)
    return read_tokenizer(base.folder, base.meta)


def _no_template(base: Base) -> str:
    raise ConfigError(
        f"data.source.template: base, and {base.folder} was not trained on conversations; name one,"
        " such as alpaca"
    )
