"""Files of samples: their names, ours and those of the NTIRE challenge, and what they say about how they were made."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from sr_models.io.changes import changed_settings
from sr_models.io.listing import one_line

__all__ = [
    "KEY",
    "challenge_files",
    "challenge_numbers",
    "describe_sample",
    "is_done",
    "read_description",
    "sample_files",
    "sample_names",
]

#: Name of the text in a sample's PNG file that says how it was made, as JSON.
KEY = "sr-models sample"


def sample_names(paths: Sequence[Path], root: Path) -> list[str]:
    """Name each image as its samples are named, without ``_sample000.png``.

    The name is the path below ``root`` without its suffix. Images that differ in the suffix only keep it.

    Args:
        paths: images below ``root``, no path twice.
        root: a folder.
    """
    full = [path.relative_to(root).as_posix() for path in paths]
    names = [name.removesuffix(path.suffix) for name, path in zip(full, paths, strict=True)]
    while repeated := {name for name, count in Counter(names).items() if count > 1}:
        names = [whole if name in repeated else name for name, whole in zip(names, full, strict=True)]
    return names


def sample_files(folder: Path, name: str, n: int) -> list[Path]:
    """Return the files of the first ``n`` samples of a name."""
    return [folder / f"{name}_sample{index:03d}.png" for index in range(n)]


def challenge_numbers(paths: Sequence[Path], root: Path, scale: int) -> dict[Path, int]:
    """Number images, from 0, in the order of the names of their high-resolution images.

    ``ax4.png`` is in the place of ``a.png``, before ``abx4.png``.

    Args:
        paths: low-resolution images below ``root``.
        root: a folder.
        scale: enlargement.
    """

    def high(path: Path) -> tuple[str, ...]:
        return path.with_name(path.stem.removesuffix(f"x{scale}") + path.suffix).relative_to(root).parts

    return {path: number for number, path in enumerate(sorted(paths, key=high))}


def challenge_files(folder: Path, index: int, n: int) -> list[Path]:
    """Return the files of all ``n`` samples of an image, as the NTIRE challenges name them.

    ``000000_sample00000.png``, ``000000_sample00001.png``, ... for the first image, and ``000000.png`` for a single
    sample.

    Args:
        folder: where they are.
        index: number of the image, in the order of the sorted names.
        n: samples an image.
    """
    if n == 1:
        return [folder / f"{index:06d}.png"]
    return [folder / f"{index:06d}_sample{sample:05d}.png" for sample in range(n)]


def describe_sample(image: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the samples of an image say about themselves: a hash of the image's file, and the settings."""
    digest = hashlib.sha256()
    with image.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return {"image": digest.hexdigest()[:32], **settings}


def read_description(file: Path) -> dict[str, Any] | None:
    """Return what a sample says about itself; ``None`` if it is no sample."""
    try:
        with Image.open(file, formats=("PNG",)) as image:
            found = json.loads(image.info[KEY])
    # damaged files are reported with exceptions of many types
    except Exception:
        return None
    return found if isinstance(found, dict) else None


def is_done(files: Sequence[Path], description: Mapping[str, Any]) -> bool:
    """Return whether the samples are there.

    Raises:
        ValueError: a file that is there has another description, so that it would be lost.
    """
    there = [file for file in files if os.path.lexists(file)]
    for file in there:
        found = read_description(file)
        if found != description:
            if found is None:
                reason = "is not a sample of this command"
            elif found.get("image") != description["image"]:
                reason = "is a sample of another image"
            else:
                reason = f"was made with other settings ({'; '.join(changed_settings(found, description))})"
            raise ValueError(f"{one_line(file)} {reason}; choose another output, or replace it with --overwrite")
    return len(there) == len(files)
