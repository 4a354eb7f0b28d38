"""Paths as people write them, in a configuration or behind a flag, by one rule.

The module imports only the standard library.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")


def expand(text: str) -> str:
    """Return a path with `~`, `~user`, `$NAME` and `${NAME}` replaced, as a shell does.

    A file or folder whose name really holds a dollar sign keeps its name.

    Raises:
        ValueError: the path is empty, or names a user or a variable that does not exist.
    """
    if not text:
        raise ValueError("the path is empty; write the path of a file or folder")
    if text.startswith("~"):
        expanded = os.path.expanduser(text)  # noqa: PTH111 (Path raises for an unknown user)
        if expanded == text and not os.path.lexists(text):
            user = text.partition("/")[0]
            raise ValueError(f"there is no home folder of {user}; write the whole path")
        text = expanded
    # a glob, or a file that is still to be written, may lie in a folder with a dollar sign
    there = (path for path in (Path(text), *Path(text).parents) if os.path.lexists(path))
    if "$" not in text or any("$" in str(path) for path in there):
        return text
    for match in VARIABLE.finditer(text):
        name = match[1] or match[2]
        if name not in os.environ:
            raise ValueError(f"the variable ${name} is not set; set it, or write the whole path")
    return os.path.expandvars(text)
