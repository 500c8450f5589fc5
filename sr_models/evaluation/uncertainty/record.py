"""Coverage on disk: written after every image and temperature, so that a stopped calibration goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import invflow
from sr_models.evaluation.pairs import Pair
from sr_models.evaluation.record import check_output
from sr_models.evaluation.uncertainty.coverage import IntervalScores
from sr_models.io.changes import changed_settings
from sr_models.io.files import write_text
from sr_models.io.json_text import parse_json

__all__ = ["CoverageRecord", "ImageCoverage"]

_HINT = "choose another output, or replace the file with --overwrite"

#: Scores of one image at one temperature: of all its values, and by texture.
ImageCoverage = dict[str, IntervalScores]


class CoverageRecord:
    """Coverage of images at temperatures, in memory or in a JSON file.

    The file is written anew, atomically, after every image and temperature. What other settings, other weights or other
    images gave is never mixed with new results. Temperatures may be added.

    Args:
        path: the JSON file; ``None``: nothing is written.
        about: further facts for the file, such as that of the model. They need not be the same to go on.
        overwrite: start anew, whatever there is.

    Attributes:
        rows: name of an image -> temperature -> its scores.
        failures: name of an image -> why it has no scores at some temperature.

    Raises:
        FileNotFoundError: the folder of ``path`` does not exist.
        ValueError: ``path`` is a folder.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        about: Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> None:
        self.path = None if path is None else Path(path)
        self.rows: dict[str, dict[float, ImageCoverage]] = {}
        self.failures: dict[str, str] = {}
        self._about = {"version": invflow.__version__, **(about or {})}
        self._overwrite = overwrite
        self._settings: dict[str, Any] = {}
        self._digests: dict[str, str] = {}
        self._result: dict[str, Any] = {}
        if self.path is not None:
            check_output(self.path, "coverage.json")

    def begin(self, settings: Mapping[str, Any], pairs: Sequence[Pair]) -> None:
        """Take over what is there already, and write the settings; nothing is sampled before.

        Args:
            settings: what determines the samples of an image, but its temperature: plain values by name.
            pairs: the images.

        Raises:
            ValueError: the file holds coverage of other settings or images, or cannot be read.
            OSError: the file cannot be written.
        """
        self._settings = dict(settings)
        if self.path is not None and self.path.exists() and not self._overwrite:
            self._take_over(self.path, pairs)
        self._write()

    def _take_over(self, path: Path, pairs: Sequence[Pair]) -> None:
        try:
            former = parse_json(path.read_text("utf-8"))
            settings, images = dict(former["settings"]), dict(former["images"])
            digests = {name: str(image["digest"]) for name, image in images.items()}
            rows = {name: _rows(image["temperatures"], settings["n"]) for name, image in images.items()}
        except (OSError, OverflowError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} exists, but does not hold coverage ({error}); {_HINT}") from error
        if changed := changed_settings(settings, self._settings):
            raise ValueError(f"{path} holds coverage with other settings ({'; '.join(changed)}); {_HINT}")
        by_name = {pair.name: pair for pair in pairs}
        for name, digest in digests.items():
            if name not in by_name:
                raise ValueError(f"{path} holds coverage of {name!r}, which is not among the images; {_HINT}")
            if by_name[name].digest() != digest:
                raise ValueError(f"{path} holds coverage of {name!r} as it was before it changed; {_HINT}")
        self.rows, self._digests = rows, digests

    def add(self, pair: Pair, temperature: float, scores: ImageCoverage) -> None:
        """Keep the scores of an image at a temperature; they are on disk when this returns."""
        self.rows.setdefault(pair.name, {})[temperature] = scores
        if self.path is not None and pair.name not in self._digests:
            self._digests[pair.name] = pair.digest()
        self._write()

    def fail(self, name: str, reason: str) -> None:
        """Note why an image has no scores. The next calibration tries it again."""
        self.failures[name] = reason
        self._write()

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write what was found: plain values by name, which stand at the beginning of the file."""
        self._result = dict(result)
        self._write()

    def _write(self) -> None:
        if self.path is None:
            return
        images = {
            name: {
                "digest": self._digests[name],
                "temperatures": {
                    repr(temperature): {part: asdict(scores) for part, scores in parts.items()}
                    for temperature, parts in sorted(temperatures.items())
                },
            }
            for name, temperatures in self.rows.items()
        }
        head = {"about": self._about, "settings": self._settings, **self._result, "failures": self.failures}
        # the images are long: one line for each
        lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(image)}" for name, image in images.items())
        write_text(self.path, f'{json.dumps(head, indent=2)[:-2]},\n  "images": {{\n{lines}\n  }}\n}}\n')


def _rows(temperatures: Mapping[str, Any], n: int) -> dict[float, ImageCoverage]:
    """Read the scores of an image.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: content of another kind.
    """
    rows = {
        float(temperature): {part: _scores(one) for part, one in parts.items()}
        for temperature, parts in temperatures.items()
    }
    for parts in rows.values():
        if "all" not in parts or any(one.n != n or len(one.width) != n // 2 for one in parts.values()):
            raise ValueError(f"scores that are not of {n} samples")
    return rows


def _scores(figures: Mapping[str, Any]) -> IntervalScores:
    lists = {
        name: tuple(float(value) for value in figures[name]) for name in ("ranks", "with_ends", "without_ends", "width")
    }
    return IntervalScores(
        values=int(figures["values"]),
        **lists,
        crps=float(figures["crps"]),
        tied=float(figures["tied"]),
    )
