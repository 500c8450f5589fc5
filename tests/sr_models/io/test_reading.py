"""Images of every kind that people have: used rightly, or refused with file and reason."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from odd_images import chunk, icc_profile, png
from PIL import Image, ImageFile, PngImagePlugin

from sr_models.io import opening
from sr_models.io.reading import read_header, read_image

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (40, 60, 3), dtype=np.uint8)


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """The EXIF definition: what becomes of the stored rows and columns."""
    return {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: pixels[::-1].transpose(1, 0, 2),
        7: pixels[::-1, ::-1].transpose(1, 0, 2),
        8: pixels[:, ::-1].transpose(1, 0, 2),
    }[orientation]


def exif(orientation: int) -> Image.Exif:
    data = Image.Exif()
    data[0x0112] = orientation
    return data


def size_and_pixels(path: Path) -> np.ndarray:
    """Read an image, and check that the header gave its size."""
    pixels, header = read_image(path), read_header(path)
    assert pixels.shape == (header.height, header.width, 3)
    assert (pixels.dtype, pixels.flags.writeable, pixels.flags.c_contiguous) == (np.uint8, True, True)
    return pixels


# Orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp", ".jpg"])
def test_orientation(tmp_path: Path, suffix: str, orientation: int) -> None:
    path = tmp_path / f"a{suffix}"
    options = {".webp": {"lossless": True}, ".jpg": {"quality": 100, "subsampling": 0}}.get(suffix, {})
    Image.fromarray(NOISE).save(path, exif=exif(orientation), **options)
    expected = upright(NOISE, orientation).astype(int)
    assert np.abs(size_and_pixels(path) - expected).max() <= (3 if suffix == ".jpg" else 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_orientation_of_16_bits(tmp_path: Path, suffix: str, orientation: int) -> None:
    path, pixels = tmp_path / f"a{suffix}", NOISE.astype(np.uint16) * 257
    if suffix == ".png":
        path.write_bytes(png(pixels, before=chunk(b"eXIf", exif(orientation).tobytes()[6:])))
    else:
        tifffile.imwrite(path, pixels, photometric="rgb", extratags=[(274, "H", 1, orientation, True)])
    assert np.array_equal(size_and_pixels(path), upright(NOISE, orientation))


def test_orientation_after_the_pixels(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(NOISE, after=chunk(b"eXIf", exif(6).tobytes()[6:])))
    assert np.array_equal(size_and_pixels(tmp_path / "a.png"), upright(NOISE, 6))


@pytest.mark.parametrize("data", [b"", b"MM\0*\0\0\0\x08\0", b"II*\0\xff\xff\xff\xff", b"nonsense" * 5])
def test_damaged_exif_is_ignored(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.png").write_bytes(png(NOISE, before=chunk(b"eXIf", data)))
    assert np.array_equal(size_and_pixels(tmp_path / "a.png"), NOISE)
    Image.fromarray(NOISE).save(tmp_path / "a.jpg", exif=b"Exif\0\0" + data)
    assert size_and_pixels(tmp_path / "a.jpg").shape == NOISE.shape


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_unknown_orientations_are_ignored(tmp_path: Path, orientation: int) -> None:
    Image.fromarray(NOISE).save(tmp_path / "a.png", exif=exif(orientation))
    assert np.array_equal(size_and_pixels(tmp_path / "a.png"), NOISE)


# 16 bits a channel


def rounded(pixels: np.ndarray) -> np.ndarray:
    return np.round(pixels.astype(np.float64) * 255 / 65535).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_of_16_bits_is_rounded(tmp_path: Path, channels: int) -> None:
    pixels = RNG.integers(0, 2**16, (30, 50, channels), dtype=np.uint16)
    if channels in (2, 4):
        pixels[..., -1] = 65535
    (tmp_path / "a.png").write_bytes(png(pixels))
    expected = rounded(pixels[..., : 3 if channels > 2 else 1]).repeat(1 if channels > 2 else 3, -1)
    assert np.array_equal(size_and_pixels(tmp_path / "a.png"), expected)
    assert "16 bits a channel are rounded to 8" in read_header(tmp_path / "a.png").notes


def test_transparency_of_16_bits(tmp_path: Path) -> None:
    pixels = np.full((2, 2, 4), 30000, np.uint16)
    pixels[0, 0, 3], pixels[0, 1, 3] = 0, 65535
    (tmp_path / "a.png").write_bytes(png(pixels))
    result = size_and_pixels(tmp_path / "a.png")
    assert (result[0, 0].tolist(), result[0, 1].tolist()) == ([255] * 3, [117] * 3)
    # one transparent colour
    colours = np.array([[[1000, 2000, 3000], [1000, 2000, 3001]]], np.uint16)
    (tmp_path / "b.png").write_bytes(png(colours, before=chunk(b"tRNS", colours[0, 0].astype(">u2").tobytes())))
    assert size_and_pixels(tmp_path / "b.png").tolist() == [[[255] * 3, [4, 8, 12]]]


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
@pytest.mark.parametrize(
    ("channels", "options"),
    [
        (1, {"photometric": "minisblack"}),
        (1, {"photometric": "miniswhite"}),
        (3, {"photometric": "rgb"}),
        (3, {"photometric": "rgb", "planarconfig": "separate"}),
        (4, {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
        (4, {"photometric": "separated"}),
    ],
)
def test_tiff_of_16_bits_is_rounded(
    tmp_path: Path, channels: int, options: dict[str, object], compression: str | None, byteorder: str
) -> None:
    pixels = RNG.integers(0, 2**16, (30, 50, channels), dtype=np.uint16)
    if options["photometric"] == "miniswhite" and byteorder == ">":
        pytest.skip("Pillow does not open it")
    if "extrasamples" in options:
        pixels[..., -1] = 65535
    stored = pixels.transpose(2, 0, 1) if options.get("planarconfig") == "separate" else pixels
    stored = stored[..., 0] if channels == 1 else stored
    tifffile.imwrite(tmp_path / "a.tif", stored, compression=compression, byteorder=byteorder, **options)
    expected = rounded(pixels)
    if options["photometric"] == "miniswhite":
        expected = 255 - expected
    if options["photometric"] == "separated":
        expected = np.asarray(Image.frombytes("CMYK", (50, 30), expected.tobytes()).convert("RGB"))
    elif channels == 1:
        expected = expected.repeat(3, -1)
    assert np.array_equal(size_and_pixels(tmp_path / "a.tif"), expected[..., :3])


@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.float32, np.float64])
def test_other_depths_are_refused(tmp_path: Path, dtype: type) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.ones((8, 8), dtype))
    for read in (read_header, read_image):
        with pytest.raises(
            ValueError, match=rf"cannot read image {tmp_path / 'a.tif'}: (it must be grey|it is a TIFF of a k)"
        ):
            read(tmp_path / "a.tif")


# Colours


def true_colours(pixels: np.ndarray, gamma: float) -> np.ndarray:
    """Colours of the test profile in sRGB, from their definitions."""
    primaries = np.array([[0.6097, 0.2053, 0.1492], [0.3111, 0.6257, 0.0632], [0.0195, 0.0609, 0.7446]])
    srgb = np.array([[0.4361, 0.3851, 0.1431], [0.2225, 0.7169, 0.0606], [0.0139, 0.0971, 0.7141]])
    linear = np.clip((pixels / 255) ** gamma @ (np.linalg.inv(srgb) @ primaries).T, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "16 bits"])
def test_profiles_are_converted(tmp_path: Path, mode: str) -> None:
    pixels, profile = NOISE // 2 + 64, icc_profile("RGB ")
    if mode == "16 bits":
        tifffile.imwrite(tmp_path / "a.tif", pixels.astype(np.uint16) * 257, photometric="rgb", iccprofile=profile)
    else:
        Image.fromarray(pixels).convert(mode).save(tmp_path / "a.tif", icc_profile=profile)
    assert np.abs(size_and_pixels(tmp_path / "a.tif") - true_colours(pixels, 2.2)).max() < 2
    assert "colours are converted from a test to sRGB" in read_header(tmp_path / "a.tif").notes


@pytest.mark.parametrize("mode", ["L", "LA"])
@pytest.mark.parametrize("space", ["GRAY", "RGB "])
def test_profiles_of_grey(tmp_path: Path, mode: str, space: str) -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(grey).convert(mode).save(tmp_path / "a.png", icc_profile=icc_profile(space, 1.8))
    result = size_and_pixels(tmp_path / "a.png")
    expected = true_colours(grey[..., None].repeat(3, -1), 1.8)
    assert np.abs(result - expected).max() < 2
    assert np.ptp(result, axis=-1).max() <= 1


def test_large_images_are_converted_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    palette = Image.fromarray(NOISE).quantize(20)
    palette.save(tmp_path / "a.png", icc_profile=icc_profile("RGB "), transparency=3)
    whole = size_and_pixels(tmp_path / "a.png")
    monkeypatch.setattr("sr_models.io.colour._BLOCK", 60 * 7)
    assert np.array_equal(size_and_pixels(tmp_path / "a.png"), whole)


def srgb_profile() -> bytes:
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def test_srgb_is_left_alone(tmp_path: Path) -> None:
    Image.fromarray(NOISE).save(tmp_path / "a.png", icc_profile=srgb_profile())
    assert np.array_equal(size_and_pixels(tmp_path / "a.png"), NOISE)
    assert read_header(tmp_path / "a.png").notes == ()


@pytest.mark.parametrize("profile", [b"nonsense", icc_profile("RGB ")[:150], icc_profile("GRAY")])
def test_profiles_that_cannot_be_used_are_said(tmp_path: Path, profile: bytes) -> None:
    Image.fromarray(NOISE).save(tmp_path / "a.png", icc_profile=profile)
    assert np.array_equal(size_and_pixels(tmp_path / "a.png"), NOISE)
    (note,) = read_header(tmp_path / "a.png").notes
    assert note.startswith("a colour profile that cannot be used (")


def test_notes_of_other_changes(tmp_path: Path) -> None:
    def notes(name: str, image: Image.Image, **options: object) -> tuple[str, ...]:
        image.save(tmp_path / name, **options)
        return read_header(tmp_path / name).notes

    image = Image.fromarray(NOISE)
    assert notes("a.png", image) == notes("a.jpg", image) == ()
    assert notes("cmyk.jpg", image.convert("CMYK")) == ("CMYK colours without a profile become RGB approximately",)
    assert notes("alpha.png", image.convert("RGBA")) == ("transparent pixels become white",)
    for name in ("frames.png", "frames.webp", "frames.tif", "frames.gif"):
        others = [Image.fromarray(255 - NOISE)]
        options = {"save_all": True, "append_images": others, "lossless": True}
        assert "only the first frame of an animation is used" in notes(name, image, **options)
        # the colours of a GIF are few
        assert np.abs(size_and_pixels(tmp_path / name).astype(int) - NOISE).mean() < 40


# Refused


def complete(suffix: str) -> bytes:
    buffer = io.BytesIO()
    options = {".tif": {"format": "TIFF", "compression": "tiff_lzw"}}.get(suffix, {"format": suffix[1:].upper()})
    smooth = np.add.outer(np.arange(200), np.arange(300)).astype(np.uint8)[..., None].repeat(3, -1)
    Image.fromarray(smooth + RNG.integers(0, 9, smooth.shape, dtype=np.uint8)).save(buffer, **options)
    return buffer.getvalue()


FORMATS = [".png", ".jpeg", ".webp", ".tif", ".bmp"]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("kept", [0.3, 0.9, -1, -20])
def test_files_that_are_cut_off(tmp_path: Path, suffix: str, kept: float) -> None:
    content, path = complete(suffix), tmp_path / f"a{suffix}"
    path.write_bytes(content[: int(kept * len(content)) if kept > 0 else int(kept)])
    for read in (read_header, read_image):
        with pytest.raises(ValueError, match=f"cannot read image {path}: "):
            read(path)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("trailer", [bytes(5000), b"\0\0\0\x20ftypmp42" + RNG.bytes(100_000)], ids=["zeros", "video"])
def test_files_with_something_behind_them(tmp_path: Path, suffix: str, trailer: bytes) -> None:
    content, path = complete(suffix), tmp_path / f"a{suffix}"
    path.write_bytes(content)
    alone = size_and_pixels(path)
    path.write_bytes(content + trailer)
    assert np.array_equal(size_and_pixels(path), alone)


@pytest.mark.parametrize("trailer", [b"", bytes(3000), RNG.bytes(100_000).replace(b"\xff\xd9", b"")])
def test_a_cut_jpeg_with_a_thumbnail(tmp_path: Path, trailer: bytes) -> None:
    """The end of the thumbnail is not the end of the image."""
    content, path = complete(".jpeg"), tmp_path / "a.jpg"
    thumbnail = b"\xff\xe1" + (2 + 600).to_bytes(2, "big") + (b"Exif\0\0" + bytes(92) + b"\xff\xd9" * 251)
    content = content[:2] + thumbnail + content[2:]
    path.write_bytes(content + trailer)
    assert size_and_pixels(path).shape == (200, 300, 3)
    path.write_bytes(content[:-500] + trailer)
    with pytest.raises(ValueError, match=f"cannot read image {path}: the file is cut off after"):
        read_header(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"<!DOCTYPE html><html>404", "it is a web page, perhaps of a download that failed"),
        (b"\n  <HTML lang=en>", "it is a web page, perhaps of a download that failed"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "git lfs pull fetches the image"),
        (b"\0\5\x16\7\0\2\0\0Mac OS X" + bytes(60), "what macOS keeps beside a file"),
        (bytes(1000), "it begins with zeros"),
        (b"\0\0\0\x1cftypheic" + bytes(50), "it is a HEIC or AVIF image; PNG, JPEG, WebP, TIFF and BMP can be read"),
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
            "it is no image that can be read, or damaged",
        ),
        (b"II*\0" + bytes(40), ""),
        (b"\x89PNG\r\n\x1a\n and no more", ""),
        (b"\xff\xd8\xff\xe0", ""),
    ],
)
def test_what_is_no_image(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    for read in (read_header, read_image):
        with pytest.raises(ValueError, match=f"cannot read image {path}: .") as caught:
            read(path)
        assert reason in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("read", [read_header, read_image])
def test_what_is_no_file(tmp_path: Path, read: Callable[[Path], object]) -> None:
    (tmp_path / "link.png").symlink_to("/nowhere/a.png")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(FileNotFoundError, match=f"image {tmp_path / 'a.png'} does not exist"):
        read(tmp_path / "a.png")
    with pytest.raises(FileNotFoundError, match=f"image {tmp_path / 'link.png'} is a link to /nowhere/a.png, which"):
        read(tmp_path / "link.png")
    with pytest.raises(ValueError, match=f"cannot read image {tmp_path}: it is a folder"):
        read(tmp_path)
    with pytest.raises(ValueError, match=f"cannot read image {tmp_path / 'pipe.png'}: it is not a regular file"):
        read(tmp_path / "pipe.png")


def test_damage_in_the_middle(tmp_path: Path) -> None:
    """The header is fine, decoding is not; other formats have no checksum that would show it."""
    content = bytearray(complete(".png"))
    content[len(content) // 2] ^= 1
    (tmp_path / "a.png").write_bytes(content)
    assert read_header(tmp_path / "a.png").height == 200
    with pytest.raises(ValueError, match=f"cannot read image {tmp_path / 'a.png'}: "):
        read_image(tmp_path / "a.png")
    deep = bytearray(png(NOISE.astype(np.uint16) * 257))
    deep[len(deep) // 2] ^= 1
    (tmp_path / "b.png").write_bytes(deep)
    with pytest.raises(ValueError, match=f"cannot read image {tmp_path / 'b.png'}: "):
        read_image(tmp_path / "b.png")


# Pillow's settings


def test_large_images_are_limited_by_memory_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    Image.fromarray(NOISE).save(tmp_path / "a.png")
    Image.fromarray(NOISE).save(tmp_path / "a.webp", lossless=True)
    for name in ("a.png", "a.webp"):
        assert np.array_equal(size_and_pixels(tmp_path / name), NOISE)
    monkeypatch.setattr(opening, "_machine_memory", lambda: 2 * 40 * 60 * 8 - 1)
    for read in (read_header, read_image):
        with pytest.raises(ValueError, match=r"60 x 40 pixels take .* GiB to decode, more than half of this machine's"):
            read(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(png(NOISE.astype(np.uint16)))
    monkeypatch.setattr(opening, "_machine_memory", lambda: 2 * 40 * 60 * 16 - 1)
    assert read_header(tmp_path / "a.png").width == 60
    with pytest.raises(ValueError, match="60 x 40 pixels take"):
        read_header(tmp_path / "b.png")
    assert Image.MAX_IMAGE_PIXELS == 1000


def test_the_machine_has_memory() -> None:
    assert 2**28 < opening._machine_memory() < 2**50


def test_damaged_images_stay_refused_where_a_program_tolerates_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    content = bytearray(complete(".png"))
    content[len(content) // 2] ^= 1
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match="cannot read image"):
        read_image(tmp_path / "a.png")
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_long_texts_are_no_reason_to_refuse_an_image(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("history", "x" * 2_000_000, zip=True)
    Image.fromarray(NOISE).save(tmp_path / "a.png", pnginfo=info)
    assert np.array_equal(size_and_pixels(tmp_path / "a.png"), NOISE)


def test_threads_leave_the_settings_as_they_were(tmp_path: Path) -> None:
    Image.fromarray(NOISE).save(tmp_path / "a.png")
    former = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, PngImagePlugin.MAX_TEXT_CHUNK
    wrong: list[Exception] = []

    def work() -> None:
        try:
            for _ in range(50):
                read_header(tmp_path / "a.png")
                read_image(tmp_path / "a.png")
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert former == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, PngImagePlugin.MAX_TEXT_CHUNK)
