"""Lack of memory, told from other errors."""

from __future__ import annotations

import re

__all__ = ["is_out_of_memory"]


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error is a lack of memory, of whatever device. Torch need not be imported."""
    names = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}
    told = isinstance(error, RuntimeError) and re.search(r"not enough memory|can't allocate memory", str(error))
    return isinstance(error, MemoryError) or "torch.OutOfMemoryError" in names or bool(told)
