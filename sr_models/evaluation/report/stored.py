"""Files of all that a report needs besides the scores of a model: ``scores.parts`` beside ``scores.csv``."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sr_models.evaluation.record import read_record
from sr_models.evaluation.report.method import Method
from sr_models.evaluation.scores import Scores, read_scores, write_scores
from sr_models.io.files import write_text
from sr_models.io.json_text import parse_json

__all__ = [
    "checkpoint_name",
    "clear_parts",
    "keep_coverage",
    "method_of",
    "read_methods",
    "sweep_file",
    "write_baselines",
]

_BASELINE, _SWEPT, _COVERAGE = "baseline_{}.csv", "temperature_{:g}.csv", "coverage.json"


def clear_parts(scores: str | os.PathLike[str]) -> None:
    """Remove what lies beside scores that are about to be replaced."""
    folder = _folder(scores)
    for pattern in (_BASELINE.format("*"), "temperature_*.csv", "temperature_*.summary.json", _COVERAGE):
        for file in folder.glob(pattern):
            file.unlink()


def sweep_file(scores: str | os.PathLike[str], temperature: float) -> Path:
    """Return the file for scores at another temperature; its folder is created."""
    folder = _folder(scores)
    folder.mkdir(exist_ok=True)
    return folder / _SWEPT.format(temperature)


def write_baselines(
    scores: str | os.PathLike[str], baselines: Mapping[str, Sequence[Scores]], distance_name: str
) -> None:
    """Write the scores of baselines, one file each.

    Args:
        scores: the CSV file of the scores beside which they lie.
        baselines: label -> one :class:`Scores` an image.
        distance_name: name of their distance.
    """
    folder = _folder(scores)
    folder.mkdir(exist_ok=True)
    for label, rows in baselines.items():
        write_scores(folder / _BASELINE.format(label), rows, distance_name)


def keep_coverage(scores: str | os.PathLike[str], method: Method) -> Method:
    """Write the coverage of a model, unless it was measured on more images before.

    Returns:
        The model with the coverage that is kept.
    """
    file = _folder(scores) / _COVERAGE
    kept, covered = _read_coverage(file)
    if covered > method.covered:
        return replace(method, coverage=kept, covered=covered)
    if method.coverage:
        content = {"images": method.covered, "nominal and measured": [list(point) for point in method.coverage]}
        write_text(file, json.dumps(content, indent=2))
    return method


def read_methods(scores: str | os.PathLike[str]) -> list[Method]:
    """Read a model's scores, which has the file's name, with its baselines and its sweep.

    Args:
        scores: CSV file of ``sr-models evaluate``; what lies in ``.parts`` beside it is read too.

    Returns:
        The baselines, and last the model.

    Raises:
        FileNotFoundError: no such file, or no summary beside it.
        ValueError: files of another kind.
    """
    path, record = Path(scores), read_record(scores)
    folder, name = _folder(path), record.distance_name
    baselines = [
        Method(file.stem.removeprefix("baseline_"), read_scores(file, name), name, baseline=True)
        for file in sorted(folder.glob(_BASELINE.format("*")), key=lambda file: file.stem)
    ]
    sweep = {
        float(found[1]): read_scores(file, name)
        for file in sorted(folder.glob("temperature_*.csv"))
        if (found := re.fullmatch(r"temperature_(\d[\d.e-]*)\.csv", file.name))
    }
    model = method_of(path.stem, record.rows, name, record.settings, record.about, record.failures)
    if sweep and model.temperature is not None:
        sweep[model.temperature] = record.rows
    coverage, covered = _read_coverage(folder / _COVERAGE)
    return [*baselines, replace(model, sweep=sweep, coverage=coverage, covered=covered)]


def method_of(
    name: str,
    rows: Sequence[Scores],
    distance_name: str,
    settings: Mapping[str, Any],
    about: Mapping[str, Any],
    failures: Mapping[str, str],
) -> Method:
    """Make a method of what a record says.

    Args:
        name: for readers.
        rows: one :class:`Scores` an image.
        distance_name, settings, about, failures: as in :class:`sr_models.evaluation.record.StoredScores`. What is not
            there is left out.
    """
    temperature = settings.get("temperature")
    return Method(
        name,
        rows,
        distance_name,
        n=int(settings.get("n", 1)),
        temperature=float(temperature) if isinstance(temperature, (int, float)) else None,
        failures=failures,
        parameters=about.get("parameters"),
        machine=_machine(about),
    )


def checkpoint_name(checkpoint: str) -> str:
    """Name a model for readers: as its file, or as its run's folder."""
    path = Path(checkpoint)
    name = path.stem if path.suffix in (".safetensors", ".ckpt", ".pth") else path.name
    return path.parent.name if name in ("model", "best", "last") and path.parent.name else name


def _machine(about: Mapping[str, Any]) -> str:
    """Describe what computed, for readers of measured times, from the facts of a record."""
    threads = about.get("threads")
    parts = [about.get("device"), threads and f"{threads} thread{'s' if threads > 1 else ''}"]
    return ", ".join(str(part) for part in parts if part)


def _folder(scores: str | os.PathLike[str]) -> Path:
    return Path(scores).with_suffix(".parts")


def _read_coverage(file: Path) -> tuple[list[tuple[float, float]], int]:
    """Return nominal and measured coverage, and the number of images; nothing if there is no file."""
    if not file.exists():
        return [], 0
    try:
        content = parse_json(file.read_text("utf-8"))
        points = [(float(nominal), float(measured)) for nominal, measured in content["nominal and measured"]]
        return points, int(content["images"])
    except (OSError, OverflowError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{file} cannot be read: {error}; remove it, and evaluate again with --report") from error
