"""What all commands do with their flags: python -m pytest tests/commands/test_flags.py."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest

import list as list_command
from lm.commands import add_flag, command_parser, to_path
from lm.system.errors import ConfigError
from tools import ablate, compare, inspect_data, plot_curves, report


def refused(*arguments: str) -> str:
    """Return the answer of a command with some flags to a command line."""
    parser = command_parser("x.py", None)
    add_flag(parser, "--config", required=False)
    add_flag(parser, "--device")
    parser.add_argument("--out", type=to_path)
    parser.add_argument("--cases", nargs="+")
    parser.add_argument("--stop", action="append")
    with pytest.raises(ConfigError) as caught:
        print(parser.parse_args(arguments))
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix("x.py: ").removesuffix(" (--help names all flags)")


def test_a_mistake_is_one_line_that_leads_on() -> None:
    assert refused("--out", "-x") == (
        "argument --out: expected one argument; write --out=VALUE for a value that begins with a"
        " dash"
    )
    assert refused("--cases", "-x").endswith(
        "write --cases=VALUE for a value that begins with a dash"
    )
    assert refused("--what") == "unrecognized arguments: --what"
    empty = "the path is empty; write the path of a file or folder"
    assert refused("--out", "") == f"argument --out: {empty}"
    assert refused("--config=") == f"argument --config: {empty}"


def test_a_flag_given_twice_is_refused() -> None:
    """Other programs merge two --config; here the first one would be dropped without a word."""
    assert refused("--config", "a.yaml", "--config", "b.yaml") == (
        "argument --config: given twice, got a.yaml before; a run has one file: write both into"
        " one, or set keys by --section.key VALUE"
    )
    assert refused("--out", "a", "--out", "a").endswith("got a before; remove one of the two")
    assert refused("--cases", "a", "--cases", "b").endswith("write all values after one of the two")


def test_a_flag_that_is_a_path_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("OUT", "there")
    parser = command_parser("x.py", None)
    add_flag(parser, "--ckpt")
    parser.add_argument("--out", type=to_path)
    arguments = parser.parse_args(["--ckpt=~/best.ckpt", "--out=$OUT/x"])
    assert arguments.ckpt == "/home/ada/best.ckpt" and arguments.out == Path("there/x")


@pytest.mark.parametrize("command", [report, compare, plot_curves, list_command])
def test_every_command_refuses_an_empty_path(
    command: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = {report: ["run", "--out", ""], compare: ["a", "b", "--out", ""]}.get(command, [""])
    monkeypatch.setattr("sys.argv", ["x", *arguments])
    with pytest.raises(ConfigError, match="the path is empty"):
        command.main()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("command", "arguments", "problem"),
    [
        (plot_curves, ["run", "--out", "/"], "got /; write /curves.png"),
        (ablate, ["--config", "c", "--change", "a=1", "--seeds", "9" * 20], "write 1 to 1,000"),
    ],
)
def test_a_value_beyond_all_bounds_is_refused_at_once(
    command: object, arguments: list[str], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["x", *arguments])
    with pytest.raises(ConfigError, match=problem):
        command.main()  # type: ignore[attr-defined]


@pytest.mark.parametrize("flag", ["rows", "ngram", "sample"])
def test_a_count_beyond_all_bounds_is_refused_at_once(flag: str) -> None:
    arguments = Namespace(step=0, rows=1, ngram=13, sample=None)
    setattr(arguments, flag, 2**70)
    with pytest.raises(ConfigError, match=f"--{flag}: too large, got {2**70}, write "):
        inspect_data.check(arguments, SimpleNamespace(most_steps=1))  # type: ignore[arg-type]
