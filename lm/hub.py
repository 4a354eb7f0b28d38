"""Datasets of the Hugging Face hub. Code that a dataset brings along is never run."""

from __future__ import annotations

import functools
from typing import Any

from lm.errors import DataError
from lm.schema.source import HubSource


@functools.cache
def load_dataset(source: HubSource) -> Any:
    """Download a dataset, or find it in the hub's own cache. Raises DataError where it cannot be had."""
    import datasets

    try:
        return datasets.load_dataset(source.dataset, source.config, split=source.dataset_split, revision=source.revision)
    except Exception as error:  # network, hub, cache, formats: the library has no common type for what it raises
        reason = (str(error).splitlines() or ["no details"])[0].rstrip(".")
        raise DataError(
            f"dataset {source.dataset!r}, config {source.config!r}, dataset_split {source.dataset_split!r}: cannot be loaded "
            f"({reason}); check the names, and fetch it once while online: later runs find it in the hub's cache"
        ) from error
