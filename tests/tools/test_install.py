"""Test the output of `make` while pip downloads."""

from __future__ import annotations

from tools.install import shown

PIP = """Collecting numpy==2.4.6
  Downloading numpy-2.4.6-cp311-cp311-manylinux_2_28_x86_64.whl.metadata (6.6 kB)
Processing /wheels/torch-2.13.0+cpu-cp311-cp311-linux_x86_64.whl (from -r requirements.txt (line 4))
Using cached tqdm-4.70.1-py3-none-any.whl (78 kB)
Downloading numpy-2.4.6-cp311-cp311-manylinux_2_28_x86_64.whl (16.8 MB)
Progress 0 of 16800000
Progress 8400000 of 16800000
Progress 16800000 of 16800000
Installing collected packages: tqdm, numpy, torch
Successfully installed numpy-2.4.6 torch-2.13.0+cpu tqdm-4.70.1
"""
PACKAGES = ["    torch-2.13.0+cpu\n", "    tqdm-4.70.1 (78 kB)\n", "    numpy-2.4.6 (16.8 MB)\n"]


def test_each_package_is_one_line():
    assert list(shown(PIP.splitlines(), False)) == [*PACKAGES, "    installing 3 packages\n"]


def test_a_terminal_shows_how_far_a_download_is():
    lines = list(shown(PIP.splitlines(), True))
    assert [text for text in lines if "%" in text] == [
        f"\x1b[A\r    numpy-2.4.6 (16.8 MB)  {percent} %\x1b[K\n" for percent in (0, 50, 100)
    ]
