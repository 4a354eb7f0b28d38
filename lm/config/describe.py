"""Write a configuration as YAML: config.yaml in the run's folder, and `--print-config`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lm.config.scalars import KeyPath, dotted, flow
from lm.config.schema.config import Config

COMMENT_COLUMN = 60


def to_yaml(config: Config) -> str:
    """Return the configuration as YAML with all defaults; loading it gives an equal one."""
    return "".join(f"{line}\n" for _, line in yaml_lines(config))


def describe(config: Config, origins: Mapping[str, str]) -> str:
    """Return `to_yaml` with the origin of each value in a comment."""
    lines = list(yaml_lines(config))
    column = min(COMMENT_COLUMN, max(len(line) for path, line in lines if path))
    comments = (
        f"{line:{column}}  # {origins[dotted(path)]}" if path else line for path, line in lines
    )
    return "".join(f"{line}\n" for line in comments)


def yaml_lines(config: Config) -> Iterator[tuple[KeyPath, str]]:
    """Yield each line with its value's path; a line that only opens a section has the path ()."""

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
