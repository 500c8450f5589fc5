"""The tables of the NTIRE challenges' toolkit: images, their means, and the scores for every number of samples."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from sr_models.evaluation.metrics import diversity_percent
from sr_models.evaluation.scores import Scores
from sr_models.io.files import write_bytes
from sr_models.io.listing import one_line

__all__ = [
    "challenge_figures",
    "check_challenge_tables",
    "figures_by_count",
    "scores_file",
    "write_challenge_tables",
]


def challenge_figures(row: Scores) -> dict[str, float]:
    """Return the four figures of 2021's toolkit; infinities stay, as they do there."""
    return {
        "LPIPS_mean": float(np.mean(row.sample_distances)),
        "LRPSNR_worst": float(np.min(row.sample_lr_psnrs)),
        "LRPSNR_mean": float(np.mean(row.sample_lr_psnrs)),
        "score": row.diversity,
    }


def figures_by_count(row: Scores) -> dict[str, float]:
    """Return the figures of 2022's toolkit for the first 1, 2, ... samples.

    For every count they are the mean distance, the local best, the difference of the global and the local best, and the
    score in percent; by LPIPS, and by the squared error of windows of 16 x 16 pixels. That toolkit shuffles the samples
    first; here they keep their order.
    """
    figures = {}
    for count in range(1, len(row.sample_distances) + 1):
        for kind, all_distances, nearest in (
            ("LPIPS", row.sample_distances, row.nearest_distances),
            ("MSE", row.sample_errors, row.nearest_errors),
        ):
            distances = all_distances[:count]
            figures[f"{kind}_mean_n{count}"] = float(np.mean(distances))
            figures[f"{kind}_best_loc_n{count}"] = nearest[count - 1]
            figures[f"{kind}_diff_n{count}"] = min(distances) - nearest[count - 1]
            figures[f"{kind}_score_n{count}"] = diversity_percent(distances, nearest)
    return figures


def scores_file(path: Path) -> Path:
    """Return where the scores are from which the tables are made, to go on after an interruption: NAME.scores.csv."""
    return path.with_suffix(f".scores{path.suffix}")


def check_challenge_tables(path: Path, *, overwrite: bool = False) -> None:
    """Check that the tables may be written: that none is there, or the scores from which it was made are.

    Raises:
        ValueError: a file of others.
    """
    there = [table for table in _tables(path) if table.exists()]
    if there and not overwrite and not scores_file(path).exists():
        raise ValueError(
            f"{one_line(there[0])} exists, but not {one_line(scores_file(path).name)}, from which it was made; choose "
            "another output, or replace it with --overwrite"
        )


def write_challenge_tables(path: Path, rows: Sequence[Scores]) -> list[Path]:
    """Write the tables of the toolkit, atomically.

    Args:
        path: ``NAME.csv``, an image a row. The means go to ``NAME_mean.csv``, the scores for every number of samples to
            ``NAME_full.csv``.
        rows: scores under LPIPS, at least one.

    Returns:
        The three files.
    """
    tables = _tables(path)
    figures = [challenge_figures(row) for row in rows]
    names = [row.image for row in rows]
    _write(tables[0], names, figures)
    _write(tables[1], ["mean"], [{name: float(np.mean([row[name] for row in figures])) for name in figures[0]}])
    _write(tables[2], names, [figures_by_count(row) for row in rows])
    return tables


def _tables(path: Path) -> list[Path]:
    return [path, *(path.with_name(f"{path.stem}_{part}{path.suffix}") for part in ("mean", "full"))]


def _write(path: Path, names: Sequence[str], rows: Sequence[Mapping[str, float]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["", *rows[0]])
    writer.writerows([name, *row.values()] for name, row in zip(names, rows, strict=True))
    write_bytes(path, text.getvalue().encode(errors="surrogateescape"))
