"""Tables of text, whose columns are as wide as their widest cell."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["align_columns"]


def align_columns(rows: Sequence[Sequence[str]], *, left: bool = False) -> str:
    """Join rows of cells to lines, with two spaces between columns.

    Args:
        rows: at least one; all have the same number of cells.
        left: begin cells at the left of their column, without spaces at the ends of lines; default: at the right.

    Raises:
        ValueError: rows with different numbers of cells.

    Example:
        >>> print(align_columns([["a", "size"], ["long", "1"]]))
           a  size
        long     1
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    side = "<" if left else ">"
    lines = ("  ".join(f"{cell:{side}{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() if left else line for line in lines)
