"""pip install, with one line for each package that it downloads. The Makefile uses it.

    python -m tools.install -r requirements.txt

The arguments are those of `pip install`. A new pip also tells how far a download is; it is shown
where the output is a terminal.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata

# "Downloading numpy-2.4.6-cp311-cp311-linux_x86_64.whl (16.8 MB)"; metadata is too small to show
STARTS = r"\s*(?:Downloading|Using cached|Processing) (?:\S*/)?"
FILE = re.compile(STARTS + r"([^/\s]+)( \([\d.]+ \w?B\))?(?: \(.*\))?$")
BYTES = re.compile(r"Progress (\d+) of (\d+)$")


def main() -> int:
    """Run pip, print its progress and return its exit status."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-input"]
    command = [*pip, *_progress_bar(), *sys.argv[1:]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        assert process.stdout is not None
        for text in shown(process.stdout, sys.stdout.isatty()):
            sys.stdout.write(text)
            sys.stdout.flush()
    return process.returncode


def shown(lines: Iterable[str], terminal: bool) -> Iterator[str]:
    """Yield what to print for pip's lines: packages, and their percentage in a terminal."""
    package = ""
    for line in lines:
        if match := FILE.match(line):
            name = match[1].rpartition(".")[0] if match[1].endswith(".whl") else match[1]
            if name.endswith(".metadata"):
                continue
            package = f"    {'-'.join(name.split('-')[:2])}{match[2] or ''}"
            yield f"{package}\n"
        elif match := BYTES.match(line):
            if terminal and int(match[2]) > 0:
                percent = 100 * int(match[1]) // int(match[2])
                yield f"\x1b[A\r{package}  {percent} %\x1b[K\n"
        elif line.startswith("Installing collected packages: "):
            yield f"    installing {line.count(',') + 1} packages\n"


def _progress_bar() -> list[str]:
    """Return the option for machine-readable progress, which pip has from 24.1 on."""
    version = tuple(int(part) for part in re.findall(r"\d+", metadata.version("pip"))[:2])
    return ["--progress-bar", "raw"] if version >= (24, 1) else []


if __name__ == "__main__":
    sys.exit(main())
