"""Seeds that users give, checked without a library: the help of a command needs nothing more."""

from __future__ import annotations

import operator

__all__ = ["MAX_SEED", "check_seed"]

#: The largest seed that users may give.
MAX_SEED = 2**31 - 1


def check_seed(seed: int) -> int:
    """Return a seed as an ``int``; integers of NumPy are fine.

    Raises:
        TypeError: anything but an integer, ``bool`` included.
        ValueError: a seed out of range.
    """
    if isinstance(seed, bool) or not hasattr(seed, "__index__"):
        raise TypeError(f"seed must be an integer in 0..2^31 - 1, got {seed!r}")
    number = operator.index(seed)
    if not 0 <= number <= MAX_SEED:
        raise ValueError(f"seed must be in 0..2^31 - 1, got {number}")
    return number
