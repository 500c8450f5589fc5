"""Image reading, writing and conversion."""

import os
import re
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sr_models.io.images import (
    IMAGE_SUFFIXES,
    check_pair,
    check_rgb,
    crop_to_multiple,
    find_images,
    read_image,
    to_tensor,
    to_uint8,
    write_image,
)

WHITE = 255


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (20, 27, 3), dtype=np.uint8)


# Files


def test_find_images_is_sorted_and_ignores_other_files(tmp_path):
    names = [f"{index}{suffix}" for index, suffix in enumerate(IMAGE_SUFFIXES)]
    wanted = sorted([*names, "B.PNG", "a.JpG"])
    for name in (*wanted, "notes.txt", "png", ".0.png.tmp"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in find_images(tmp_path)] == wanted
    assert find_images(str(tmp_path)) == find_images(tmp_path)


def test_find_images_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"image folder {tmp_path / 'absent'} does not exist"):
        find_images(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} holds no image; accepted suffixes: .png .jpg .jpeg"):
        find_images(tmp_path)
    (tmp_path / "file.png").touch()
    with pytest.raises(NotADirectoryError, match=f"image folder {tmp_path / 'file.png'} is not a folder"):
        find_images(tmp_path / "file.png")


def test_write_then_read_is_lossless(tmp_path, image):
    write_image(tmp_path / "a.png", image)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), image)
    write_image(tmp_path / "a.png", image[::-1, ::2])
    np.testing.assert_array_equal(read_image(str(tmp_path / "a.png")), image[::-1, ::2])
    assert os.listdir(tmp_path) == ["a.png"]


def test_read_image_is_writable_rgb(tmp_path, image):
    Image.fromarray(image).save(tmp_path / "a.jpg", quality=100)
    result = read_image(tmp_path / "a.jpg")
    assert (result.shape, result.dtype, result.flags.writeable) == (image.shape, np.uint8, True)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK"])
def test_read_image_converts_to_rgb(tmp_path, image, mode):
    converted = Image.fromarray(image).convert(mode)
    converted.save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), np.asarray(converted.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_read_image_composites_on_white(tmp_path, image, mode):
    grey = np.repeat(image[..., :1], 3, axis=2)
    transparent = Image.fromarray(grey).convert("RGBA")
    alpha = np.full(grey.shape[:2], 255, dtype=np.uint8)
    alpha[:10] = 0
    transparent.putalpha(Image.fromarray(alpha))
    transparent.convert(mode).save(tmp_path / "a.png")
    result = read_image(tmp_path / "a.png")
    assert (result[:10] == WHITE).all()
    np.testing.assert_array_equal(result[10:], grey[10:])


def test_read_image_blends_half_transparency(tmp_path):
    Image.new("RGBA", (3, 2), (0, 100, 200, 51)).save(tmp_path / "a.png")  # alpha = 1/5
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.broadcast_to([204, 224, 244], (2, 3, 3)))


def test_read_image_handles_transparent_palette_colour(tmp_path):
    palette = Image.new("P", (3, 2), 0)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "a.png", transparency=0)
    result = read_image(tmp_path / "a.png")
    assert result[0, 1].tolist() == [40, 50, 60]
    assert (result[1] == WHITE).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_read_image_applies_exif_orientation(tmp_path, image, orientation):
    # The EXIF definition: what becomes of the stored rows and columns.
    upright = {
        1: image,
        2: image[:, ::-1],
        3: image[::-1, ::-1],
        4: image[::-1],
        5: image.transpose(1, 0, 2),
        6: image[::-1].transpose(1, 0, 2),
        7: image[::-1, ::-1].transpose(1, 0, 2),
        8: image[:, ::-1].transpose(1, 0, 2),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(image).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), upright)


def test_read_image_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"image {tmp_path / 'a.png'} does not exist"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp", ".tif"])
@pytest.mark.parametrize("kept", [0, 0.05, 0.5, 0.9])
def test_read_image_truncated(tmp_path, image, suffix, kept):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(image).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=f"cannot read image {path}: "):
            read_image(path)


@given(data=st.binary(max_size=200), position=st.integers(0, 200))
def test_read_image_of_damaged_file_reads_or_raises_value_error(tmp_path_factory, data, position):
    path = tmp_path_factory.getbasetemp() / "damaged.png"
    Image.new("RGB", (8, 8), (1, 2, 3)).save(path)
    content = path.read_bytes()
    path.write_bytes(content[:position] + data + content[position + len(data) :])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            outcome = read_image(path)
        except ValueError as error:
            outcome = error
    if isinstance(outcome, ValueError):
        assert str(path) in str(outcome)
    else:
        assert outcome.dtype == np.uint8


def test_write_image_errors(tmp_path, image):
    with pytest.raises(ValueError, match=f"path must end in .png, got {tmp_path / 'a.jpg'}"):
        write_image(tmp_path / "a.jpg", image)
    with pytest.raises(FileNotFoundError, match=f"folder {tmp_path / 'absent'} does not exist"):
        write_image(tmp_path / "absent" / "a.png", image)
    with pytest.raises(TypeError, match="image must be a uint8 numpy array, got dtype float64"):
        write_image(tmp_path / "a.png", image / 255)


def test_failed_write_leaves_the_old_file(tmp_path, image, monkeypatch):
    write_image(tmp_path / "a.png", image)

    def fail(self, file, **_):
        file.write(b"half a file")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        write_image(tmp_path / "a.png", image[::-1])
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), image)
    assert os.listdir(tmp_path) == ["a.png"]


# Tensors


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 9))
def test_tensor_round_trip(seed, height, width):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    tensor = to_tensor(image)
    assert (tensor.shape, tensor.dtype) == ((3, height, width), torch.float32)
    assert tensor.is_contiguous()
    for channel in range(3):
        np.testing.assert_array_equal(tensor[channel].numpy(), image[..., channel].astype(np.float32) / 255)
    np.testing.assert_array_equal(to_uint8(tensor), image)


def test_all_levels_survive_the_round_trip():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    np.testing.assert_array_equal(to_uint8(to_tensor(levels)), levels)
    np.testing.assert_array_equal(to_uint8(to_tensor(levels).double()), levels)


@pytest.mark.parametrize(
    ("value", "level"),
    [
        (-0.1, 0),
        (-float("inf"), 0),
        (1.7, 255),
        (float("inf"), 255),
        (0.5, 128),
        (100.4 / 255, 100),
        (100.6 / 255, 101),
    ],
)
def test_to_uint8_clamps_and_rounds(value, level):
    assert (to_uint8(torch.full((3, 2, 2), value)) == level).all()


def test_to_uint8_detaches_and_leaves_its_input_alone():
    tensor = torch.full((3, 2, 2), 2.0, dtype=torch.bfloat16, requires_grad=True)
    assert (to_uint8(tensor) == 255).all()
    assert (tensor == 2).all()


def test_to_uint8_errors():
    with pytest.raises(TypeError, match="image must be a tensor, got ndarray"):
        to_uint8(np.zeros((3, 2, 2)))
    with pytest.raises(TypeError, match=r"image must be a floating-point tensor, got dtype torch\.uint8"):
        to_uint8(torch.zeros(3, 2, 2, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"image must be \(3, H, W\), got shape \(1, 3, 2, 2\)"):
        to_uint8(torch.zeros(1, 3, 2, 2))
    for shape in ((4, 2, 2), (3, 2)):
        with pytest.raises(ValueError, match=rf"image must be \(3, H, W\), got shape {re.escape(str(shape))}"):
            to_uint8(torch.zeros(shape))
    with pytest.raises(ValueError, match="image contains 1 NaN among 12 values"):
        to_uint8(
            torch.zeros(3, 2, 2).index_fill(0, torch.tensor([0]), 0).put_(torch.tensor([5]), torch.tensor([torch.nan]))
        )


# Sizes


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 16), st.booleans())
def test_crop_to_multiple(height, width, multiple, colour):
    image = np.arange(height * width * 3).reshape(height, width, 3)
    image = image if colour else image[..., 0]
    if min(height, width) < multiple:
        with pytest.raises(ValueError, match=f"{height}x{width} pixels .* smaller than multiple={multiple}"):
            crop_to_multiple(image, multiple)
        return
    result = crop_to_multiple(image, multiple)
    rows, columns = result.shape[:2]
    assert (rows % multiple, columns % multiple) == (0, 0)
    assert height - rows < multiple
    assert width - columns < multiple
    np.testing.assert_array_equal(result, image[:rows, :columns])


def test_crop_to_multiple_errors():
    with pytest.raises(ValueError, match=r"image must be \(H, W\) or \(H, W, C\), got shape \(4,\)"):
        crop_to_multiple(np.zeros(4), 2)
    with pytest.raises(ValueError, match="multiple must be positive, got 0"):
        crop_to_multiple(np.zeros((4, 4)), 0)


def rgb(height: int, width: int) -> np.ndarray:
    return np.zeros((height, width, 3), dtype=np.uint8)


def test_check_pair_accepts_exact_multiples():
    check_pair(rgb(6, 7), rgb(24, 28), 4)


@pytest.mark.parametrize(
    ("lr", "hr", "scale", "message"),
    [
        (rgb(6, 7), rgb(24, 27), 4, r"hr must be 24x28 pixels \(height x width\), 4 times lr of 6x7, got 24x27"),
        (rgb(6, 7), rgb(48, 56), 4, "hr must be 24x28 pixels .*, got 48x56"),
        (rgb(6, 7), rgb(24, 28), 0, "scale must be positive, got 0"),
        (rgb(6, 7)[0], rgb(24, 28), 4, r"lr must be \(H, W, 3\) and not empty, got shape \(7, 3\)"),
        (rgb(6, 7), rgb(24, 28)[..., :1], 4, r"hr must be \(H, W, 3\) and not empty, got shape \(24, 28, 1\)"),
    ],
)
def test_check_pair_errors(lr, hr, scale, message):
    with pytest.raises(ValueError, match=message):
        check_pair(lr, hr, scale)


@pytest.mark.parametrize("convert", [to_tensor, lambda image: check_rgb("image", image)])
def test_rgb_arguments_are_checked(convert):
    with pytest.raises(TypeError, match="image must be a uint8 numpy array, got list"):
        convert([1])
    with pytest.raises(TypeError, match="image must be a uint8 numpy array, got dtype float32"):
        convert(np.zeros((2, 2, 3), np.float32))
    with pytest.raises(ValueError, match=r"image must be \(H, W, 3\) and not empty, got shape \(0, 2, 3\)"):
        convert(rgb(0, 2))
