"""The usual kind of PNG has a decoder of its own, and the same pixels."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from odd_images import chunk, icc_profile
from PIL import Image, ImageCms, ImageFile

from sr_models.io.reading import read_image

PIXELS = np.random.default_rng(0).integers(0, 256, (21, 13, 3), dtype=np.uint8)
#: Passes of an interlaced image, each an image of its own: first row and column, distances of rows and columns.
PASSES = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]


def png(*, interlaced: bool = False, before: bytes = b"", behind: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", 13, 21, 8, 2, 0, 0, interlaced)
    parts = [PIXELS[a::c, b::d] for a, b, c, d in PASSES] if interlaced else [PIXELS]
    rows = b"".join(b"\0" + row.tobytes() for part in parts for row in part if row.size)
    chunks = [chunk(b"IHDR", header), before, chunk(b"IDAT", zlib.compress(rows)), behind, chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.fixture
def decoders(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which decoders were called."""
    called: list[str] = []
    load, decode = ImageFile.ImageFile.load, imagecodecs.spng_decode
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: called.append("pillow") or load(image))
    monkeypatch.setattr(imagecodecs, "spng_decode", lambda content: called.append("quick") or decode(content))
    return called


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (b"", b""),
        (b"gAMA", struct.pack(">I", 100_000)),
        (b"sRGB", b"\0"),
        (b"sBIT", b"\5\6\5"),
        (b"bKGD", bytes(6)),
        (b"pHYs", struct.pack(">IIB", 2835, 2835, 1)),
        (b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)),
    ],
)
@pytest.mark.parametrize("interlaced", [False, True])
def test_kinds(tmp_path: Path, kind: bytes, content: bytes, interlaced: bool, decoders: list[str]) -> None:
    before = chunk(kind, content) if kind else b""
    (tmp_path / "a.png").write_bytes(png(interlaced=interlaced, before=before))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), PIXELS)
    assert decoders == ["quick"]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16"])
def test_other_kinds_are_left_to_others(tmp_path: Path, mode: str, decoders: list[str]) -> None:
    Image.new(mode, (13, 21)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").shape == (21, 13, 3)
    assert "quick" not in decoders


def test_a_transparent_colour(tmp_path: Path, decoders: list[str]) -> None:
    image = PIXELS.copy()
    image[:5] = 9
    Image.fromarray(image).save(tmp_path / "a.png", transparency=(9, 9, 9))
    image[:5] = 255
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), image)
    assert "quick" not in decoders


def test_an_animation(tmp_path: Path, decoders: list[str]) -> None:
    first, *others = [Image.new("RGB", (13, 21), colour) for colour in ("red", "blue", "lime")]
    first.save(tmp_path / "a.png", save_all=True, append_images=others, default_image=True)
    assert read_image(tmp_path / "a.png").shape == (21, 13, 3)
    assert "quick" not in decoders


def test_what_it_refuses_is_left_to_pillow(
    tmp_path: Path, decoders: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = png()
    broken = content.replace(b"IDAT\x78", b"IDAT\x79")
    (tmp_path / "a.png").write_bytes(broken)
    with pytest.raises(ValueError, match=r"cannot read image .*a.png: broken"):
        read_image(tmp_path / "a.png")
    assert decoders == ["quick", "pillow"]

    def refuse(content: bytes) -> np.ndarray:
        raise RuntimeError("a limit of this decoder")

    (tmp_path / "a.png").write_bytes(content)
    monkeypatch.setattr(imagecodecs, "spng_decode", refuse)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), PIXELS)


def test_colours_of_a_profile_become_srgb(tmp_path: Path, decoders: list[str]) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.png", icc_profile=icc_profile("RGB "))
    Image.fromarray(PIXELS).save(tmp_path / "a.tif", icc_profile=icc_profile("RGB "))
    found = read_image(tmp_path / "a.png")
    assert np.array_equal(found, read_image(tmp_path / "a.tif"))
    assert not np.array_equal(found, PIXELS)
    assert decoders[0] == "quick"


def test_profiles_and_orientation(tmp_path: Path, decoders: list[str]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(PIXELS).save(tmp_path / "a.png", icc_profile=profile, exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.rot90(PIXELS, -1))
    assert decoders == ["quick"]
