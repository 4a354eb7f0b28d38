"""All keys of a schema as one flat table, for messages, `--help` and the generated reference."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from lm.config.scalars import KeyPath, dotted, flow
from lm.config.schema.config import Config
from lm.config.schema.section import DEFAULT_IN_WORDS, Section, without_indices

HELP_WIDTH = 120
SECTION = "a section: its keys, indented, on the lines below"


@dataclass(frozen=True)
class Key:
    """One key, or one section with its `children`."""

    name: str
    type: str  # type and range, in words that finish the sentence "write ..."
    default: str  # as YAML; in words; "required"; or "" for a section that may be absent
    description: str
    text_only: bool
    children: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()  # in a data source: the formats that have this key
    several: bool = False  # a list of sections that all have these `children`

    @property
    def of_every_format(self) -> bool:
        """Whether every format except mixture has the key."""
        return len(self.formats) == len(keys()["data.validation.format"].formats)

    @property
    def inner(self) -> list[str]:
        """The names of the keys in this section, or in each section of this list."""
        return [f"{self.name}{'[]' * self.several}.{child}".lstrip(".") for child in self.children]

    @property
    def section(self) -> str:
        """The section's name: optimizer for optimizer.lr."""
        return self.name.rpartition(".")[0]

    @property
    def short(self) -> str:
        """The last part of the name: lr for optimizer.lr."""
        return self.name.rpartition(".")[2]


@cache
def json_schema(section: type[Section] = Config) -> dict[str, Any]:
    """Return the JSON Schema for editors in draft-07, the newest that VS Code checks fully."""
    schema = section.model_json_schema()
    for definition in schema["$defs"].values():
        for node in definition["properties"].values():
            if "prefixItems" in node:  # draft-07 has `items` for the items of a tuple
                node["items"] = node.pop("prefixItems")
    return {"$schema": "http://json-schema.org/draft-07/schema#"} | schema


# The places that pydantic adds below a key that takes a number or a word.
NUMBER, WORD = "constrained-int", "literal['auto']"


@cache
def keys(section: type[Section] = Config) -> dict[str, Key]:
    """Return every section and key by dotted name (see `name_of`), in the schema's order.

    The file itself is the section named "".
    """
    schema = json_schema(section)
    return {key.name: key for key in _walk("", [schema], "", True, (), schema["$defs"])}


def name_of(path: KeyPath) -> str:
    """Return the name in `keys` of a path; indices vanish, as in data.source.parts[].weight."""
    return without_indices(dotted(path))


def without_format(location: KeyPath) -> KeyPath:
    """Return a location of pydantic's without what it inserts: the format after a source's key, or
    the kind of value after a key that takes a number or a word.
    """
    path: KeyPath = ()
    parts = iter(part for part in location if part not in (NUMBER, WORD))
    for part in parts:
        path = (*path, part)
        if (section := keys().get(name_of(path))) is not None and "format" in section.children:
            next(parts, None)
    return path


def leaves() -> list[Key]:
    """Return the keys that hold a value: no sections, except those that may be null.

    A list of sections is a value.
    """
    return [
        key for key in keys().values() if not key.children or key.several or key.default == "null"
    ]


def help_text() -> str:
    """Return every key with its meaning, type and default, by section, for `--help`."""
    lines = [
        "Any key of the configuration can be given as --section.key VALUE (docs/CONFIG_REFERENCE.md"
        " says more):"
    ]
    shown = [
        key
        for key in leaves()
        if not key.name.startswith(("data.validation.", "data.source.parts[]"))
    ]
    width = max(len(key.name) for key in shown)
    for name in keys()[""].children:
        lines += ["", f"{name}: {keys()[name].description}"]
        for key in (key for key in shown if f"{key.name}.".startswith(f"{name}.")):
            kind = (
                "null, or the same keys as data.source, but no mixture"
                if "format" in key.children
                else key.type
            )
            known = (
                f"; only {', '.join(key.formats)}"
                if key.formats and key.short != "format" and not key.of_every_format
                else ""
            )
            default = "required" if key.default == "required" else f"default {key.default}"
            text = f"{key.description} [{kind}; {default}{known}]".lstrip()
            indent = " " * (width + 6)
            lines += textwrap.wrap(
                f"  --{key.name:{width}}  {text}",
                HELP_WIDTH,
                subsequent_indent=indent,
                break_on_hyphens=False,
                break_long_words=False,
            )
    return "\n".join(lines) + "\n"


def _walk(
    name: str,
    nodes: list[dict[str, Any]],
    description: str,
    required: bool,
    formats: tuple[str, ...],
    definitions: dict[str, Any],
) -> Iterator[Key]:
    """Yield the key that `nodes` describe, then the keys inside it.

    There are several nodes if the key differs by a source's format.
    """
    objects = [shape for node in nodes for shape in _objects(node, definitions)]
    choices = [node["const"] for node in nodes if "const" in node]
    node = nodes[0] | ({"enum": choices} if choices else {})
    several = node.get("type") == "array" and bool(objects)
    default = flow(node["default"]) if "default" in node else node.get(DEFAULT_IN_WORDS, "")
    default = "required" if required else default
    children: dict[str, list[tuple[dict[str, Any], str]]] = {}
    for shape in objects:
        for child, child_node in shape["properties"].items():
            children.setdefault(child, []).append(
                (child_node, shape["properties"].get("format", {}).get("const", ""))
            )
    words = ("null, or " if _nullable(node) else "") + SECTION if objects else _words(node)
    if several:
        words = (
            f"a list of {node['minItems']} to {node['maxItems']} sections with"
            f" {' and '.join(children)}, each after `- `"
        )
    yield Key(
        name, words, default, description, _text_only(node), tuple(children), formats, several
    )
    for child, shapes in children.items():
        child_nodes = [child_node for child_node, _ in shapes]
        child_required = any(child in shape.get("required", []) for shape in objects)
        known_to = tuple(known for _, known in shapes if known)
        child_name = f"{name}{'[]' * several}.{child}".lstrip(".")
        child_description = child_nodes[0].get("description", "")
        yield from _walk(
            child_name, child_nodes, child_description, child_required, known_to, definitions
        )


def _objects(node: dict[str, Any], definitions: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the mappings that a value may be.

    A section has one, a data source one for each format, and a plain value none.
    """
    if "$ref" in node:
        return [definitions[node["$ref"].rpartition("/")[2]]]
    if "properties" in node:
        return [node]
    if node.get("type") == "array" and isinstance(node["items"], dict):
        return _objects(node["items"], definitions)
    return [shape for option in _options(node) for shape in _objects(option, definitions)]


def _options(node: dict[str, Any]) -> list[dict[str, Any]]:
    return [*node.get("anyOf", []), *node.get("oneOf", [])]


def _nullable(node: dict[str, Any]) -> bool:
    return any(option.get("type") == "null" for option in _options(node))


def _text_only(node: dict[str, Any]) -> bool:
    options = _options(node) or [node]
    return {option.get("type") for option in options} - {"null"} == {"string"}


def _words(node: dict[str, Any]) -> str:
    """Return a plain value's type and range, such as "a number > 0 and <= 10" or "text or null"."""
    if "enum" in node:
        return either(node["enum"])
    if options := _options(node):
        return either([_words(option) for option in options])
    if "const" in node:
        return str(node["const"])
    if node["type"] == "array":
        items = node["items"]
        if isinstance(items, list):
            return f"a list of {len(items)}, each {_words(items[0])}"
        return f"a list of {_words(items)}" + f", at least {node.get('minItems')} of them" * (
            node.get("minItems", 0) > 1
        )
    if node.get("maxLength") == 1:
        return "one character"
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = " and ".join(
        f"{sign} {'2**63' if node[bound] == 2**63 else node[bound]}"
        for bound, sign in signs.items()
        if bound in node
    )
    names = {
        "integer": "a whole number",
        "number": "a number",
        "boolean": "true or false",
        "string": "text",
        "null": "null",
    }
    return f"{names[node['type']]} {limits}".strip()


def either(words: list[str]) -> str:
    """Return words joined as in `a, b or c`."""
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
