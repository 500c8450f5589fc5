"""Warnings as lines of a command's messages."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from sr_models.io.listing import one_line

__all__ = ["warnings_as_lines"]


@contextmanager
def warnings_as_lines(category: type[Warning], about: str = "") -> Iterator[None]:
    """Print all warnings of a category as lines on standard error, above a progress bar; others appear as before.

    Args:
        category: their class, or a base of it.
        about: what begins each line, such as an image's name.
    """
    with warnings.catch_warnings():
        others = warnings.showwarning

        def show(message: Warning | str, kind: type[Warning], *rest: Any, **options: Any) -> None:
            if issubclass(kind, category):
                tqdm.write(f"sr-models: {one_line(f'{about}: {message}' if about else str(message))}", file=sys.stderr)
            else:
                others(message, kind, *rest, **options)

        warnings.simplefilter("always", category)
        warnings.showwarning = show  # type: ignore[assignment]
        yield
