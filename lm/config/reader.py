"""Read a configuration: a YAML file and command-line overrides in, a checked `Config` out.

All problems are reported together, one line each, before torch is imported:
`file:line: section.key: problem, got value, advice`, or `command line: --section.key: ...`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lm.system.errors import ConfigError, not_installed

try:
    from pydantic_core import ErrorDetails, ValidationError
except ModuleNotFoundError as missing:  # commands import this file before `errors.run`
    print(not_installed(missing), file=sys.stderr)
    sys.exit(ConfigError.exit_code)

from lm.config.complaints import in_words, nearest
from lm.config.describe import yaml_lines
from lm.config.keys import WORD, keys, name_of, without_format
from lm.config.scalars import KeyPath, dotted, not_text, path_of, plain, shown, unprintable
from lm.config.schema.config import Config
from lm.config.schema.section import WRITTEN_FOR_DATA, WRITTEN_NOW
from lm.config.suggestions import advice
from lm.config.yaml_reader import MAX_DEPTH, read_file, read_text

MOST_PROBLEMS = 200  # explained in one answer; the others are counted

# Takes a configuration that has `finetune`; returns its sections with those of the base checkpoint.
Complete = Callable[[Config], dict[str, Any]]


@dataclass(frozen=True)
class Loaded:
    """A checked configuration, and the origin of each value."""

    config: Config
    origins: dict[str, str]  # "config.yaml:12", "command line", "default" or "finetune.base"


def load(
    path: Path | str,
    overrides: Sequence[str] = (),
    complete: Complete | None = None,
    trains: bool = True,
) -> Loaded:
    """Read a YAML file, apply `--section.key value` or `--section.key=value` arguments, and check
    the result.

    Paths in the file are relative to the current directory, not to the file.

    Args:
        path: the YAML file.
        overrides: the arguments.
        complete: completes a configuration that has `finetune`; None leaves it as it is written.
            The commands call `lm.commands.load_config`, which asks the base checkpoint.
        trains: refuses what is wrong only for a training, too.

    Raises:
        ConfigError: the configuration is wrong; one line for each problem.
    """
    document = read_file(path)
    draft = _Draft(
        str(path),
        problems=[(line, f"{path}:{line}: {message}") for line, message in document.problems],
    )
    if isinstance(document.value, dict):
        draft.tree = document.value
        draft.marks |= document.lines
    elif document.is_complete:
        empty = "empty" if document.value is None else f"not a mapping, got {shown(document.value)}"
        draft.problems.append((1, f"{path}:1: {empty}, write the sections data: and trainer:"))
        document.is_complete = False
    draft.override(overrides)
    config = (
        draft.check(complete, WRITTEN_NOW if trains else WRITTEN_FOR_DATA)
        if document.is_complete
        else None
    )
    if config is None or draft.problems:
        raise ConfigError(
            "\n".join(line for _, line in sorted(draft.problems, key=lambda problem: problem[0]))
        )
    origins = {dotted(key): draft.origin(key) for key, _ in yaml_lines(config) if key}
    if config.finetune is not None and complete is not None:
        of_base = {
            key
            for key, origin in origins.items()
            if key.startswith(("model.", "tokenizer.")) and origin == "default"
        } - {"model.kernels"}  # the base does not decide it
        origins |= dict.fromkeys(of_base, "finetune.base")
    return Loaded(config, origins)


@dataclass
class _Draft:
    """The values that the file and the flags give, before they are checked."""

    name: str
    tree: dict[str, Any] = field(default_factory=dict)
    # The place of each key: its line in the file, or the path of the flag that set it.
    marks: dict[KeyPath, int | KeyPath] = field(default_factory=lambda: {(): 1})
    # (line in the file or infinity for the command line, message)
    problems: list[tuple[float, str]] = field(default_factory=list)

    def origin(self, path: KeyPath) -> str:
        """Return the origin of a key's value as in `Loaded.origins`."""
        mark = self.marks.get(path)
        if mark is None:
            return "default"
        return f"{self.name}:{mark}" if isinstance(mark, int) else "command line"

    def complain(self, path: KeyPath, message: str) -> None:
        """Note a problem at the place of its key or, if that is absent, of the nearest section.

        A key whose section is not in the file has no line there.
        """
        place = nearest(path, self.marks)
        mark = self.marks[place]
        if isinstance(mark, int):
            line = f":{mark}" if place else ""
            self.problems.append((mark, f"{self.name}{line}: {dotted(path)}: {message}"))
        else:
            self._refuse(mark if mark[: len(path)] == path else path, message)

    def _refuse(self, flag: KeyPath, message: str) -> None:
        self._note(f"--{dotted(flag)}: {message}")

    def _note(self, problem: str) -> None:
        """Note a problem of the command line."""
        self.problems.append((float("inf"), f"command line: {problem}"))

    def override(self, arguments: Sequence[str]) -> None:
        """Apply `--section.key value` arguments to the tree."""
        rest = list(arguments)
        done: list[KeyPath] = []
        unknown: dict[str, Any] = {}
        while rest:
            flag, equals, text = rest.pop(0).partition("=")
            if not _is_flag(flag):
                self._note(f"{shown(flag + equals + text)}: not a flag, write --section.key value")
                continue
            path = tuple(flag[2:].split("."))
            has_value = bool(equals or (rest and not _is_flag(rest[0])))
            if has_value and not equals:
                text = rest.pop(0)
            if len(path) > MAX_DEPTH:
                self._note(
                    f"{shown(flag)}: nested deeper than {MAX_DEPTH}, write --section.key value"
                )
            elif len(path) == 1 and path[0] not in keys():
                unknown[path[0]] = plain(text) if has_value else True
            elif not has_value:
                self._refuse(
                    path, f"no value, write --{dotted(path)} VALUE (=VALUE where it begins with --)"
                )
            elif twice := [other for other in done if other[: len(path)] == path[: len(other)]]:
                self._refuse(
                    path, f"given twice, got --{dotted(twice[0])} before, remove one of the two"
                )
            else:
                done.append(path)
                self._set(path, text)
        for name, value in unknown.items():
            words = advice((name,), self.tree | unknown, value=value)
            self._refuse((name,), f"unknown flag, {words}; see --help")

    def _set(self, path: tuple[str, ...], text: str) -> None:
        problems, value, inner = _read_value(path, text)
        for problem in problems:
            self._refuse(path, problem)
        if problems:
            return
        section = self.tree
        for length, part in enumerate(path[:-1], 1):
            if section.get(part) is None:
                section[part] = {}
                self.marks[path[:length]] = path
            if not isinstance(section[part], dict):
                parent = dotted(path[:length])
                self._refuse(
                    path,
                    f"{parent} is not a section, got {shown(section[part])}, write --{parent}"
                    " VALUE",
                )
                return
            section = section[part]
        section[path[-1]] = value
        self.marks = {old: mark for old, mark in self.marks.items() if old[: len(path)] != path}
        self.marks |= {(*path, *within): path for within in [(), *inner]}

    def check(self, complete: Complete | None, context: object) -> Config | None:
        """Return the configuration, or note all of its problems and return None."""
        try:
            # pydantic's strict mode takes a list for a tuple only in JSON. It takes no bool or text
            # for a number.
            config = Config.model_validate_json(json.dumps(self.tree), strict=True, context=context)
            if config.finetune is None or complete is None:
                return config
            stored = None if context is WRITTEN_NOW else context  # its paths are expanded already
            return Config.model_validate(complete(config), context=stored)
        except ValidationError as error:
            errors = error.errors(include_url=False)
            if (more := len(errors) - MOST_PROBLEMS) > 0:
                self.problems.append((float("inf"), f"{self.name}: and {more:,} more problems"))
            for details in errors[:MOST_PROBLEMS]:
                path = without_format(details["loc"])
                if details["type"] == "default_factory_not_called":
                    continue  # a default that depends on what is wrong
                if details["loc"][-1:] == (WORD,):
                    continue  # its number has an error of its own
                if details["type"] == "value_error":
                    for problem in str(details["ctx"]["error"]).split("\n"):
                        self.complain(*self._disagreement(path, problem))
                else:
                    self.complain(*self._explain(path, details))
            return None

    def _disagreement(self, section: KeyPath, problem: str) -> tuple[KeyPath, str]:
        """Return the key to blame for a problem between keys, and the problem in words."""
        message = self._with_defaults(section, problem)
        if section:
            return self._flag_among(section, message), message
        name, _, rest = message.partition(" ")
        first = path_of(name)
        assert name_of(first) in keys(), "a check of the whole configuration names the key first"
        blamed = self._flag_among((), message) or first
        return blamed, rest if blamed == first else message

    def _with_defaults(self, section: KeyPath, problem: str) -> str:
        """Return a problem in which values that nobody has written are marked as defaults."""
        if (table := keys().get(name_of(section))) is None or not table.children:
            return problem
        prefix = f"{table.name}." if section else ""
        absent = {
            name.removeprefix(prefix): key.default
            for name, key in keys().items()
            if name.startswith(prefix)
            and (*section, *path_of(name[len(prefix) :])) not in self.marks
        }
        names = "|".join(map(re.escape, absent))
        return re.sub(
            rf"(?<![\w.])({names}) ([^\s,;]+)",
            lambda pair: pair[0] + " (the default)" * (absent[pair[1]] == pair[2]),
            problem,
        )

    def _explain(self, path: KeyPath, error: ErrorDetails) -> tuple[KeyPath, str]:
        """Return the key that a pydantic error is about, and a plain sentence."""
        kind, given = error["type"], error["input"]
        if kind == "extra_forbidden":
            words = advice(path, self.tree, value=given)
            return path, f"unknown key, got {shown(given)}, {words}"
        if kind.startswith("union_tag"):
            path = (*path, "format")
            kind, given = (
                ("literal_error", given["format"]) if "format" in given else ("missing", None)
            )
        return in_words(path, kind, given, error["msg"], keys())

    def _flag_among(self, section: KeyPath, message: str) -> KeyPath:
        """Return the key in a message that a flag set; if there is none, the section.

        A check of several keys should point to the flag that the user has just written.
        """
        words = message.split()
        set_by_flag = (
            path
            for path, mark in self.marks.items()
            if mark == path and path[: len(section)] == section
        )
        return next(
            (path for path in set_by_flag if dotted(path[len(section) :]) in words), section
        )


def _is_flag(argument: str) -> bool:
    return re.match("--[A-Za-z_]", argument) is not None


def _read_value(path: KeyPath, text: str) -> tuple[list[str], Any, list[KeyPath]]:
    """Return the problems of a command-line value, the value, and the paths inside it.

    A key that accepts only text takes the value as it is, so a prompt needs no second layer of
    quotes. A value that begins like a YAML list, mapping or quote is read as YAML. Any other value
    is an unquoted scalar, in which `: ` and ` #` have no meaning.
    """
    key = keys().get(dotted(path))
    if (start := unprintable(text)) is not None:
        return [not_text(text[start])], None, []
    if key and key.text_only:
        return [], None if text == "null" and key.type.endswith("null") else text, []
    if not text.startswith(("[", "{", '"', "'")):
        return [], plain(text) if text else "", []
    document = read_text(text)
    return [message for _, message in document.problems], document.value, list(document.lines)
