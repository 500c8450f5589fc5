"""Sample files in a folder that anyone made, under the names of the NTIRE challenge or of ``sr-models sample``."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PurePosixPath

from sr_models.io.listing import list_images, one_line

__all__ = ["SampleFiles", "find_samples"]

_CHALLENGE = re.compile(r"(?P<image>\d{6})(?:_sample(?P<sample>\d{5}))?")
_SAMPLE = re.compile(r"(?P<image>.+)_sample(?P<sample>\d+)")


@dataclass(frozen=True)
class SampleFiles:
    """Sample files of images.

    Attributes:
        files: name of an image -> its samples, in their order.
        failures: name of an image -> why it has no samples that can be used.
        unused: files that belong to no image.
        scale: enlargement, if names such as ``0801x4_sample000.png`` tell it.
    """

    files: dict[str, tuple[Path, ...]]
    failures: dict[str, str]
    unused: list[Path] = field(default_factory=list)
    scale: int | None = None


@dataclass(frozen=True)
class _File:
    path: Path
    #: Path below the folder without suffix and number.
    image: str
    sample: int | None
    problem: str


def find_samples(
    folder: str | os.PathLike[str], names: Sequence[str], *, first_index: int | None = None
) -> SampleFiles:
    """Find the samples of every image.

    Samples of ``a/0801.png`` are ``a/0801_sample000.png``, ``a/0801_sample001.png``, ... Those of a low-resolution
    image ``0801x4.png`` count too: ``0801x4_sample000.png``. A single sample may have the name of the image:
    ``0801.png`` or ``0801x4.png``. If all files are named as in the challenge, ``000000_sample00000.png`` or
    ``000000.png``, the first number is the place of the image among the sorted names.

    Args:
        folder: where the samples are, of any format that can be read.
        names: names of all images, with ``/`` between folders.
        first_index: number of the first image in the names of the challenge. ``None``: 0; or the number that is the
            name of the first image, such as 901, where the files' numbers go beyond those of the images.

    Raises:
        FileNotFoundError: no folder, no image in it, or none that belongs to an image.
        NotADirectoryError: ``folder`` is a file.
        ValueError: names that fit several images or kinds of names, or numbers beyond the images.
    """
    folder = Path(folder).expanduser()
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"samples must be a folder, {one_line(folder)} is a file")
    listed = list_images(folder)
    problems = {entry.path: entry.reason for entry in listed.unused if entry.kind == "damaged"}
    paths = sorted([*listed.paths, *problems], key=lambda path: path.parts)
    names = sorted(names, key=lambda name: PurePath(name).parts)
    by_name = [_named(path, folder, problems.get(path, "")) for path in paths]
    known = {str(PurePosixPath(name).with_suffix("")) for name in names}
    numbered = [_CHALLENGE.fullmatch(path.relative_to(folder).with_suffix("").as_posix()) for path in paths]
    scale = None
    if first_index is not None and not all(numbered):
        other = one_line(paths[numbered.index(None)].name)
        raise ValueError(f"first_index is for files such as 000000_sample00000.png and 000000.png, got {other}")
    if all(numbered) and (first_index is not None or not {file.image for file in by_name} <= known):
        groups = _by_number(by_name, names, first_index)
    else:
        groups, scale = _by_name(by_name, names)
    found: dict[str, tuple[Path, ...]] = {}
    failures = {}
    for name in names:
        files = sorted(groups.get(name, []), key=lambda file: file.sample or 0)
        if reason := _fault(files):
            failures[name] = f"{reason} in {one_line(folder)}"
        else:
            found[name] = tuple(file.path for file in files)
    if not any(groups.values()):
        stem = str(PurePosixPath(names[0]).with_suffix(""))
        raise FileNotFoundError(
            f"{one_line(folder)} holds no sample of the {len(names)} images; samples of {one_line(names[0])} are named "
            f"{one_line(stem)}_sample000.png, {one_line(stem)}.png or 000000_sample00000.png"
        )
    used = {file.path for group in groups.values() for file in group}
    return SampleFiles(found, failures, [path for path in paths if path not in used], scale)


def _named(path: Path, folder: Path, problem: str) -> _File:
    below = PurePosixPath(path.relative_to(folder).as_posix())
    match = _SAMPLE.fullmatch(below.stem)
    stem, sample = (match["image"], int(match["sample"])) if match else (below.stem, None)
    return _File(path, str(below.with_name(stem)), sample, problem)


def _by_number(files: Sequence[_File], names: Sequence[str], first: int | None) -> dict[str, list[_File]]:
    """Group files by the challenge's numbers of the images."""
    numbers = [int(file.image) for file in files]
    if first is None:
        stem = PurePosixPath(names[0]).stem
        first = int(stem) if max(numbers) >= len(names) and stem.isdecimal() else 0
    if min(numbers) < first or max(numbers) >= first + len(names):
        wrong = next(file for file, number in zip(files, numbers, strict=True) if not 0 <= number - first < len(names))
        raise ValueError(
            f"{one_line(wrong.path)} belongs to none of the {len(names)} images, whose numbers begin with {first}; "
            "check the images, or give first_index"
        )
    groups: dict[str, list[_File]] = {}
    for file, number in zip(files, numbers, strict=True):
        groups.setdefault(names[number - first], []).append(file)
    return groups


def _by_name(files: Sequence[_File], names: Sequence[str]) -> tuple[dict[str, list[_File]], int | None]:
    """Group files by the images whose names they have, and read the enlargement off names such as ``0801x4``."""
    by_image: dict[str, list[_File]] = {}
    scaled: dict[str, list[tuple[str, int]]] = {}
    for file in files:
        by_image.setdefault(file.image, []).append(file)
    for image in by_image:
        if match := re.fullmatch(r"(.+)x(\d+)", image):
            scaled.setdefault(match[1], []).append((image, int(match[2])))
    groups: dict[str, list[_File]] = {}
    scales = set()
    taken: dict[str, str] = {}
    for name in names:
        stem = str(PurePosixPath(name).with_suffix(""))
        others = scaled.get(stem, [])
        fitting = [image for image in (name, stem, *(image for image, _ in others)) if image in by_image]
        if len(fitting) > 1:
            kinds = " and ".join(one_line(by_image[image][0].path) for image in fitting)
            raise ValueError(f"{kinds} are both samples of {one_line(name)}; leave one kind")
        for image in fitting:
            if image in taken:
                both = f"{one_line(taken[image])} and {one_line(name)}"
                raise ValueError(f"{one_line(by_image[image][0].path)} may be a sample of {both}; rename one")
            taken[image] = name
            groups[name] = by_image[image]
            scales |= {scale for other, scale in others if other == image}
    if len(scales) > 1:
        raise ValueError(
            f"samples must be of one enlargement, their names tell {' and '.join(map(str, sorted(scales)))}"
        )
    return groups, next(iter(scales), None)


def _fault(files: Sequence[_File]) -> str:
    """Say why these files are not the samples of an image; empty if they are."""
    if not files:
        return "no sample"
    for file in files:
        if file.problem:
            return f"{one_line(file.path.name)}: {file.problem},"
    numbers = [file.sample for file in files]
    if numbers == [None]:
        return ""
    if None in numbers or len(set(numbers)) < len(numbers):
        return f"{' and '.join(one_line(file.path.name) for file in files[:2])} are one sample twice"
    missing = next((number for number in range(len(numbers)) if number not in numbers), None)
    return "" if missing is None else f"sample {missing} of {len(numbers)} is missing"
