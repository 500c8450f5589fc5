"""Memory of the process: a lack of it, told from other errors, and blocks that are given back at once."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re

__all__ = ["is_out_of_memory", "release_large_blocks"]

#: Number of the setting in glibc's ``malloc.h``, and bytes from which on a block is the system's again once it is free.
_M_MMAP_THRESHOLD, _LARGE = -3, 2**18


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error is a lack of memory, of whatever device. Torch need not be imported."""
    names = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}
    told = isinstance(error, RuntimeError) and re.search(r"not enough memory|can't allocate memory", str(error))
    return isinstance(error, MemoryError) or "torch.OutOfMemoryError" in names or bool(told)


def release_large_blocks() -> None:
    """Let the C library give blocks of 256 KiB and more back to the system as soon as they are free.

    glibc keeps free blocks of up to 32 MiB, and gaps between them add up: sampling then takes up to five times the
    memory of its tensors. Giving them back costs a tenth to a fifth of the time. A setting of the user's own wins.
    Other C libraries are left as they are.
    """
    own = os.environ.get("MALLOC_MMAP_THRESHOLD_", ""), os.environ.get("GLIBC_TUNABLES", "")
    if own[0] or "mmap_threshold" in own[1]:
        return
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE)
