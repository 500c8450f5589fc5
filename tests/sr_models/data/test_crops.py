"""Training crops: what they are, and that they depend on seed and index alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sr_models.data.crops import FixedCrops, RandomCrops
from sr_models.io.images import to_uint8, write_image
from sr_models.io.resize import imresize


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for index, shape in enumerate([(40, 50), (64, 32)]):
        write_image(path / f"{index}.png", rng.integers(0, 256, (*shape, 3), dtype=np.uint8))
    return path


def crops(folder: Path, **changes: Any) -> RandomCrops:
    """Crops that are flipped but not turned, unless ``rotate`` is given."""
    return RandomCrops(folder, **{"scale": 4, "crop": 32, "length": 50, "seed": 1, "rotate": False, **changes})


def test_lr_is_the_reduced_crop_and_the_crop_is_in_a_photograph(folder: Path) -> None:
    images = [np.array(Image.open(path)) for path in sorted(folder.iterdir())]
    windows = {
        np.ascontiguousarray(part).tobytes()
        for image in images
        for y in range(image.shape[0] - 31)
        for x in range(image.shape[1] - 31)
        for part in (image[y : y + 32, x : x + 32], image[y : y + 32, x : x + 32][:, ::-1])
    }
    for item in (crops(folder)[index] for index in range(20)):
        hr = to_uint8(item["hr"])
        assert hr.tobytes() in windows
        assert np.array_equal(to_uint8(item["lr"]), imresize(hr, 1 / 4))


def test_a_crop_is_a_function_of_seed_and_index(folder: Path) -> None:
    first, again, other = crops(folder), crops(folder), crops(folder, seed=2)
    order = np.random.default_rng(3).permutation(len(first))
    for index in order.tolist():
        assert torch.equal(first[index]["hr"], again[index]["hr"])
    assert any(not torch.equal(first[index]["hr"], other[index]["hr"]) for index in range(5))


def test_flips_and_every_photograph_occur(folder: Path) -> None:
    seen = {item["hr"].numpy().tobytes() for item in (crops(folder)[index] for index in range(50))}
    assert len(seen) > 40


def test_every_place_and_both_orientations_are_equally_likely(tmp_path: Path) -> None:
    side, count = 35, 3000
    image = np.zeros((side, side + 1, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(side)[:, None], np.arange(side + 1)  # a pixel says where it is from
    write_image(tmp_path / "places.png", image)
    data = crops(tmp_path, crop=32, length=count)
    corners = [to_uint8(item["hr"])[0, [0, -1], :2].astype(int) for item in (data[index] for index in range(count))]
    found = Counter((top, min(left, right), left > right) for (top, left), (_, right) in corners)
    assert set(found) == {(top, left, flipped) for top in range(4) for left in range(5) for flipped in (False, True)}
    assert max(found.values()) < 2 * min(found.values())
    flipped = sum(number for (_, _, flipped), number in found.items() if flipped)
    assert abs(flipped - count / 2) < 4 * (count / 4) ** 0.5


def test_fixed_crops_are_the_quarters(folder: Path) -> None:
    fixed = FixedCrops(folder, scale=4, crop=32)
    # 40 x 50 has room for two crops each way, 64 x 32 for one across
    assert len(fixed) == 4 + 2
    assert torch.equal(fixed[3]["hr"], FixedCrops(folder, scale=4, crop=32)[3]["hr"])


def test_a_large_folder_is_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = crops(folder)[7]["hr"]
    monkeypatch.setattr("sr_models.data.memory.LIMIT", 0)
    data = crops(folder)
    assert torch.equal(data[7]["hr"], expected)
    assert not data._memory._kept


def test_what_fits_is_kept_in_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sr_models.data.memory.LIMIT", 3 * (40 * 50 + 64 * 32))
    data = crops(folder)
    items = [data[index] for index in range(20)]
    assert sorted(data._memory._kept) == [0, 1]
    monkeypatch.setattr(data._photographs, "_read_high", None)  # none is read again
    assert all(torch.equal(data[index]["hr"], item["hr"]) for index, item in enumerate(items))


class TestErrors:
    def test_small_image(self, folder: Path) -> None:
        with pytest.raises(
            ValueError, match=r"no image can be used: .*0.png \(must be at least 64 x 64 pixels, got 40 x 50\)"
        ):
            crops(folder, crop=64)
        with pytest.raises(ValueError, match=r"must be at least 64 x 64"):
            FixedCrops(folder, scale=4, crop=64)

    @pytest.mark.parametrize("crop", [0, 2, 30])
    def test_crop(self, folder: Path, crop: int) -> None:
        with pytest.raises(ValueError, match=f"crop must be a positive multiple of the scale 4, got {crop}"):
            crops(folder, crop=crop)

    def test_unreadable_image(self, tmp_path: Path) -> None:
        (tmp_path / "broken.png").write_bytes(b"not an image")
        with pytest.raises(ValueError, match=r"no image can be used: .*broken.png \(not an image"):
            crops(tmp_path)

    def test_empty_and_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="holds no image"):
            crops(tmp_path)
        with pytest.raises(FileNotFoundError, match="does not exist"):
            crops(tmp_path / "nowhere")


def test_both_images_of_a_crop_are_flipped_alike(tmp_path: Path) -> None:
    """In a picture that falls from left to right and rises downwards, a flip shows, and a flip upside down as well."""
    y, x = np.mgrid[0:32, 0:40]
    write_image(tmp_path / "ramp.png", np.stack([250 - 5 * x, 20 + 6 * y, 100 + 0 * x], -1).astype(np.uint8))
    flipped = []
    for item in (crops(tmp_path, crop=16)[index] for index in range(40)):
        slopes = {}
        for name, image in ((name, item[name]) for name in ("hr", "lr")):
            red, green = image[0].mean(0), image[1].mean(1)
            assert (red.diff() > 0).all() or (red.diff() < 0).all()
            assert (green.diff() > 0).all()
            slopes[name] = bool(red[-1] > red[0])
        assert slopes["hr"] == slopes["lr"]
        flipped.append(slopes["hr"])
    assert 10 < sum(flipped) < 30


def test_crops_reach_every_edge_of_every_photograph(tmp_path: Path) -> None:
    """The colours of a pixel are its row, its column and its photograph."""
    sizes = [(17, 20), (19, 16)]
    for index, (height, width) in enumerate(sizes):
        y, x = np.mgrid[0:height, 0:width]
        write_image(tmp_path / f"{index}.png", np.stack([y, x, index + 0 * y], -1).astype(np.uint8))
    places = set()
    for item in (crops(tmp_path, crop=16, length=600)[index] for index in range(600)):
        hr = to_uint8(item["hr"])
        places.add((int(hr[0, 0, 2]), int(hr[..., 0].min()), int(hr[..., 1].min()), bool(hr[0, 0, 1] > hr[0, -1, 1])))
    assert places == {
        (index, top, left, flip)
        for index, (height, width) in enumerate(sizes)
        for top in range(height - 15)
        for left in range(width - 15)
        for flip in (False, True)
    }


def test_fixed_crops_begin_at_the_quarters(tmp_path: Path) -> None:
    y, x = np.mgrid[0:40, 0:62]
    write_image(tmp_path / "places.png", np.stack([y, x, 0 * y], -1).astype(np.uint8))
    fixed = FixedCrops(tmp_path, scale=4, crop=32)
    places = [tuple(to_uint8(item["hr"])[0, 0, :2].tolist()) for item in (fixed[index] for index in range(len(fixed)))]
    assert places == [(2, 7), (2, 22), (6, 7), (6, 22)]
