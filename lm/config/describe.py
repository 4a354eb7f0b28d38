"""A configuration as YAML text, for people and for the run's folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lm.config.scalars import KeyPath, dotted, flow
from lm.config.schema.config import Config

COMMENT_COLUMN = 60


def to_yaml(config: Config) -> str:
    """The whole configuration as YAML, defaults included; loading it gives an equal one."""
    return "".join(f"{line}\n" for _, line in yaml_lines(config))


def describe(config: Config, origins: Mapping[str, str]) -> str:
    """`to_yaml` with each value's origin in a comment beside it."""
    lines = list(yaml_lines(config))
    column = min(COMMENT_COLUMN, max(len(line) for path, line in lines if path))
    comments = (
        f"{line:{column}}  # {origins[dotted(path)]}" if path else line for path, line in lines
    )
    return "".join(f"{line}\n" for line in comments)


def yaml_lines(config: Config) -> Iterator[tuple[KeyPath, str]]:
    """Each line with the path of its value; a line that only opens a section has the path ()."""

    def lines(values: dict[str, Any], path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
        for key, value in values.items():
            head = f"{'  ' * len(path)}{key}:"
            if isinstance(value, dict):
                yield (), head
                yield from lines(value, (*path, key))
            elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
                yield (), head
                for i, item in enumerate(value):
                    for number, (place, line) in enumerate(lines(item, (*path, key, i))):
                        indent = len(path) * 2 + 2
                        yield (
                            place,
                            (f"{line[:indent]}- {line[indent + 2 :]}" if number == 0 else line),
                        )
            else:
                yield (*path, key), f"{head} {flow(value)}"

    yield from lines(config.model_dump(mode="json"), ())
