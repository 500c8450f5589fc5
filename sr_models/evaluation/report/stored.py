"""What a report needs besides the scores of a model, in files: ``scores.parts`` beside ``scores.csv``."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from sr_models.evaluation.record import read_record
from sr_models.evaluation.report.method import Method
from sr_models.evaluation.scores import Scores, read_scores, write_scores
from sr_models.io.files import write_text

__all__ = ["read_methods", "sweep_file", "write_parts"]

_BASELINE, _SWEPT, _COVERAGE = "baseline_{}.csv", "temperature_{:g}.csv", "coverage.json"


def sweep_file(scores: str | os.PathLike[str], temperature: float) -> Path:
    """Return the file for scores at another temperature; its folder is created."""
    folder = _folder(scores)
    folder.mkdir(exist_ok=True)
    return folder / _SWEPT.format(temperature)


def write_parts(
    scores: str | os.PathLike[str],
    baselines: Mapping[str, Sequence[Scores]],
    coverage: Sequence[tuple[float, float]],
    distance_name: str,
) -> None:
    """Write the scores of baselines, one file each, and the coverage if it was measured.

    Args:
        scores: the CSV file of the model's scores.
        baselines: label -> one :class:`Scores` an image.
        coverage: nominal and measured.
        distance_name: name of the distance of all scores.
    """
    folder = _folder(scores)
    folder.mkdir(exist_ok=True)
    for label, rows in baselines.items():
        write_scores(folder / _BASELINE.format(label), rows, distance_name)
    if coverage:
        write_text(folder / _COVERAGE, json.dumps([list(point) for point in coverage]))


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
        for file in sorted(folder.glob(_BASELINE.format("*")))
    ]
    sweep = {
        float(found[1]): read_scores(file, name)
        for file in sorted(folder.glob("temperature_*.csv"))
        if (found := re.fullmatch(r"temperature_(\d[\d.e-]*)\.csv", file.name))
    }
    temperature = record.settings.get("temperature")
    if sweep and isinstance(temperature, (int, float)):
        sweep[float(temperature)] = record.rows
    model = Method(
        path.stem,
        record.rows,
        name,
        n=int(record.settings.get("n", 1)),
        temperature=temperature if isinstance(temperature, (int, float)) else None,
        sweep=sweep,
        failures=record.failures,
        parameters=record.about.get("parameters"),
        machine=str(record.about.get("machine", "")),
        coverage=_read_coverage(folder / _COVERAGE),
    )
    return [*baselines, model]


def _folder(scores: str | os.PathLike[str]) -> Path:
    return Path(scores).with_suffix(".parts")


def _read_coverage(file: Path) -> list[tuple[float, float]]:
    if not file.exists():
        return []
    try:
        return [(float(nominal), float(measured)) for nominal, measured in json.loads(file.read_text("utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{file} cannot be read: {error}; evaluate again with --report") from error
