"""Decoded images that are kept in memory, as many as fit."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
from torch.utils.data import get_worker_info

__all__ = ["LIMIT", "Memory"]

#: Bytes of one data set's images in the memory of all its workers together.
LIMIT = 2**30

Arrays = tuple[np.ndarray, ...]


class Memory:
    """The arrays used last, up to :data:`LIMIT` bytes over all workers of a loader; each worker has an equal share.

    A copy that goes to another process starts empty.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, Arrays] = OrderedDict()
        self._bytes = 0

    def get(self, key: Hashable, make: Callable[[], Arrays]) -> Arrays:
        """Return the arrays of a key, from memory or from ``make()``."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        arrays = make()
        if all(isinstance(array, np.memmap) for array in arrays):
            # the system keeps them, for all processes together
            return arrays
        size = _size(arrays)
        worker = get_worker_info()
        limit = LIMIT // (worker.num_workers if worker else 1)
        if size > limit:
            return arrays
        self._kept[key] = arrays
        self._bytes += size
        while self._bytes > limit:
            self._bytes -= _size(self._kept.popitem(last=False)[1])
        return arrays

    def __reduce__(self) -> tuple[Any, ...]:
        return (Memory, ())


def _size(arrays: Arrays) -> int:
    return sum(array.nbytes for array in arrays)
