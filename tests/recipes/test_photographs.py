"""The photographs of the recipe: their list, archives, hashes, and what is written."""

from __future__ import annotations

import hashlib
import io
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from recipes import photographs as module
from recipes.photographs import Photograph, fetch, photographs
from sr_models.io.images import read_image
from sr_models.io.resize import imresize


def test_the_list_names_each_photograph_once_with_licence_and_hash() -> None:
    listed = photographs()
    assert [sum(one.split == split for one in listed) for split in ("train", "test")] == [70, 7]
    assert len({one.name for one in listed}) == len({one.sha256 for one in listed}) == 77
    assert all(one.licence and len(one.sha256) == 64 and one.path.startswith("/usr/share/") for one in listed)


def eet(entries: dict[str, bytes]) -> bytes:
    """An archive with these entries: header, directory, names, contents."""
    position = 12 + 24 * len(entries)
    names = b"".join(name.encode() + b"\0" for name in entries)
    directory, name_at, content_at = b"", position, position + len(names)
    for name, content in entries.items():
        directory += struct.pack(">6I", content_at, len(content), len(content), name_at, len(name) + 1, 0)
        name_at, content_at = name_at + len(name) + 1, content_at + len(content)
    return struct.pack(">3I", 0x1EE70F42, len(entries), 0) + directory + names + b"".join(entries.values())


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (36, 50, 3), dtype=np.uint8)


@pytest.fixture
def packages(image: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two packages with a photograph each, and the names of those that were downloaded."""
    stored = io.BytesIO()
    Image.fromarray(image).save(stored, "PNG")
    contents = {"plain": stored.getvalue(), "archive": eet({"other": b"x", "edje/images/0": stored.getvalue()})}
    digest = hashlib.sha256(stored.getvalue()).hexdigest()
    listed = [
        Photograph("first", "train", "plain", "1", "/usr/share/first.png", "CC0", digest),
        Photograph("second", "test", "archive", "2", "/usr/share/second.edj#edje/images/0", "CC0", digest),
    ]
    monkeypatch.setattr(module, "photographs", lambda: listed)
    downloaded: list[str] = []

    def run(command: list[str], *, cwd: str, check: bool) -> None:
        assert check
        if command[:2] == ["apt-get", "download"]:
            downloaded.append(command[2])
            (Path(cwd) / f"{command[2]}_1.deb").write_bytes(b"")
            return
        assert command[:2] == ["dpkg-deb", "-x"]
        target = Path(cwd) / command[3] / "usr" / "share"
        target.mkdir(parents=True)
        name = command[2].partition("_")[0]
        (target / {"plain": "first.png", "archive": "second.edj"}[name]).write_bytes(contents[name])

    monkeypatch.setattr(subprocess, "run", run)
    return downloaded


def test_photographs_are_reduced_and_fetched_once(
    tmp_path: Path, image: np.ndarray, packages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CROP", 16)
    fetch(tmp_path)
    for file in ("train/first.png", "test/second.png"):
        np.testing.assert_array_equal(read_image(tmp_path / file), imresize(image, 0.5)[:16, :24])
    # the middle of test photographs, from a multiple of four on
    np.testing.assert_array_equal(read_image(tmp_path / "crops/second.png"), imresize(image, 0.5)[:16, 4:20])
    assert not (tmp_path / "crops/first.png").exists()
    assert packages == ["archive", "plain"]
    (tmp_path / "train" / "first.png").unlink()
    fetch(tmp_path)
    assert packages == ["archive", "plain", "plain"]


def test_another_photograph_is_refused(
    tmp_path: Path, packages: list[str], monkeypatch: pytest.MonkeyPatch, image: np.ndarray
) -> None:
    changed: list[Any] = [one._replace(sha256="0" * 64) for one in module.photographs()]
    monkeypatch.setattr(module, "photographs", lambda: changed)
    with pytest.raises(ValueError, match=r"/usr/share/second.edj#edje/images/0 of archive is not the photograph"):
        fetch(tmp_path)
    assert not list(tmp_path.rglob("*.png"))


def test_archives_of_another_kind_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^not an Eet archive$"):
        module._eet_entry(b"\0" * 40, "a")
    with pytest.raises(ValueError, match=r"^the Eet archive has no entry c$"):
        module._eet_entry(eet({"a": b"1", "b": b"2"}), "c")
