"""Files of the samples of ``sr-models sample``: their names, and which of them are there."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sr_models.cli._drawing import Tile
from sr_models.cli._inputs import STANDARD, say
from sr_models.io.contact_sheet import contact_sheet
from sr_models.io.encoding import SUFFIXES, Format, encode_image
from sr_models.io.files import write_bytes
from sr_models.io.images import encode_png, read_image
from sr_models.io.listing import one_line
from sr_models.io.naming import template_names
from sr_models.io.resize import imresize
from sr_models.io.sample_files import (
    KEY,
    are_done,
    challenge_files,
    challenge_numbers,
    check_numbering,
    sample_files,
    sample_names,
)

__all__ = ["check_files", "check_folder", "existing", "name_files", "write_sample", "write_sheet"]

#: Samples on a contact sheet, which with the image fill nine rows.
_ON_SHEET = 35


def name_files(
    paths: Sequence[Path],
    root: Path,
    folder: Path,
    *,
    n: int,
    naming: str,
    format: Format,
    first_index: int,
    overwrite: bool,
    damaged: Sequence[Path],
    model_scale: int,
    values: Mapping[str, Any],
) -> dict[str, tuple[Path, list[Path]]]:
    """Name the files of all samples.

    Args:
        paths: the images, below ``root``.
        root: a folder.
        folder: for the samples.
        n: samples an image.
        naming: ``name``, ``ntire`` or a template.
        format: of the files.
        first_index: number of the first image for ``ntire``.
        overwrite: samples of an image that have the challenge's other name will be removed.
        damaged: images that cannot be sampled, but are counted by ``ntire``.
        model_scale: enlargement of the model.
        values: of the template's fields.

    Returns:
        Name of an image -> the image, and the files of its samples.

    Raises:
        ValueError: two samples of one name, or other samples of the challenge's names.
    """
    named = dict(zip(sample_names(paths, root), paths, strict=True))
    suffix = SUFFIXES[format]
    if naming == "ntire":
        # damaged images keep their numbers, else all that follow would be taken for others
        numbers = challenge_numbers([*paths, *damaged], root, model_scale)
        files = {name: challenge_files(folder, first_index + numbers[at], n, suffix) for name, at in named.items()}
        for own in files.values():
            check_numbering(own, overwrite=overwrite)
    elif naming == "name":
        for name, path in named.items():
            if name.endswith(path.suffix):
                first = f"{name}_sample000{suffix}"
                say(f"the samples of {path} are called {first}, because another image has the same name")
        files = {name: sample_files(folder, name, n, suffix) for name in named}
    else:
        # who writes the suffix too does not want it twice
        names = template_names(naming.removesuffix(suffix), list(named), n, values)
        files = {name: [folder / (each + suffix) for each in own] for name, own in zip(named, names, strict=True)}
    return {name: (path, files[name]) for name, path in named.items()}


def existing(files: Sequence[Path], description: Mapping[str, Any], tile: Tile) -> tuple[list[bool], Tile]:
    """Return of each sample whether it is there, and the tiles that those that are not begin with.

    Where memory decides about tiles, any will do: it may have run short in the middle. Others go on with the smallest.

    Args:
        files: of the samples.
        description: of the samples, without their tiles.
        tile: as the user wants it.

    Raises:
        ValueError: a file that is there has another description.
    """
    auto = tile == "auto"
    found = are_done(files, {**description, "tile": None if auto else tile}, free=["tile"] if auto else [])
    tiles = [about["tile"] for about in found if about is not None]
    if auto and tiles:
        tile = min(filter(None, tiles), default=None)
    return [about is not None for about in found], tile


def write_sample(
    file: Path, sample: np.ndarray, format: Format, about: Mapping[str, Any], *, overwrite: bool = False
) -> None:
    """Write a sample with its description, to standard output if that is its name.

    Raises:
        ValueError: without ``overwrite``, another process has written another sample of that name.
    """
    content = encode_image(sample, format, KEY, about)
    if str(file) == STANDARD:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
        return
    if not overwrite:
        are_done([file], about, free=["tile"])
    file.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(file, content)


def write_sheet(sheet: Path, image: Path, files: Sequence[Path]) -> None:
    """Write the contact sheet of an image's first samples, beside the image enlarged by bicubic interpolation."""
    samples = {f"sample {number}": read_image(file) for number, file in enumerate(files[:_ON_SHEET])}
    height, width = samples["sample 0"].shape[:2]
    pictures = {"bicubic": imresize(read_image(image), size=(height, width)), **samples}
    sheet.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(sheet, encode_png(contact_sheet(pictures), {KEY: "{}"}))


def check_files(files: Iterable[Path], folder: Path, argument: str) -> None:
    """Raise ``ValueError`` if files cannot have their names.

    Args:
        files: in ``folder``, which need not exist.
        folder: for the samples.
        argument: what chooses the names.
    """
    longest = os.pathconf(next(place for place in _upwards(folder) if place.exists()), "PC_NAME_MAX")
    for file in files:
        if file.is_dir():
            raise ValueError(
                f"{one_line(file)} is a folder, and {argument} gives a file that name; choose another output"
            )
        for name in file.relative_to(folder).parts:
            if (length := len(os.fsencode(name))) > longest:
                raise ValueError(
                    f"{argument} gives a file a name of {length} bytes, and there may be {longest} in "
                    f"{one_line(folder)}: {one_line(name[:40])}...; a shorter one comes from "
                    f"--naming '{{number}}_{{index}}'"
                )


def check_folder(folder: Path) -> None:
    """Raise ``OSError`` if nothing can be written into a folder, which need not exist."""
    there = next(place for place in _upwards(folder) if os.path.lexists(place))
    if not there.is_dir():
        what = "a file" if there.exists() else "a link to nothing"
        raise NotADirectoryError(f"output must be a folder, got {one_line(folder)}: {one_line(there)} is {what}")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"output {one_line(folder)} cannot be written: no permission for {one_line(there)}")


def _upwards(folder: Path) -> tuple[Path, ...]:
    """Return a folder and those above it."""
    return folder, *folder.absolute().parents
