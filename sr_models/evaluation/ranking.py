"""The final ranking of the NTIRE challenges: by the opinion of raters and the diversity, among consistent methods."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sr_models.evaluation.published_scores import PUBLISHED
from sr_models.evaluation.record import is_record, read_record
from sr_models.evaluation.scores import mean_scores
from sr_models.io.listing import one_line
from sr_models.io.text_tables import align_columns

__all__ = [
    "LEAST_LR_PSNR",
    "MethodScores",
    "Ranked",
    "published_methods",
    "rank",
    "ranking_table",
    "read_methods",
    "read_opinions",
]

#: Decibels of LR-PSNR from which on a method is ranked; all above count as equally consistent.
LEAST_LR_PSNR = 45.0


@dataclass(frozen=True)
class MethodScores:
    """A method and its mean scores.

    Attributes:
        name: what it is called.
        lpips: mean LPIPS; lower is better.
        lr_psnr: LR-PSNR in dB.
        diversity: diversity score in percent; higher is better.
        opinion: mean opinion rank; lower is better. ``None`` if no rater saw the method.
    """

    name: str
    lpips: float
    lr_psnr: float
    diversity: float
    opinion: float | None = None


@dataclass(frozen=True)
class Ranked:
    """A method and its ranks, from 1. Equal scores share the better rank.

    Attributes:
        method: the method.
        eligible: whether its LR-PSNR is at least 45 dB. Others have no rank.
        opinion: rank of the mean opinion rank, among eligible methods that raters saw.
        diversity: rank of the diversity score, among eligible methods.
        lpips: rank of LPIPS, among eligible methods. It does not count in the final rank.
        mean: mean of the ranks of opinion and diversity.
        final: rank of that mean.
    """

    method: MethodScores
    eligible: bool
    opinion: int | None = None
    diversity: int | None = None
    lpips: int | None = None
    mean: float | None = None
    final: int | None = None


def rank(methods: Sequence[MethodScores]) -> list[Ranked]:
    """Rank methods as the challenges do.

    Eligible are methods of at least 45 dB LR-PSNR; all of them count as equally consistent. The final rank is that of
    the mean of two ranks: of the mean opinion rank, and of the diversity score. A method that no rater saw has no final
    rank.

    Args:
        methods: at least one, of different names.

    Returns:
        The methods, best first: by final rank, then eligible ones without one, then all others. Equals are in the order
        of LPIPS.

    Raises:
        ValueError: no method, a name twice, or a figure that is not a number.
    """
    if not methods:
        raise ValueError("methods must hold at least one method, got none")
    names = [method.name for method in methods]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"methods must have different names, {one_line(min(repeated))} stands there twice")
    for method in methods:
        if any(math.isnan(value) for value in (method.lpips, method.lr_psnr, method.diversity, method.opinion or 0.0)):
            raise ValueError(f"scores of {one_line(method.name)} must be numbers, got NaN")
    eligible = [method for method in methods if method.lr_psnr >= LEAST_LR_PSNR]
    opinions = _ranks({method.name: method.opinion for method in eligible if method.opinion is not None})
    diversities = _ranks({method.name: -method.diversity for method in eligible})
    lpips = _ranks({method.name: method.lpips for method in eligible})
    means = {name: (opinions[name] + diversities[name]) / 2 for name in opinions}
    finals = _ranks(means)
    ranked = [
        Ranked(
            method,
            method.lr_psnr >= LEAST_LR_PSNR,
            opinions.get(method.name),
            diversities.get(method.name),
            lpips.get(method.name),
            means.get(method.name),
            finals.get(method.name),
        )
        for method in methods
    ]
    return sorted(ranked, key=lambda row: (not row.eligible, row.final or len(methods) + 1, row.method.lpips))


def ranking_table(ranked: Sequence[Ranked]) -> str:
    """Format a ranking as an aligned text table, each figure with its rank in brackets."""
    rows = [["rank", "method", "MOR", "diversity", "LPIPS", "LR-PSNR", "mean rank"]]
    for row in ranked:
        method = row.method
        rows.append(
            [
                "-" if row.final is None else str(row.final),
                one_line(method.name),
                "-" if method.opinion is None else f"{method.opinion:.3f}{_bracket(row.opinion)}",
                f"{method.diversity:.3f}{_bracket(row.diversity)}",
                f"{method.lpips:.3f}{_bracket(row.lpips)}",
                f"{method.lr_psnr:.2f}{'' if row.eligible else ' (below 45)'}",
                "-" if row.mean is None else f"{row.mean:g}",
            ]
        )
    return align_columns(rows, left=True)


def published_methods(scale: int) -> list[MethodScores]:
    """Return the methods of the challenge of 2021 with their published scores.

    Raises:
        ValueError: a scale that the challenge did not have.
    """
    found = [row for row in PUBLISHED if row.scale == scale]
    if not found:
        raise ValueError(f"published must be 4 or 8, the scales of the challenge, got {scale}")
    return [MethodScores(row.name, row.lpips, row.lr_psnr, row.diversity, row.opinion) for row in found]


def read_methods(path: str | os.PathLike[str], opinions: Mapping[str, float] | None = None) -> list[MethodScores]:
    """Read methods from a table, or from the scores that ``sr-models evaluate`` wrote of one.

    Args:
        path: CSV file with the columns ``method``, ``lpips``, ``lr_psnr`` and ``diversity``, and ``mor`` if raters saw
            the methods; other columns are passed over. Or the file of ``sr-models evaluate --output``, whose name is
            then that of the method.
        opinions: mean opinion ranks by the names of methods, as of :func:`read_opinions`; they replace those of the
            table.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a missing column, a cell that is no number, or scores under another distance than LPIPS.
    """
    path = Path(path)
    if is_record(path):
        methods = [_recorded(path)]
    else:
        methods = [
            MethodScores(
                row["method"],
                _number(path, line, row, "lpips"),
                _number(path, line, row, "lr_psnr"),
                _number(path, line, row, "diversity"),
                # a dash, as printed tables have it
                _number(path, line, row, "mor") if (row.get("mor") or "").strip(" -") else None,
            )
            for line, row in _rows(path, ("method", "lpips", "lr_psnr", "diversity"))
        ]
    if opinions is None:
        return methods
    return [replace(method, opinion=opinions.get(method.name, method.opinion)) for method in methods]


def read_opinions(path: str | os.PathLike[str]) -> dict[str, float]:
    """Read the mean opinion ranks of methods, by their names.

    Args:
        path: CSV file with the columns ``method`` and ``mor``, such as that of ``sr-models study results``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a missing column, a cell that is no number, or a method twice.
    """
    found: dict[str, float] = {}
    for line, row in _rows(path, ("method", "mor")):
        if row["method"] in found:
            raise ValueError(
                f"{one_line(path)}, line {line}: the opinion of {one_line(row['method'])} stands there twice"
            )
        found[row["method"]] = _number(path, line, row, "mor")
    return found


def _recorded(path: Path) -> MethodScores:
    stored = read_record(path)
    if stored.distance_name != "lpips":
        raise ValueError(f"{one_line(path)} holds scores under {stored.distance_name}, the ranking needs LPIPS")
    if not stored.rows:
        raise ValueError(f"{one_line(path)} holds no scores yet")
    mean = mean_scores(stored.rows)
    return MethodScores(path.stem, mean.distance, mean.lr_psnr, mean.diversity)


def _rows(path: str | os.PathLike[str], columns: Sequence[str]) -> list[tuple[int, dict[str, Any]]]:
    """Read the rows of a table with their line numbers."""
    try:
        with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            found = list(reader.fieldnames or ())
            rows = [(reader.line_num, row) for row in reader]
    except FileNotFoundError:
        raise FileNotFoundError(f"table {one_line(path)} does not exist") from None
    except csv.Error as error:
        raise ValueError(f"{one_line(path)} cannot be read: {error}") from error
    if missing := [name for name in columns if name not in found]:
        there = ", ".join(map(one_line, found)) or "none"
        raise ValueError(
            f"{one_line(path)} must have the columns {', '.join(columns)}; {missing[0]} is not among {there}"
        )
    for line, row in rows:
        if not (row["method"] or "").strip():
            raise ValueError(f"{one_line(path)}, line {line}: method must be a name, got {row['method']!r}")
    return rows


def _number(path: str | os.PathLike[str], line: int, row: Mapping[str, Any], column: str) -> float:
    try:
        return float(row[column])
    except (TypeError, ValueError):
        raise ValueError(f"{one_line(path)}, line {line}: {column} must be a number, got {row[column]!r}") from None


def _ranks(values: Mapping[str, float]) -> dict[str, int]:
    """Rank from 1, the smallest first; equals share the better rank."""
    return {name: 1 + sum(other < value for other in values.values()) for name, value in values.items()}


def _bracket(place: int | None) -> str:
    return "" if place is None else f" ({place})"
