"""Define the options, markers and fixtures of all tests.

Each worker of pytest computes in one thread. `--long` is for the batteries of `make reliability`.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from tests.support import runs, slow

ROOT = Path(__file__).parents[1]

os.environ.setdefault("OMP_NUM_THREADS", "1")

# The stand-in for the hub needs clients that ask it.
for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
    os.environ.pop(name, None)

# A shell starts a background job (`make test &`) with Ctrl-C ignored, and children inherit that:
# tests that send Ctrl-C would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--long",
        action="store_true",
        help="as often as docs/RELIABILITY.md says, instead of a few times each",
    )


def pytest_configure(config: pytest.Config) -> None:
    slow.install()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark slow tests; deselect those marked `long` without --long."""
    slow.mark(items)
    if not config.getoption("--long"):
        deselected = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=deselected)
        items[:] = [item for item in items if item not in deselected]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    slow.watch(item)
    try:
        return (yield)
    finally:
        slow.watch(None)


@pytest.fixture(scope="session")
def starts_processes() -> None:
    """Allow a test to start processes, and mark it slow."""


@pytest.fixture(scope="session")
def trains() -> None:
    """Allow a test to train a run in this process, and mark it slow."""


@pytest.fixture(scope="session")
def takes_seconds() -> None:
    """Mark a test slow because it computes for seconds: many examples, simulations, learning."""


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory: pytest.TempPathFactory, trains: None) -> Path:
    """Return the folder of one run of 12 steps, over three epochs, never interrupted.

    All workers share it and nobody changes it. It holds config.yaml, corpus.txt, cache/ and run/.
    """
    return runs.train_once(shared_folder(tmp_path_factory) / "smoke_run")


def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that all workers of this session of pytest have in common."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session")
def amount(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """Return `amount(short, long)`: how often to try something, by default and with --long."""
    return lambda short, long: long if request.config.getoption("--long") else short


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Return `figure("50 of 50 kills: the same weights")`, which prints at the end.

    docs/RELIABILITY.md quotes these lines.
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
