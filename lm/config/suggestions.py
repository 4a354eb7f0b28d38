"""What to write instead of a key that does not exist.

A suggestion is never refused again: the value is tried with the key that is suggested. Where it
does not fit, the suggestion says which values do.
"""

from __future__ import annotations

import copy
import difflib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from lm.config.keys import Key, either, keys, name_of, without_format
from lm.config.other_names import OTHER_NAMES
from lm.config.scalars import KeyPath, dotted, flow, path_of, plain
from lm.config.schema.config import Config
from lm.config.schema.section import Section, flattened, without_indices

PART = "data.source.parts[].source"
# A configuration with little else, to try values in.
LITTLE: dict[str, Any] = {
    "data": {"source": {"format": "txt", "files": "a"}},
    "trainer": {"max_steps": 1000},
}
BASE = {"finetune.base": "checkpoints/best.ckpt"}
LEARNT = {"name": "bpe", "vocab_size": 5000}  # a section whose vocabulary has keys of its own


def advice(
    path: KeyPath,
    tree: Mapping[str, Any],
    schema: type[Section] = Config,
    value: object = None,
) -> str:
    """Return what to write instead of an unknown key.

    It is the key for what another program calls so, the same key elsewhere, the most similar key,
    or the list of the section's keys.

    Args:
        path: the unknown key.
        tree: all sections that are given.
        schema: the section that the file as a whole is.
        value: the key's value.
    """
    table, name = keys(schema), str(path[-1])
    source_format = _format(tree, path[:-1])
    inner = [table[child] for child in _inside(path[:-1], schema).inner]
    siblings = [key.short for key in inner if not key.formats or source_format in key.formats]
    if known := table.get(name_of(path)):
        return (
            f"with format {source_format} write {either(siblings)} ({name} is for"
            f" {either(list(known.formats))})"
        )
    if "." in name and name in table:
        return (
            f"write {table[name].short} below {table[name].section}: (dots are for the command"
            " line)"
        )
    name = name.lower().replace("-", "_")
    elsewhere = _elsewhere(path, schema, siblings)
    if schema is Config and name in OTHER_NAMES:
        given = {
            key.rpartition(".")[2].replace("-", "_"): value
            for key, value in flattened(tree).items()
        }
        writing = OTHER_NAMES[name](value, given)
        if isinstance(writing, str):
            return writing
        writing = _placed(writing, path, given)
        ours = elsewhere.get(name)
        if ours and fits(ours, value) and not all(itertools.starmap(fits, writing.items())):
            writing = {ours: value}
        return _written(writing, tree, value)
    similar = [
        *([elsewhere[name]] if name in elsewhere else []),
        *(dotted((*path[:-1], near)) for near in difflib.get_close_matches(name, siblings, 1)),
        *(elsewhere[far] for far in difflib.get_close_matches(name, elsewhere, 1)),
    ]
    # where a list of sections was written as one section, its keys have other names
    similar = [key for key in similar if without_indices(key) in table]
    if not similar:
        return f"write {either(siblings)}"
    if schema is not Config:
        return f"did you mean {similar[0]}?"
    best = next((key for key in similar if fits(key, value)), similar[0])
    return _written({best: value}, tree, value)


def fits(name: str, value: object) -> bool:
    """Return whether a key takes a value, by trying it in a configuration with little else."""
    key = keys()[without_indices(name)]
    parts = key.name.replace(PART, "data.source").split(".")
    tree = copy.deepcopy(LITTLE)
    if parts[0] == "finetune" and len(parts) > 1:
        tree["finetune"] = {"base": "a"}
    if parts[0] == "tokenizer" and parts[1:] != ["name"]:
        tree["tokenizer"] = dict(LEARNT)
    source = tree["data"]["source"]
    if parts[:2] == ["data", "validation"] and len(parts) > 2:
        source = tree["data"]["validation"] = dict(source)
    if parts[2:] == ["parts[]", "weight"]:
        return fits("trainer.batch_size", value)  # a whole number from 1
    if key.formats and "format" not in parts:
        source["format"] = next(known for known in key.formats if known != "sms")
        if source["format"] in ("hub", "mixture"):
            del source["files"]
        if source["format"] == "hub":
            source["dataset"] = "a"
    section = tree
    for part in parts[:-1]:
        section = section.setdefault(part, {})
    section[parts[-1]] = value
    try:
        Config.model_validate_json(json.dumps(tree), strict=True)
    except ValidationError as error:
        wrong = (without_format(details["loc"]) for details in error.errors(include_url=False))
        if parts[-1] == "format":  # pydantic names the source that has no such format
            parts.pop()
        return not any(path[: len(parts)] == tuple(parts) for path in wrong)
    return True


def _placed(writing: dict[str, Any], path: KeyPath, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return keys of a data source in the source that has the unknown key, and a missing base."""
    section = dotted(path[:-1])
    inside = name_of(path[:-1]) in ("data.source", "data.validation", PART)
    source = writing.get("data.source")
    if inside and source is not None and "files" in source:
        return {f"{section}.files": source["files"]}
    if inside:
        prefix = "data.source."
        writing = {
            f"{section}.{key.removeprefix(prefix)}" if key.startswith(prefix) else key: value
            for key, value in writing.items()
        }
    needs_base = any(key.startswith("finetune.") and key not in BASE for key in writing)
    return (BASE if needs_base and "base" not in given else {}) | writing


def _written(writing: dict[str, Any], tree: Mapping[str, Any], value: object) -> str:
    """Return the words for keys with their values."""
    if {"tokenizer.vocab_size", "tokenizer.special_tokens"} & writing.keys():
        learnt = {f"tokenizer.{key}": preset for key, preset in LEARNT.items()}
        writing = learnt | {"tokenizer.name": "bpe"} | writing
    for key, written in writing.items():
        place, formats = _formats(path_of(key))
        if formats and _format(tree, place[:-1]) not in (None, *formats):
            return f"write {key}, which is for {either(list(formats))}"
        if not fits(key, written):
            return f"write {key}: {keys()[without_indices(key)].type}"
    if len(writing) == 1 and value in writing.values():
        return f"did you mean {next(iter(writing))}?"
    pairs = [f"{key}: {_value(written)}" for key, written in writing.items()]
    return "write " + " and ".join([", ".join(pairs[:-1]), pairs[-1]] if pairs[1:] else pairs)


def _formats(path: KeyPath) -> tuple[KeyPath, Sequence[str]]:
    """Return the key of a data source that a key is, or is inside, and the formats that have it.

    Without formats, every source has the key, or it is no source's.
    """
    if path[-1:] == ("format",):
        return path, ()
    for length in range(len(path), 0, -1):
        known = keys().get(name_of(path[:length]))
        if known is not None and known.formats:
            return path[:length], known.formats
    return path, ()


def _format(tree: Mapping[str, Any], section: KeyPath) -> object:
    """Return the `format` of the data source at a path; None if there is none."""
    inside: Any = tree
    for part in section:
        try:
            inside = inside[part]
        except (KeyError, IndexError, TypeError):
            return None
    return inside.get("format") if isinstance(inside, dict) else None


def _value(written: object) -> str:
    """Return a value as a file and a flag take it; `on` needs quotes only in YAML 1.1."""
    if isinstance(written, str) and written.isidentifier() and plain(written) == written:
        return written
    return flow(written)


def _elsewhere(path: KeyPath, schema: type[Section], siblings: Iterable[str]) -> dict[str, str]:
    """Return the full names of all other keys by their last part.

    Later entries replace earlier ones. The order of preference, best first: inside this section
    and of this format, inside it, in a section around it, the first key of that name.
    """
    table, section = keys(schema), name_of(path[:-1])
    others = [
        key
        for key in reversed(table.values())
        if key.name and key.section != section and "[]" not in key.name
    ]
    elsewhere = {key.short: key.name for key in others}
    for length in range(len(path) - 1):
        elsewhere |= {
            child: dotted((*path[:length], child))
            for child in _inside(path[:length], schema).children
        }
    inside = [
        key
        for key in reversed(table.values())
        if key.name.startswith(f"{section}.") and key.section != section
    ]
    inside.sort(
        key=lambda key: (
            key.name[len(section) + 1 :].partition(".")[0].removesuffix("[]") in siblings
        )
    )
    return elsewhere | {key.short: dotted(path[:-1]) + key.name[len(section) :] for key in inside}


def _inside(path: KeyPath, schema: type[Section]) -> Key:
    """Return the section, or the list of sections, at a path."""
    return keys(schema)[name_of(path).removesuffix("[]")]
