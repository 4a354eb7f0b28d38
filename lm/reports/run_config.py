"""The part of a report about the run's origin: its configuration and its lineage.

The configuration is compared with the parent's and with the defaults.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lm.config.keys import keys
from lm.config.scalars import flow
from lm.config.schema.section import flattened
from lm.display.html import Html, element, folded, joined
from lm.display.tables import EVERY, MISSING, NOT_RECORDED, html_table
from lm.runs.ancestors import Ancestor
from lm.runs.record import RunRecord
from lm.system.json_values import count, lookup, number, text
from lm.system.units import in_bytes

CHANGED = "●"


def configuration(run: RunRecord, line: Sequence[Ancestor]) -> Html:
    """Return the differences from the parent and from the defaults, then all keys, folded."""
    if not run.config:
        return element(
            "p",
            "No configuration is recorded: neither a checkpoint's meta.json nor config.yaml holds"
            " one.",
            class_="quiet",
        )
    own = flattened(run.config)
    parts: list[Html] = []
    changed: set[str] = set()
    if line:
        parent = lookup(line[0].meta, "config")
        if isinstance(parent, Mapping):
            before = flattened(parent)
            changed = {
                key
                for key in {**before, **own}
                if before.get(key) != own.get(key) or (key in before) != (key in own)
            }
            parts.append(
                _differences(
                    before,
                    own,
                    [key for key in {**before, **own} if key in changed],
                    "the parent",
                )
            )
        else:
            why = "The parent is no longer at its path, so differences from it cannot be shown: "
            parts.append(element("p", why, element("code", line[0].path), class_="quiet"))
    changes = {key: value for key, value in own.items() if _default(key) != _written(value)}
    mark = f"; {CHANGED} also differs from the parent" if changes.keys() & changed else ""
    lines = [["key", "default", "this run"]]
    for key, value in changes.items():
        name = element("span", f"{key} {CHANGED}", class_="mark") if key in changed else key
        lines.append([name, _default(key) or "not a key of this version", _written(value)])
    parts.append(html_table(lines, f"Different from the defaults{mark}", words=EVERY))
    everything = html_table(
        [["key", "value"], *([key, _written(value)] for key, value in own.items())],
        "All keys",
        words=EVERY,
    )
    parts.append(folded(f"The whole configuration: {len(own)} keys", everything))
    return joined(parts)


def lineage(run: RunRecord, line: Sequence[Ancestor]) -> Html:
    """Return data, tokenizer, code, parents, packages and machine.

    They come from the newest checkpoint's meta.json.
    """
    if not run.meta:
        return element(
            "p",
            "No checkpoint can be read, so nothing about the run's origin is known.",
            class_="quiet",
        )
    lines: list[Sequence[str]] = [["what", "recorded"]]
    lines += [
        [name, value or element("span", NOT_RECORDED, class_="quiet")]
        for name, value in _facts(run)
    ]
    for generation, ancestor in enumerate(line):
        where = "" if ancestor.place else "; no longer there, or with other bytes"
        name = "parent" if generation == 0 else "great-" * (generation - 1) + "grandparent"
        step = (
            f"{ancestor.path} (step {ancestor.step:,}){where}"
            if ancestor.step is not None
            else f"{ancestor.path}{where}"
        )
        lines.append(
            [name, joined([step, element("br"), _hash("manifest", ancestor.manifest_sha256)])]
        )
    if not line:
        lines.append(["parent", "none: the run began with random weights"])
    return html_table(
        lines, "From the newest checkpoint's meta.json; hashes are SHA-256", words=EVERY
    )


def _facts(run: RunRecord) -> Iterator[tuple[str, str | None]]:
    meta = run.meta
    yield (
        "data",
        (
            _hash("tokens of all splits", text(meta, "data_sha256"))
            if text(meta, "data_sha256")
            else None
        ),
    )
    revisions = lookup(meta, "revisions")
    if isinstance(revisions, Mapping) and revisions:
        yield "commits of streams", "; ".join(f"{key}: {value}" for key, value in revisions.items())
    name, vocabulary = text(meta, "tokenizer", "name"), count(meta, "tokenizer", "vocab_size")
    if name is not None:
        known = f"{name}, {vocabulary:,} tokens" if vocabulary is not None else name
        yield (
            "tokenizer",
            joined([known, element("br"), _hash("definition", text(meta, "tokenizer", "sha256"))]),
        )
    else:
        yield "tokenizer", None
    commit = text(meta, "code", "commit")
    changed = ", with files changed since" if lookup(meta, "code", "changed") is True else ""
    yield "code", joined([element("code", commit), changed]) if commit else None
    versions = lookup(meta, "versions")
    yield (
        "packages",
        (
            ", ".join(f"{name} {version}" for name, version in versions.items())
            if isinstance(versions, Mapping)
            else None
        ),
    )
    yield "computed on", ", ".join(_computed_on(meta)) or None
    yield "machine", ", ".join(_machine(meta)) or None
    adapters = count(meta, "adapters", "n_parameters")
    if adapters is not None:
        base = text(meta, "adapters", "base", "path")
        yield (
            "adapters",
            (
                f"{text(meta, 'adapters', 'method')}: {adapters:,} parameters trained, on the"
                f" weights of {base}"
            ),
        )


def _computed_on(meta: Mapping[str, Any]) -> Iterator[str]:
    for key in ("device", "precision"):
        if (value := text(meta, key)) is not None:
            yield value
    if (threads := count(meta, "threads")) is not None:
        yield f"{threads} thread{'s' * (threads != 1)}"


def _machine(meta: Mapping[str, Any]) -> Iterator[str]:
    for key in ("gpu", "processor"):
        if (value := text(meta, "hardware", key)) is not None:
            yield value
    if (cores := count(meta, "hardware", "cores")) is not None:
        yield f"{cores} core{'s' * (cores != 1)}"
    if (memory := number(meta, "hardware", "memory")) is not None:
        yield f"{in_bytes(memory)} of memory"
    if (system := text(meta, "hardware", "system")) is not None:
        yield system


def _differences(
    before: Mapping[str, Any], own: Mapping[str, Any], differing: Sequence[str], whom: str
) -> Html:
    if not differing:
        return element("p", f"Nothing differs from {whom}.")
    lines = [["key", whom, "this run"]]
    lines += [
        [key, *(_written(side[key]) if key in side else MISSING for side in (before, own))]
        for key in differing
    ]
    made = html_table(lines, f"Different from {whom}; {MISSING}: the key is absent", words=EVERY)
    return (
        made if len(lines) <= 25 else folded(f"Different from {whom}: {len(differing)} keys", made)
    )


def _default(key: str) -> str | None:
    """Return a key's default as text; None if this version has no such key."""
    known = keys().get(re.sub(r"\[\d+\]", "[]", key))
    return known.default if known is not None else None


def _written(value: Any) -> str:
    """Return a value as YAML, or as JSON if YAML cannot express it."""
    try:
        return flow(value)
    except (TypeError, ValueError, RecursionError):
        return json.dumps(value, ensure_ascii=False, default=str)


def _hash(name: str, sha256: str | None) -> Html:
    return joined(
        [
            f"{name}: ",
            element("code", sha256) if sha256 else element("span", NOT_RECORDED, class_="quiet"),
        ]
    )
