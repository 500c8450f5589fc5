"""Files that turn out bad while a run goes on."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable

__all__ = ["Failures"]

#: A run ends when at least so many files, and this share of all images, could not be read.
_FEWEST, _SHARE = 10, 0.01


class Failures:
    """Count of the files that could not be read; the crops of others took their place.

    Args:
        images: number of images in the data set.
        strict: the first such file is an error.
        say: called with one line for each file, once.
    """

    def __init__(self, images: int, *, strict: bool = False, say: Callable[[str], None] = warnings.warn) -> None:
        self.images, self.strict, self.say = images, strict, say
        self.files: set[str] = set()

    def add(self, failed: Iterable[str]) -> None:
        """Note what a batch reports.

        Args:
            failed: the entries ``failed`` of its items: lines ``path: reason``, or nothing.

        Raises:
            ValueError: more than 1 % of the images, and at least 10, could not be read; with ``strict``, one.
        """
        for line in (line for lines in failed for line in lines.splitlines()):
            path = line.partition(": ")[0]
            if path in self.files:
                continue
            self.files.add(path)
            if self.strict:
                raise ValueError(f"image {line} (strict)")
            self.say(f"image {line}; another one takes its place")
            if len(self.files) >= _FEWEST and len(self.files) > _SHARE * self.images:
                raise ValueError(f"{len(self.files)} of {self.images} images could not be read; the last one: {line}")
