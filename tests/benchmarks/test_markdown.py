"""Tables of the benchmarks."""

from __future__ import annotations

from benchmarks.markdown import markdown


def test_columns_that_are_empty_everywhere_are_left_out() -> None:
    table = markdown(["a", "b", "c", "d"], [["1", "", "3"], ["4", "", "", ""]])
    assert table.splitlines() == ["| a | c |", "| --- | --- |", "| 1 | 3 |", "| 4 |  |"]
