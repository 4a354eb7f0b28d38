"""The memory of the tensors that live at the same time, on a device that records no peak of it."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveTensors(TorchDispatchMode):
    """Counts the tensors that operations make in a `with` block, until they are freed.

    The memory inside an operation, and what the allocator keeps for later, is not counted.

    Attributes:
        peak: the most bytes that they had at a time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._bytes: dict[int, int] = {}  # by a storage's address: views share one

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Do an operation, and count its new storages."""
        result = func(*args, **(kwargs or {}))
        given = {storage._cdata for storage in _storages((args, kwargs))}
        for storage in _storages(result):
            if storage._cdata not in given | self._bytes.keys():
                self._bytes[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self._bytes.pop, storage._cdata)
        self.peak = max(self.peak, sum(self._bytes.values()))
        return result


def _storages(values: Any) -> list[Any]:
    return [leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
