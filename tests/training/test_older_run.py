"""A run that an older version began resumes.

Commit 3fdd691 made `older_run` in float32 with one thread. A SIGTERM stopped it after 5 of its 15
steps.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lm.runs.metrics import read
from tests.support.runs import train

pytestmark = pytest.mark.usefixtures("trains")

OLDER_RUN = Path(__file__).parent / "older_run"
# The losses of steps 6 to 15, as the same commit logged them in a run that was not stopped.
LOSSES = (
    *(5.058867, 4.977115, 4.881121, 4.817108, 4.749552),
    *(4.737722, 4.751836, 4.774611, 4.677504, 4.689180),
)


def test_a_run_begun_before_the_rooms_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten more losses are equal to 1e-5, because another processor may round the last digit
    differently.
    """
    folder = tmp_path / "older"
    shutil.copytree(OLDER_RUN, folder)
    monkeypatch.chdir(folder)
    train(Path("config.yaml"), resume="auto")
    rows = [row for row in read(folder / "run" / "metrics.csv") if row["split"] == "train"]
    assert [row["step"] for row in rows] == list(range(1, 16))
    assert [row["loss"] for row in rows[5:]] == pytest.approx(LOSSES, abs=1e-5)
