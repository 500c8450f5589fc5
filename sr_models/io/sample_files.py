"""Files of samples: their names, ours and those of the NTIRE challenge, and what they say about how they were made."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sr_models.io.changes import changed_settings
from sr_models.io.encoding import SUFFIXES, read_text
from sr_models.io.listing import one_line

__all__ = [
    "KEY",
    "are_done",
    "challenge_files",
    "challenge_numbers",
    "check_numbering",
    "describe_sample",
    "read_description",
    "remove_other_numbering",
    "sample_files",
    "sample_names",
]

#: Name of the text in a sample's file that says how it was made, as JSON.
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


def sample_files(folder: Path, name: str, n: int, suffix: str = ".png") -> list[Path]:
    """Return the files of the first ``n`` samples of a name."""
    return [folder / f"{name}_sample{index:03d}{suffix}" for index in range(n)]


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


def challenge_files(folder: Path, index: int, n: int, suffix: str = ".png") -> list[Path]:
    """Return the files of all ``n`` samples of an image, as the NTIRE challenges name them.

    ``000000_sample00000.png``, ``000000_sample00001.png``, ... for the first image, and ``000000.png`` for a single
    sample.

    Args:
        folder: where they are.
        index: number of the image, in the order of the sorted names.
        n: samples an image.
        suffix: of the files.
    """
    if n == 1:
        return [folder / f"{index:06d}{suffix}"]
    return [folder / f"{index:06d}_sample{sample:05d}{suffix}" for sample in range(n)]


def check_numbering(files: Sequence[Path], *, overwrite: bool = False) -> None:
    """Check that an image has no samples under the other name that the challenge has for them.

    Args:
        files: of an image, as :func:`challenge_files` names them.
        overwrite: :func:`remove_other_numbering` will remove them; they must be samples.

    Raises:
        ValueError: a single sample is among several, or the other way round.
    """
    n = "1" if len(files) > 1 else "more than 1"
    for other in _other_numbering(files):
        if not overwrite:
            raise ValueError(
                f"{one_line(other)} is a sample of a run with n {n}; choose another output, or replace it with "
                f"--overwrite"
            )
        if read_description(other) is None:
            raise ValueError(
                f"{one_line(other)} would be taken for a sample of a run with n {n}, and is none of this command; "
                f"remove it, or choose another output"
            )


def remove_other_numbering(files: Sequence[Path]) -> None:
    """Remove the samples of an image that have the other name that the challenge has for them, and nothing else.

    Args:
        files: of an image, as :func:`challenge_files` names them; they are there.
    """
    for other in _other_numbering(files):
        if read_description(other) is not None:
            other.unlink(missing_ok=True)


def _other_numbering(files: Sequence[Path]) -> list[Path]:
    """Return the files that are there under the other name that the challenge has for samples of an image."""
    number, _, sample = files[0].stem.partition("_")
    folder = files[0].parent
    single = [folder / f"{number}{suffix}" for suffix in sorted({*SUFFIXES.values()})]
    others = single if sample else sorted(folder.glob(f"{number}_sample*"))
    return [other for other in others if os.path.lexists(other)]


def describe_sample(image: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the samples of an image say about themselves: a hash of the image's file, and the settings."""
    digest = hashlib.sha256()
    with image.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return {"image": digest.hexdigest()[:32], **settings}


def read_description(file: Path) -> dict[str, Any] | None:
    """Return what a sample says about itself; ``None`` if it is no sample."""
    return read_text(file, KEY)


def are_done(
    files: Sequence[Path], description: Mapping[str, Any], *, free: Sequence[str] = ()
) -> list[dict[str, Any] | None]:
    """Return the description of each sample that is there, and ``None`` for the others.

    Args:
        files: of the samples.
        description: what they say if they are those that are wanted.
        free: settings in which they may differ from it.

    Raises:
        ValueError: a file that is there has another description, so that it would be lost.
    """
    descriptions: list[dict[str, Any] | None] = []
    for file in files:
        if not os.path.lexists(file):
            descriptions.append(None)
            continue
        found = read_description(file)
        descriptions.append(found)
        wanted = {**description, **{name: found[name] for name in free if found and name in found}}
        if found != wanted:
            if found is None:
                reason = "is not a sample of this command"
            elif found.get("image") != description["image"]:
                reason = "is a sample of another image"
            else:
                reason = f"was made with other settings ({'; '.join(changed_settings(found, wanted))})"
            raise ValueError(f"{one_line(file)} {reason}; choose another output, or replace it with --overwrite")
    return descriptions
