"""The part of a report that shows a ranking, if the run's folder has one: ranking.json."""

from __future__ import annotations

from lm.page import Html
from lm.run_record import RunRecord


def ranking(run: RunRecord) -> Html | None:
    """None where there is none."""
    return None
