"""Pairs are found under the names that data sets have, and what does not fit is said before anything is scored."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from sr_models.evaluation.pairs import find_pairs, load_pair
from sr_models.io.images import crop_to_multiple, write_image
from sr_models.io.resize import imresize


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write(path: Path, height: int, width: int, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, picture(height, width, seed))
    return path


@pytest.mark.parametrize(
    ("high", "low"),
    [
        ("hr/a.png", "lr/a.png"),
        ("hr/a.png", "lr/ax4.png"),
        ("hr/deep/er/a.png", "lr/deep/er/ax4.png"),
        ("DIV2K_valid_HR/0801.png", "DIV2K_valid_LR_bicubic/X4/0801x4.png"),
        ("Set14/HR/a.png", "Set14/LR_bicubic/X4/ax4.png"),
    ],
)
def test_names_of_data_sets(tmp_path: Path, high: str, low: str) -> None:
    hr, lr = write(tmp_path / high, 16, 24), write(tmp_path / low, 4, 6)
    folders = Path(high).parts[0], str(Path(*Path(low).parts[:2])) if "LR_bicubic" in low else Path(low).parts[0]
    pairs, failures = find_pairs(tmp_path / folders[0], 4, tmp_path / folders[1])
    assert [(pair.hr, pair.lr) for pair in pairs] == [(hr, lr)]
    assert not failures


def test_names_are_paths_below_the_folder(tmp_path: Path) -> None:
    for name in ("a.png", "b/a.png"):
        write(tmp_path / name, 16, 16)
    pairs, _ = find_pairs(tmp_path, 4)
    assert {pair.name for pair in pairs} == {"a.png", "b/a.png"}
    assert all(pair.lr is None for pair in pairs)


@pytest.mark.parametrize("sides", [(33, 41), (34, 40), (35, 43), (39, 47), (8, 15)])
@pytest.mark.parametrize("rounded", ["down", "up"])
def test_high_resolution_sides_that_the_scale_does_not_divide(
    tmp_path: Path, sides: tuple[int, int], rounded: str
) -> None:
    """Set14 and BSD100: the low-resolution image is that of the cropped image, or of all of it and rounded up.

    It is used whole. Of the high-resolution image that part is used which the low-resolution one covers.
    """
    hr = picture(*sides)
    source = np.ascontiguousarray(crop_to_multiple(hr, 4)) if rounded == "down" else hr
    lr = imresize(source, 1 / 4)
    for name, image in (("hr", hr), ("lr", lr)):
        (tmp_path / name).mkdir()
        write_image(tmp_path / name / "a.png", image)
    ((pair,), failures) = find_pairs(tmp_path / "hr", 4, tmp_path / "lr")
    assert not failures
    found_lr, found_hr = load_pair(pair.hr, 4, pair.lr)
    assert np.array_equal(found_hr, source)
    assert np.array_equal(found_lr, lr)


def test_every_missing_low_resolution_image_is_counted(tmp_path: Path) -> None:
    for number in range(8):
        write(tmp_path / "hr" / f"{number}.png", 16, 16)
    write(tmp_path / "lr" / "7.png", 4, 4)
    with pytest.raises(FileNotFoundError) as caught:
        find_pairs(tmp_path / "hr", 4, tmp_path / "lr")
    message = str(caught.value)
    assert message.startswith("lr_images do not fit 7 of 8 images: ")
    assert f"{tmp_path}/hr/0.png: no 0 or 0x4 in {tmp_path}/lr" in message
    assert message.endswith("4.png: no 4 or 4x4 in " + f"{tmp_path}/lr; and 2 more")


@pytest.mark.parametrize("size", [(4, 3), (3, 4), (5, 4), (16, 16), (8, 8)])
def test_sizes_that_do_not_fit_are_found_before_decoding(tmp_path: Path, size: tuple[int, int]) -> None:
    write(tmp_path / "hr" / "a.png", 16, 16)
    low = write(tmp_path / "lr" / "a.png", *size)
    message = rf"not fit 1 of 1 images: .*a.png: 16 x 16 pixels, which is not 4 times the {size[0]} x {size[1]}"
    with pytest.raises(ValueError, match=message):
        find_pairs(tmp_path / "hr", 4, tmp_path / "lr")
    # and again when they are read, should they have changed
    with pytest.raises(ValueError, match=re.escape(f"4 times lr of {size[0]}x{size[1]}, got 16x16")):
        load_pair(tmp_path / "hr" / "a.png", 4, low)


@pytest.mark.parametrize("broken", ["hr", "lr"])
@pytest.mark.parametrize("content", [b"", b"<html>", b"\x89PNG\r\n\x1a\n but no more"])
def test_an_image_that_cannot_be_read_costs_only_itself(tmp_path: Path, broken: str, content: bytes) -> None:
    for name in ("a", "b"):
        write(tmp_path / "hr" / f"{name}.png", 16, 16)
        write(tmp_path / "lr" / f"{name}x4.png", 4, 4)
    bad = tmp_path / broken / ("b.png" if broken == "hr" else "bx4.png")
    bad.write_bytes(content)
    pairs, failures = find_pairs(tmp_path / "hr", 4, tmp_path / "lr")
    assert [pair.name for pair in pairs] == ["a.png"]
    assert list(failures) == ["b.png"]
    assert broken == "hr" or str(bad) in failures["b.png"]


def test_small_images_and_folders_without_any_other(tmp_path: Path) -> None:
    write(tmp_path / "small.png", 7, 20)
    with pytest.raises(ValueError, match=r"small.png.*must be at least 8 x 8 pixels"):
        find_pairs(tmp_path, 4)
    write(tmp_path / "large.png", 8, 20)
    pairs, failures = find_pairs(tmp_path, 4)
    assert [pair.name for pair in pairs] == ["large.png"]
    assert list(failures) == ["small.png"]


def test_a_digest_is_of_both_images(tmp_path: Path) -> None:
    write(tmp_path / "hr" / "a.png", 16, 16)
    low = write(tmp_path / "lr" / "a.png", 4, 4)
    digests = set()
    for change in (None, tmp_path / "hr" / "a.png", low):
        if change is not None:
            write_image(change, 255 - picture(*((4, 4) if change == low else (16, 16))))
        ((pair,), _) = find_pairs(tmp_path / "hr", 4, tmp_path / "lr")
        digests.add(pair.digest())
    ((alone,), _) = find_pairs(tmp_path / "hr", 4)
    digests.add(alone.digest())
    assert len(digests) == 4


def test_images_of_a_list_that_are_missing_are_failures(tmp_path: Path) -> None:
    write(tmp_path / "a.png", 16, 16)
    (tmp_path / "broken.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "list.txt").write_text("a.png\nb.png\n")
    for source, name in (("list.txt", "b.png"), (".", "broken.png")):
        pairs, failures = find_pairs(tmp_path / source, 4)
        assert [pair.name for pair in pairs] == ["a.png"]
        assert list(failures) == [name]
        assert "No such file" in failures[name]
