"""The mixture: which sources a run trains on, and which share of the rows each gives.

The sources are those of the configuration. With `finetune.replay` the text that the base was
trained on is added, so that the model forgets less of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np

from lm.config.schema.config import UNLIMITED, Config
from lm.config.schema.source import MixtureSource
from lm.system.errors import ConfigError
from lm.tokenizer.tokenizer import Tokenizer
from lm.tokens.corpus import Corpus, open_corpora
from lm.tokens.plan import Plan


def open_replayed(
    config: Config, base: Config | None, tokenizer: Tokenizer, say: Callable[[str], None]
) -> list[Corpus]:
    """Open the sources that the base was trained on, with the same split as then.

    Args:
        config: the run's configuration.
        base: the configuration of the base, from its checkpoint; None: nothing is replayed.
        tokenizer: the tokenizer of both.
        say: logs a line.

    Raises:
        ConfigError: the base's text cannot be replayed in this run.
    """
    if base is None:
        return []
    if base.data.streams:
        raise ConfigError(
            "finetune.replay: the base's text was streamed, and is not stored; write 0, or name"
            " some text in data.source"
        )
    if any(chat.layout == "preferences" for _, chat in base.data.conversations):
        raise ConfigError(
            "finetune.replay: the base learnt from preferences, whose rejected answers nobody"
            " wants back; write 0"
        )
    if base.data.conversations and not config.data.document_mask:
        raise ConfigError(
            "finetune.replay: the base's conversations must not see those beside them in a row;"
            " write data.document_mask: true"
        )
    corpora = open_corpora(base, tokenizer, say)[: len(base.data.parts)]
    names = [f"replayed, {corpus.name}" if corpus.name else "replayed: " for corpus in corpora]
    return [
        dataclasses.replace(corpus, name=name) for corpus, name in zip(corpora, names, strict=True)
    ]


def make_plan(
    config: Config, base: Config | None, sizes: Sequence[int], say: Callable[[str], None]
) -> Plan:
    """Plan which rows each step trains on, and check that the sources suffice for the run.

    Args:
        config: the run's configuration.
        base: the configuration whose sources are replayed, if any.
        sizes: how many rows each source has, the replayed ones last.
        say: logs a line.

    Raises:
        ConfigError: a source has too few rows, and `when_one_ends` is `stop`.
    """
    source, trainer = config.data.source, config.trainer
    when_one_ends = source.when_one_ends if isinstance(source, MixtureSource) else "repeat"
    plan = Plan(tuple(sizes), source_weights(config, base), when_one_ends, trainer.seed)
    max_steps = config.with_epochs(epochs_per_step(config, plan)).max_steps
    passes = plan.passes(max_steps * trainer.batch_size)
    steps = plan.n_rows // trainer.batch_size
    if when_one_ends == "stop" and max_steps > steps:
        shorter = f"trainer.max_steps {steps} at most, or " if steps else ""
        raise ConfigError(
            f"data.source.when_one_ends: stop, and parts[{int(np.argmax(passes))}] runs dry"
            f" after {steps:,} of the run's {max_steps:,} steps; write"
            f" {shorter}when_one_ends: repeat or go_on"
        )
    # A small source may be repeated so often that the model learns it by heart.
    if len(sizes) > 1 and not config.data.streams and max_steps < UNLIMITED:
        say(f"data: passes over each: {', '.join(f'{n:.2f}' for n in passes)}")
    return plan


def with_length(config: Config, plan: Plan) -> Config:
    """Return the configuration with the length that `trainer.max_epochs` gives the run.

    Raises:
        ConfigError: the warm-up is longer than that.
    """
    config = config.with_epochs(epochs_per_step(config, plan))
    if problem := config.warmup_problem():
        raise ConfigError(f"optimizer.warmup_steps: {problem}")
    return config


def epochs_per_step(config: Config, plan: Plan) -> float:
    """Return the passes over the run's own text that a step makes; 0 for a stream.

    A pass is as many rows as the run's own sources have together. Replayed text is not counted.
    """
    if config.data.streams:
        return 0.0
    own = len(config.data.parts)
    share = sum(plan.share(i) for i in range(own))
    return share * config.trainer.batch_size / sum(plan.sizes[:own])


def source_weights(config: Config, base: Config | None) -> tuple[int, ...]:
    """Return the weights of the sources: those of the base together have the share `replay`."""
    own = [part.weight for _, part in config.data.parts]
    if base is None or config.finetune is None:
        return tuple(own)
    replayed = [part.weight for _, part in base.data.parts]
    share = Fraction(config.finetune.replay).limit_denominator(1000)
    share = share or Fraction(1, 1000)  # a share that rounds to 0 would replay nothing
    own_factor = sum(replayed) * (share.denominator - share.numerator)
    replayed_factor = sum(own) * share.numerator
    return (
        *(weight * own_factor for weight in own),
        *(weight * replayed_factor for weight in replayed),
    )
