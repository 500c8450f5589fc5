"""Values computed from parameters once for every value that the parameters take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from invflow.ops._transforms import is_watched

__all__ = ["ValueCache", "can_remember"]

T = TypeVar("T")


def can_remember(tensors: Sequence[Tensor]) -> bool:
    """Whether values computed from these tensors may be kept: nothing looks on, and they have data."""
    return not is_watched() and not any(tensor.is_meta or tensor.is_inference() for tensor in tensors)


@dataclass(frozen=True)
class _Entry(Generic[T]):
    versions: list[tuple[int, int]]
    copies: list[Tensor]
    value: T


def _version(tensor: Tensor) -> tuple[int, int]:
    return tensor._version, tensor.data_ptr()


def _same(tensor: Tensor, kept: Tensor) -> bool:
    if (tensor.device, tensor.dtype) != (kept.device, kept.dtype):
        return False
    # An edit through .data leaves the version as it was. Looking would wait for a device other than the CPU.
    return tensor.device.type != "cpu" or torch.equal(tensor, kept)


class ValueCache(Generic[T]):
    """Remembers what was computed from the last values of some tensors. A copied or unpickled cache is empty."""

    def __init__(self) -> None:
        self._entry: _Entry[T] | None = None

    def __reduce__(self) -> tuple[type[ValueCache[T]], tuple[()]]:
        return ValueCache, ()

    def __call__(self, tensors: Sequence[Tensor], compute: Callable[[], T]) -> T:
        """``compute()``, without a graph, or what it returned for the same values of ``tensors``."""
        entry, versions = self._entry, [_version(tensor) for tensor in tensors]
        if entry is None or entry.versions != versions or not all(map(_same, tensors, entry.copies)):
            # what is remembered may be saved for a backward pass later
            with torch.inference_mode(False), torch.no_grad():
                copies = [tensor.detach().clone() for tensor in tensors]
                entry = self._entry = _Entry(versions, copies, compute())
        return entry.value
