"""``sr-models rank``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sr_models.cli._parser import CommandParser

__all__ = ["FIRST_OPTION", "add_arguments", "run"]

#: What the user need not type if it comes first.
FIRST_OPTION = "--tables"


def run(tables: list[str], opinions: str | None = None, published: int | None = None) -> int:
    """Rank methods as the NTIRE challenges do.

    Methods of less than 45 dB LR-PSNR are not ranked; all others count as equally consistent. The final rank is that of
    the mean of two ranks: of the raters' opinion, and of the diversity score. Ranks stand in brackets.

    Example:
        sr-models rank methods.csv
        sr-models rank mine.csv other.csv --opinions study.csv --published 4

    Args:
        tables: CSV files with the columns method, lpips, lr_psnr, diversity and mor (mean opinion rank; may be empty),
            or files of scores from sr-models evaluate, which are called by their names.
        opinions: CSV file with the columns method and mor, for tables without.
        published: enlargement, 4 or 8, of the published scores of the challenge of 2021 that are ranked too. Their
            opinions, diversities and LPIPS are of other images than yours.
    """
    import os
    import sys

    from sr_models.evaluation.published_scores import CHALLENGE_SOURCE
    from sr_models.evaluation.ranking import (
        MethodScores,
        published_methods,
        rank,
        ranking_table,
        read_methods,
        read_opinions,
    )
    from sr_models.io.listing import one_line

    seen = None if opinions is None else read_opinions(os.path.expanduser(opinions))
    methods: list[MethodScores] = []
    for table in tables:
        methods += read_methods(os.path.expanduser(table), seen)
    if opinions is not None and seen is not None:
        for name in sorted(seen.keys() - {method.name for method in methods}):
            line = f"sr-models: no table has the method {one_line(name)} of {one_line(os.path.basename(opinions))}"
            print(line, file=sys.stderr)
    if published is not None:
        for method in published_methods(published):
            methods.append(MethodScores(f"{method.name} [published]", *list(vars(method).values())[1:]))
    print(ranking_table(rank(methods)))
    if published is not None:
        print(f"[published]: {CHALLENGE_SOURCE}")
    return 0


def add_arguments(parser: CommandParser) -> None:
    """Declare the options; several files may follow ``--tables``, as a shell writes a pattern."""
    parser.add_argument("--tables", nargs="+", type=str, required=True, help="CSV files, or files of scores")
    parser.add_function_arguments(run, as_group=False, skip={"tables"})
