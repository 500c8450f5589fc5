"""Scores on disk: written image by image, so that a stopped evaluation goes on where it was."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import invflow
from sr_models.evaluation.pairs import Pair, names_in_order
from sr_models.evaluation.scores import Scores, mean_scores, read_scores, write_scores
from sr_models.io.changes import changed_settings
from sr_models.io.files import write_text
from sr_models.io.json_text import parse_json
from sr_models.io.listing import one_line

__all__ = ["ScoreRecord", "StoredScores", "check_output", "is_record", "read_record"]

_HINT = "choose another output, or replace the scores with --overwrite"


@dataclass(frozen=True)
class StoredScores:
    """An evaluation that was written by :class:`ScoreRecord`.

    Attributes:
        rows: scores of the images, in their order.
        distance_name: name of the distance of the diversity score.
        settings: what determines the scores: model, weights, scale, n, temperature, ...
        about: further facts: version, file of the model, folder of the images, ...
        failures: name of an image -> why it has no scores.
    """

    rows: list[Scores]
    distance_name: str
    settings: dict[str, Any]
    about: dict[str, Any]
    failures: dict[str, str]


def read_record(path: str | os.PathLike[str]) -> StoredScores:
    """Read the scores of an evaluation, finished or not, and the summary beside them.

    Args:
        path: the CSV file.

    Raises:
        FileNotFoundError: one of the two files is missing.
        ValueError: another kind of file, or scores of an older version.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of scores {one_line(path)}")
    summary = _read_summary(path, "give a file that sr-models evaluate --output wrote, and keep both together")
    distance_name = str(summary["settings"].get("distance"))
    rows = read_scores(path, distance_name)
    return StoredScores(rows, distance_name, summary["settings"], summary["about"], summary["failures"])


def check_output(path: Path, example: str) -> None:
    """Check that a file can be written, before the work is done that goes into it.

    Args:
        path: the file.
        example: a name for a file, if the path is a folder.

    Raises:
        ValueError: a folder.
        FileNotFoundError: the folder of the file does not exist.
    """
    if path.is_dir():
        raise ValueError(f"output {path} is a folder; give a file such as {path / example}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"folder of output {path} does not exist")


def is_record(path: Path) -> bool:
    """Tell whether a CSV file was written by :class:`ScoreRecord`: whether the summary is beside it."""
    return _summary_of(path).is_file()


class ScoreRecord:
    """Scores of an evaluation, in memory or in two files.

    ``scores.csv`` has a row an image. ``scores.summary.json`` beside it has the settings that determine the rows, the
    means, and the images that failed. Both are written anew, atomically, after every image. Rows that other settings,
    other weights or other images gave are never mixed with new ones.

    Args:
        path: the CSV file; ``None``: nothing is written.
        distance_name: name of the distance of the diversity score.
        about: further facts for the summary, such as the file of the model. They need not be the same to go on.
        overwrite: start anew, whatever there is.

    Attributes:
        rows: name of an image -> its scores.
        failures: name of an image -> why it has no scores.
        settings: what determines the rows, once the evaluation has begun.
        overwrite: as given.

    Raises:
        FileNotFoundError: the folder of ``path`` does not exist.
        ValueError: ``path`` is a folder.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        distance_name: str,
        about: Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> None:
        self.path = None if path is None else Path(path)
        self.distance_name = distance_name
        self.rows: dict[str, Scores] = {}
        self.failures: dict[str, str] = {}
        self._about = {"version": invflow.__version__, **(about or {})}
        self.overwrite = overwrite
        self.settings: dict[str, Any] = {}
        self._digests: dict[str, str] = {}
        self._order: dict[str, int] = {}
        if self.path is not None:
            check_output(self.path, "scores.csv")

    def begin(self, settings: Mapping[str, Any], pairs: Sequence[Pair], unreadable: Mapping[str, str]) -> None:
        """Take over the rows that are there already, and write the settings; nothing is scored before.

        Args:
            settings: what determines the scores of an image, plain values by name.
            pairs: the images to score.
            unreadable: name -> reason of images that cannot be scored.

        Raises:
            ValueError: the file holds scores of other settings or images, or cannot be read.
            OSError: the files cannot be written.
        """
        self.settings = {**settings, "distance": self.distance_name}
        self._order = {name: number for number, name in enumerate(names_in_order(pairs, unreadable))}
        self.failures = dict(unreadable)
        if self.path is None:
            return
        if self.path.exists() and not self.overwrite:
            self._take_over(self.path, pairs)
        else:
            # before the summary: a new one must never stand beside old rows
            self.path.unlink(missing_ok=True)
        self._write_summary(self.path)

    def _take_over(self, path: Path, pairs: Sequence[Pair]) -> None:
        former = _read_summary(path, _HINT)
        settings, digests = former["settings"], former["images"]
        if changed := changed_settings(settings, self.settings):
            raise ValueError(f"{path} holds scores of other settings ({'; '.join(changed)}); {_HINT}")
        by_name = {pair.name: pair for pair in pairs}
        for row in read_scores(path, self.distance_name):
            if row.image not in by_name:
                raise ValueError(f"{path} holds scores of {row.image}, which is not among the images; {_HINT}")
            if by_name[row.image].digest() != digests.get(row.image):
                raise ValueError(f"{path} holds scores of {row.image} as it was before it changed; {_HINT}")
            self.rows[row.image], self._digests[row.image] = row, digests[row.image]

    def add(self, pair: Pair, row: Scores) -> None:
        """Keep the scores of an image; they are on disk when this returns."""
        self.rows[pair.name] = row
        self.failures.pop(pair.name, None)
        if self.path is not None:
            self._digests[pair.name] = pair.digest()
            self._write_summary(self.path)
            write_scores(self.path, self.ordered(), self.distance_name)

    def fail(self, name: str, reason: str) -> None:
        """Note why an image has no scores. The next evaluation tries it again."""
        self.failures[name] = reason
        if self.path is not None:
            self._write_summary(self.path)

    def ordered(self) -> list[Scores]:
        """Return the rows in the order of the images."""
        return sorted(self.rows.values(), key=lambda row: self._order[row.image])

    def _write_summary(self, path: Path) -> None:
        mean = mean_scores(self.ordered()).figures() if self.rows else {}
        content = {
            "about": self._about,
            "settings": self.settings,
            "scored": f"{len(self.rows)} of {len(self._order)} images",
            # JSON has no NaN and no infinity
            "mean": {name: value if math.isfinite(value) else str(value) for name, value in mean.items()},
            "failures": self.failures,
            "images": self._digests,
        }
        write_text(_summary_of(path), json.dumps(content, indent=2))


def _summary_of(path: Path) -> Path:
    # not scores.json, since a model's file has one beside it
    return path.with_suffix(".summary.json")


def _read_summary(path: Path, hint: str) -> dict[str, dict[str, Any]]:
    summary = _summary_of(path)
    try:
        content = parse_json(summary.read_text("utf-8"))
        return {name: dict(content[name]) for name in ("about", "settings", "failures", "images")}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} exists, but {summary.name}, which tells its settings, cannot be read ({error}); {hint}"
        ) from error
