"""Fetch the photographs that the shipped models were trained and tested on, from packages of Debian 12.

``python -m recipes.photographs FOLDER`` needs apt-get and dpkg-deb, but no root. It writes ``FOLDER/train`` (70),
``FOLDER/test`` (7) and ``FOLDER/crops``, the middle of the latter, and goes on where it was interrupted.
``recipes/photographs.tsv`` lists the photographs with their licences. Most are compressed: they are reduced by 1/2, so
that compression is not learned.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from sr_models.io.images import write_image
from sr_models.io.resize import imresize

__all__ = ["Photograph", "fetch", "photographs"]

_EET_MAGIC = 0x1EE70F42
#: Side of the crops of which the cards of the models have scores.
_CROP = 512


class Photograph(NamedTuple):
    """A photograph in a package of Debian.

    Attributes:
        name: its name here.
        split: ``"train"`` or ``"test"``.
        package: Debian package.
        version: version of the package that was used.
        path: path in the package; for a photograph in an Eet archive, ``archive#entry``.
        licence: its licence, as the package says.
        sha256: hash of the photograph's file, or of the entry.
    """

    name: str
    split: str
    package: str
    version: str
    path: str
    licence: str
    sha256: str


def photographs() -> list[Photograph]:
    """List all photographs."""
    with Path(__file__).with_name("photographs.tsv").open(encoding="utf-8") as file:
        return [Photograph(**row) for row in csv.DictReader(file, delimiter="\t")]


def fetch(folder: Path) -> None:
    """Write the photographs below a folder, as PNG, reduced by 1/2, with sides divisible by 8, and crops of the tests.

    Raises:
        ValueError: a photograph that is not the one that was used.
        subprocess.CalledProcessError: a package that cannot be downloaded or unpacked.
    """
    missing = [one for one in photographs() if not _target(folder, one).exists()]
    for package in sorted({one.package for one in missing}):
        with tempfile.TemporaryDirectory() as place:
            subprocess.run(["apt-get", "download", package], cwd=place, check=True)
            (archive,) = Path(place).glob("*.deb")
            subprocess.run(["dpkg-deb", "-x", archive.name, "content"], cwd=place, check=True)
            chosen = [one for one in missing if one.package == package]
            for one in tqdm(chosen, package, unit="image"):
                _write(_target(folder, one), _content(Path(place) / "content", one))


def _target(folder: Path, photograph: Photograph) -> Path:
    return folder / photograph.split / f"{photograph.name}.png"


def _content(root: Path, photograph: Photograph) -> bytes:
    file, _, entry = photograph.path.partition("#")
    content = (root / file.lstrip("/")).read_bytes()
    if entry:
        content = _eet_entry(content, entry)
    if hashlib.sha256(content).hexdigest() != photograph.sha256:
        raise ValueError(
            f"{photograph.path} of {photograph.package} is not the photograph of version {photograph.version}"
        )
    return content


def _eet_entry(archive: bytes, name: str) -> bytes:
    """Return an entry of an Eet archive: a header, then a directory of offsets and sizes, all big-endian."""
    magic, count = struct.unpack_from(">2I", archive)
    if magic != _EET_MAGIC:
        raise ValueError("not an Eet archive")
    for number in range(count):
        start, size, _, name_start, name_size, _ = struct.unpack_from(">6I", archive, 12 + 24 * number)
        if archive[name_start : name_start + name_size].rstrip(b"\0") == name.encode():
            return archive[start : start + size]
    raise ValueError(f"the Eet archive has no entry {name}")


def _write(target: Path, content: bytes) -> None:
    half = imresize(np.asarray(Image.open(io.BytesIO(content)).convert("RGB")), 0.5)
    half = half[: half.shape[0] // 8 * 8, : half.shape[1] // 8 * 8]
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.parent.name == "test":  # before the photograph, whose file says that it is done
        top, left = (max(side - _CROP, 0) // 8 * 4 for side in half.shape[:2])
        crop = target.parents[1] / "crops" / target.name
        crop.parent.mkdir(exist_ok=True)
        write_image(crop, half[top : top + _CROP, left : left + _CROP])
    write_image(target, half)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="created if needed")
    fetch(parser.parse_args().folder)
