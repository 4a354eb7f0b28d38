"""The part of a report that says how the run was made: its configuration, held against its parent's
and the defaults, and its lineage.
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
from lm.display.tables import EVERY, html_table
from lm.runs.ancestors import Ancestor
from lm.runs.record import RunRecord
from lm.system.json_values import found, number, text, whole
from lm.system.units import in_bytes

NOT_RECORDED = "not recorded"
CHANGED = "●"


def configuration(run: RunRecord, line: Sequence[Ancestor]) -> Html:
    """What differs from the parent, then what differs from the defaults, then all of it, folded."""
    if not run.config:
        return element(
            "p",
            "No configuration is recorded: neither a checkpoint's meta.json nor config.yaml has"
            " one.",
            class_="quiet",
        )
    here = flattened(run.config)
    parts: list[Html] = []
    changed: set[str] = set()
    if line:
        parent = found(line[0].meta, "config")
        if isinstance(parent, Mapping):
            before = flattened(parent)
            changed = {
                key
                for key in {**before, **here}
                if before.get(key) != here.get(key) or (key in before) != (key in here)
            }
            parts.append(
                _differences(
                    before,
                    here,
                    [key for key in {**before, **here} if key in changed],
                    "the parent",
                )
            )
        else:
            why = "The parent is not where it was, so what differs from it cannot be shown: "
            parts.append(element("p", why, element("code", line[0].path), class_="quiet"))
    own = {key: value for key, value in here.items() if _default(key) != _written(value)}
    mark = f"; {CHANGED} also differs from the parent" if own.keys() & changed else ""
    lines = [["key", "default", "this run"]]
    for key, value in own.items():
        name = element("span", f"{key} {CHANGED}", class_="mark") if key in changed else key
        lines.append([name, _default(key) or "not a key of this version", _written(value)])
    parts.append(html_table(lines, f"Different from the defaults{mark}", words=EVERY))
    everything = html_table(
        [["key", "value"], *([key, _written(value)] for key, value in here.items())],
        "All keys",
        words=EVERY,
    )
    parts.append(folded(f"The whole configuration: {len(here)} keys", everything))
    return joined(parts)


def lineage(run: RunRecord, line: Sequence[Ancestor]) -> Html:
    """Data, tokenizer, code, parents, packages and machine: what the newest checkpoint's meta.json
    has of them.
    """
    if not run.meta:
        return element(
            "p",
            "No checkpoint can be read, so nothing is recorded of where the run comes from.",
            class_="quiet",
        )
    lines: list[Sequence[str]] = [["what", "recorded"]]
    lines += [
        [name, value or element("span", NOT_RECORDED, class_="quiet")]
        for name, value in _facts(run)
    ]
    for number_of, each in enumerate(line):
        where = "" if each.place else "; not there any more, or other bytes"
        name = "parent" if number_of == 0 else "great-" * (number_of - 1) + "grandparent"
        step = (
            f"{each.path} (step {each.step:,}){where}"
            if each.step is not None
            else f"{each.path}{where}"
        )
        lines.append([name, joined([step, element("br"), _hash("manifest", each.manifest_sha256)])])
    if not line:
        lines.append(["parent", "none: it began with random weights"])
    return html_table(
        lines, "As the newest checkpoint's meta.json has it; hashes are SHA-256", words=EVERY
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
    revisions = found(meta, "revisions")
    if isinstance(revisions, Mapping) and revisions:
        yield "commits of streams", "; ".join(f"{key}: {value}" for key, value in revisions.items())
    name, vocabulary = text(meta, "tokenizer", "name"), whole(meta, "tokenizer", "vocab_size")
    if name is not None:
        known = f"{name}, {vocabulary:,} tokens" if vocabulary is not None else name
        yield (
            "tokenizer",
            joined([known, element("br"), _hash("definition", text(meta, "tokenizer", "sha256"))]),
        )
    else:
        yield "tokenizer", None
    commit = text(meta, "code", "commit")
    changed = ", with files changed since" if found(meta, "code", "changed") is True else ""
    yield "code", joined([element("code", commit), changed]) if commit else None
    versions = found(meta, "versions")
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
    adapters = whole(meta, "adapters", "n_parameters")
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
    if (threads := whole(meta, "threads")) is not None:
        yield f"{threads} thread{'s' * (threads != 1)}"


def _machine(meta: Mapping[str, Any]) -> Iterator[str]:
    for key in ("gpu", "processor"):
        if (value := text(meta, "hardware", key)) is not None:
            yield value
    if (cores := whole(meta, "hardware", "cores")) is not None:
        yield f"{cores} core{'s' * (cores != 1)}"
    if (memory := number(meta, "hardware", "memory")) is not None:
        yield f"{in_bytes(memory)} of memory"
    if (system := text(meta, "hardware", "system")) is not None:
        yield system


def _differences(
    before: Mapping[str, Any], here: Mapping[str, Any], differing: Sequence[str], whom: str
) -> Html:
    if not differing:
        return element("p", f"Nothing differs from {whom}.")
    absent = "–"
    lines = [["key", whom, "this run"]]
    lines += [
        [key, *(_written(side[key]) if key in side else absent for side in (before, here))]
        for key in differing
    ]
    made = html_table(lines, f"Different from {whom}; {absent}: it has no such key", words=EVERY)
    return (
        made if len(lines) <= 25 else folded(f"Different from {whom}: {len(differing)} keys", made)
    )


def _default(key: str) -> str | None:
    """As the reference writes it; None for what is no key of this version."""
    known = keys().get(re.sub(r"\[\d+\]", "[]", key))
    return known.default if known is not None else None


def _written(value: Any) -> str:
    """As in YAML; what that cannot be is shown as JSON."""
    try:
        return flow(value)
    except (TypeError, ValueError, RecursionError):
        return json.dumps(value, ensure_ascii=False, default=str)


def _hash(of: str, sha256: str | None) -> Html:
    return joined(
        [
            f"{of}: ",
            element("code", sha256) if sha256 else element("span", NOT_RECORDED, class_="quiet"),
        ]
    )
