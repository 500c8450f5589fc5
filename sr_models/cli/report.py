"""``sr-models report``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sr_models.cli._parser import CommandParser

__all__ = ["FIRST_OPTION", "add_arguments", "run"]

FIRST_OPTION = "--scores"


def run(scores: list[str], output: str, images: str | None = None) -> None:
    """Compare models that were scored: one HTML page with tables, curves, ranks and pictures.

    The page needs no network and no other file. Methods are named as their files. Means are over the images that all
    methods have, with intervals of a bootstrap over images. Curves over temperatures and baselines are there if
    sr-models evaluate was called with --report. Pictures are there if it was called with --save_samples.

    Example:
        sr-models report srflow.csv ncsr.csv --output report.html

    Args:
        scores: CSV files of sr-models evaluate, with all that it wrote beside them.
        output: HTML file.
        images: folder of the high-resolution images, if it is not where it was when they were scored.
    """
    from sr_models.evaluation.report.of_files import report_files

    files = [os.path.expanduser(file) for file in scores]
    target = os.path.expanduser(output)
    report_files(files, target, images and os.path.expanduser(images))
    print(f"wrote {target}")


def add_arguments(parser: CommandParser) -> None:
    """Declare the options; several files may follow ``--scores``, as a shell writes a pattern."""
    parser.add_argument(
        "--scores",
        nargs="+",
        type=str,
        required=True,
        help="CSV files of sr-models evaluate, with all that it wrote beside them",
    )
    parser.add_function_arguments(run, as_group=False, skip={"scores"})
