"""The samples of an evaluation as files, under the names of the challenge."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sr_models.data.layouts import find_high
from sr_models.evaluation.pairs import Pair
from sr_models.io.images import write_image
from sr_models.io.listing import one_line
from sr_models.io.sample_files import (
    KEY,
    are_done,
    challenge_files,
    check_numbering,
    describe_sample,
    remove_other_numbering,
)

__all__ = ["KeptSamples", "check_outside"]


def check_outside(folder: str | os.PathLike[str], images: str | os.PathLike[str], pairs: Sequence[Pair]) -> None:
    """Check that samples do not come among the images, where they would be scored the next time.

    Args:
        folder: for the samples.
        images: the high-resolution images, as they were named.
        pairs: the images that were found.

    Raises:
        ValueError: the folder is that of the images, or in it.
    """
    inside = Path(folder).expanduser().resolve()
    source = find_high(images, split="valid")
    among = inside.is_relative_to(source.resolve()) if source.is_dir() else False
    if among or inside in {pair.hr.parent.resolve() for pair in pairs}:
        raise ValueError(f"save_samples must be outside the folder of the images, got {one_line(folder)}")


class KeptSamples:
    """Samples as PNG files: ``000000_sample00000.png`` is the first one of the first image.

    Args:
        folder: where they are; it is created if needed.
        pairs: the images.
        names: names of all images in their order, with those that cannot be read.
        n: samples an image.
        settings: what determines the samples.
        overwrite: replace files that other settings made.

    Attributes:
        missing: names of images whose samples are not there.

    Raises:
        ValueError: other files under these names, or samples that another number of samples would name otherwise.
        OSError: the folder cannot be created.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        pairs: Sequence[Pair],
        names: Sequence[str],
        n: int,
        settings: Mapping[str, Any],
        *,
        overwrite: bool = False,
    ) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        # the number stands in the names
        settings = {name: value for name, value in settings.items() if name != "n"}
        self._overwrite = overwrite
        self._descriptions = {pair.name: _describe(pair, settings) for pair in pairs}
        self._files = {pair.name: challenge_files(folder, names.index(pair.name), n) for pair in pairs}
        for files in self._files.values():
            check_numbering(files, overwrite=overwrite)
        self.missing = {
            pair.name
            for pair in pairs
            if overwrite or not all(are_done(self._files[pair.name], self._descriptions[pair.name]))
        }

    def write(self, pair: Pair, samples: Sequence[np.ndarray]) -> None:
        """Write the samples of an image."""
        text = {KEY: json.dumps(self._descriptions[pair.name])}
        for file, sample in zip(self._files[pair.name], samples, strict=True):
            write_image(file, sample, text=text)
        if self._overwrite:
            remove_other_numbering(self._files[pair.name])


def _describe(pair: Pair, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Say how the samples of an image are made; the low-resolution image counts where it is a file."""
    if pair.lr is None:
        return describe_sample(pair.hr, settings)
    return describe_sample(pair.hr, {**settings, "lr_image": describe_sample(pair.lr, {})["image"]})
