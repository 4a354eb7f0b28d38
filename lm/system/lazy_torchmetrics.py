"""torchmetrics without its metrics, for a quick start.

Lightning imports torchmetrics for two classes, `Metric` and `MetricCollection`. The package itself
imports all its metrics, and these import scipy, transformers and whatever else is installed: 1.3 of
the 3 seconds that Lightning takes. No command here computes such a metric.

`defer` puts off the package's `__init__`. Its submodules are the real ones, and so are the two
classes. Any other name, such as `torchmetrics.Accuracy`, first runs the `__init__`, so a callback
of yours can use metrics and `self.log` as ever.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import logging
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

PACKAGE = "torchmetrics"


def defer() -> None:
    """Let the next import of torchmetrics in this process load the package without its metrics."""
    if PACKAGE not in sys.modules and not any(isinstance(f, _Finder) for f in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """Finds torchmetrics, once, with another loader."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != PACKAGE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    """Runs the package's `__init__` when a name is asked for that it alone defines."""

    def __init__(self, whole: importlib.abc.Loader):
        self._whole = whole

    def exec_module(self, module: ModuleType) -> None:
        names: dict[str, Any] = module.__dict__

        def load(name: str) -> Any:
            if name.startswith("__"):  # what inspect and warnings ask every module for
                raise AttributeError(f"module {PACKAGE!r} has no attribute {name!r}")
            names.pop("__getattr__", None)
            self._whole.exec_module(module)
            return getattr(module, name)

        names["_logger"] = logging.getLogger(PACKAGE)  # the submodules import it
        try:
            import torchmetrics.utilities  # noqa: F401 (first: it and `metric` import each other)
            from torchmetrics.__about__ import __version__
            from torchmetrics.collections import MetricCollection
            from torchmetrics.metric import Metric
        except ImportError:  # another version has these names elsewhere
            self._whole.exec_module(module)
        else:
            names |= {"Metric": Metric, "MetricCollection": MetricCollection}
            names |= {"__version__": __version__, "__getattr__": load}
