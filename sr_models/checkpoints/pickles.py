"""Pickles that are looked through before anything builds what they describe."""

from __future__ import annotations

import pickletools
from typing import BinaryIO

__all__ = ["damage_of_pickles"]

#: Sum of the squared lengths of words that names and texts may have. torch puts them into messages and searches those
#: in a time that grows like this sum: 10^8 takes it half a second.
_SQUARES = 10**8


def damage_of_pickles(file: BinaryIO, count: int = 1) -> str:
    """Say what is wrong with pickles before they are loaded; empty: nothing that can be seen.

    Args:
        file: is read from where it stands to the end of the last pickle.
        count: pickles that follow each other.
    """
    squares = 0
    for _ in range(count):
        try:
            for _, value, _ in pickletools.genops(file):
                if isinstance(value, (str, bytes)):
                    squares += sum(len(word) ** 2 for word in value.split())
                    if squares > _SQUARES:
                        return "it holds too long texts without a space"
        # a damaged pickle leads to errors of many types
        except Exception:
            return "it is cut short or damaged"
    return ""
