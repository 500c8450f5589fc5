"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["markdown"]


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a table without the columns that are empty in all rows. A row may be shorter than the head."""
    filled = [column for column in range(len(head)) if any(row[column : column + 1] not in ([], [""]) for row in rows)]
    lines = [[head[column] for column in filled], ["---"] * len(filled)]
    lines += [[row[column] if column < len(row) else "" for column in filled] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
