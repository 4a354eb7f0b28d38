"""The build backend of pyproject.toml: it refuses `pip install .`.

This is a repository to clone, to read and to change, not a library: its commands and configurations
are used where they lie. A wheel would also put modules called `data`, `list` and `model` at the top
level of site-packages, where other programs would import them by mistake.
"""

from __future__ import annotations

import sys
from typing import Any

REFUSAL = (
    "Tiny Transformer is not installed with pip: clone the repository and run `make smoke` in it,"
    " which sets up .venv; to import it from elsewhere, add the clone to PYTHONPATH"
)


def build_wheel(*_: Any, **__: Any) -> str:
    """Refuse (PEP 517)."""
    sys.exit(REFUSAL)


build_sdist = build_editable = build_wheel
