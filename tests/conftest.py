"""Shared by all tests: one thread each, because pytest runs several workers; and `--long`, for the
batteries of `make reliability`.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell starts what runs behind it (`make test &`) with Ctrl-C ignored, and children inherit that:
# tests that send it would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--long",
        action="store_true",
        help="as often as docs/RELIABILITY.md says, instead of a few times each",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """`@pytest.mark.long`: only with --long, and said to be left out otherwise."""
    if not config.getoption("--long"):
        left_out = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def amount(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """`amount(short, long)`: how often to try something, by default and with --long."""
    return lambda short, long: long if request.config.getoption("--long") else short


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """`figure("50 of 50 kills: the same weights")` is printed at the end; docs/RELIABILITY.md
    quotes it.
    """
    return lambda text: record_property("figure", text)


@pytest.fixture(scope="session")
def tracked() -> dict[str, str]:
    """Return the files that git tracks: their modes by path."""
    command = ["git", "-c", "core.quotePath=off", "ls-files", "-s", "-z"]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    fields = [line.split("\t") for line in lines.split("\0") if line]
    return {path: described.split()[0] for described, path in fields}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = terminalreporter.stats.get("passed", []) + terminalreporter.stats.get("failed", [])
    lines = [
        f"{report.nodeid}: {value}"
        for report in reports
        for name, value in report.user_properties
        if name == "figure"
    ]
    if lines:
        terminalreporter.section("figures")
        for line in sorted(lines):
            terminalreporter.write_line(line)
