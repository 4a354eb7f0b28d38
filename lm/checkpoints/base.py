"""The checkpoint that a fine-tuning configuration starts from.

The base decides the model's shape and the tokenizer, and it may bring a chat template.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lm.checkpoints.folder import Checkpoint, open_checkpoint
from lm.checkpoints.meta import Meta, read_meta
from lm.system.errors import ConfigError

if TYPE_CHECKING:
    from lm.config.schema.config import Config
    from lm.tokenizer.tokenizer import Tokenizer

# What a run may decide for itself: these keys change how weights are trained, not what they are.
OWN = {"dropout", "gradient_checkpointing", "kernels"}


@dataclass(frozen=True)
class Base:
    """A base checkpoint, opened."""

    checkpoint: Checkpoint
    meta: Meta
    config: Config  # of the run that made it; its file names are those of that time


def open_base(config: Config) -> Base:
    """Open the base of a configuration that has `finetune`.

    Raises:
        CheckpointError: the base is missing or damaged.
    """
    assert config.finetune is not None
    checkpoint = open_checkpoint(config.finetune.base)
    meta = read_meta(checkpoint)
    base = Base(checkpoint, meta, meta.config)
    _ = checkpoint.manifest  # read now: a base that is damaged is refused at once
    return base


def filled(config: Config) -> dict[str, Any]:
    """Return the sections of a configuration that has `finetune`, completed from its base.

    Raises:
        ConfigError: the configuration contradicts the base.
        CheckpointError: the base is missing or damaged.
    """
    base = open_base(config)
    shape, tokenizer = base.meta.model, base.meta.tokenizer
    problems = [
        f"model.{key}: the model is that of finetune.base; remove it"
        f" ({' and '.join(sorted(OWN))} may be given)"
        for key in sorted(config.model.model_fields_set - OWN)
        if getattr(config.model, key) != getattr(shape, key)
    ]
    if config.tokenizer.model_fields_set and config.tokenizer.name != tokenizer.name:
        problems.append("tokenizer.name: the tokenizer is that of finetune.base; remove it")
    else:
        problems += base.meta.other_vocabulary(config.tokenizer)
    if problems:
        raise ConfigError("\n".join(problems))
    # kernels: if unset, today's, or the slow path of an older base would be inherited for ever
    written = config.model.model_fields_set | {"kernels"}
    own = {key: getattr(config.model, key) for key in OWN & written}
    sections = config.model_dump()
    sections["model"] = {**shape.model_dump(), **own}
    sections["tokenizer"] = tokenizer.section
    source, validation = sections["data"]["source"], sections["data"]["validation"] or {}
    for single in [source, *(part["source"] for part in source.get("parts", [])), validation]:
        if single.get("template") == "base":
            chat = base.config.data.chat
            single["template"] = chat.template if chat is not None else _no_template(base)
    return sections


def tokenizer_of(config: Config) -> Tokenizer:
    """Return the configured tokenizer, or the base's for fine-tuning."""
    if config.finetune is None:
        from lm.tokens.vocabulary import make_tokenizer

        return make_tokenizer(config, lambda line: print(line, file=sys.stderr))
    return open_base(config).meta.load_tokenizer()


def _no_template(base: Base) -> str:
    raise ConfigError(
        f"data.source.template: base, and {base.checkpoint.path} was not trained on conversations;"
        " name one, such as alpaca"
    )
