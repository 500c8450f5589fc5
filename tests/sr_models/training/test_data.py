"""Training crops: what they are, and that they depend on seed and index alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sr_models.io.images import to_uint8, write_image
from sr_models.io.resize import imresize
from sr_models.training.data import FixedCrops, RandomCrops, StepSampler


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for index, shape in enumerate([(40, 50), (64, 32)]):
        write_image(path / f"{index}.png", rng.integers(0, 256, (*shape, 3), dtype=np.uint8))
    return path


def crops(folder: Path, **changes: int) -> RandomCrops:
    return RandomCrops(folder, **{"scale": 4, "crop": 32, "length": 50, "seed": 1, **changes})


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
    monkeypatch.setattr("sr_models.training.data._CACHE_BYTES", 0)
    data = crops(folder)
    assert torch.equal(data[7]["hr"], expected)
    assert not data._cache


def test_what_fits_is_kept_in_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sr_models.training.data._CACHE_BYTES", 3 * (40 * 50 + 64 * 32))
    data = crops(folder)
    items = [data[index] for index in range(20)]
    assert sorted(data._cache) == [0, 1]
    monkeypatch.setattr("sr_models.training.data.read_image", None)  # none is read again
    assert all(torch.equal(data[index]["hr"], item["hr"]) for index, item in enumerate(items))


def test_sampler_begins_at_the_present_step() -> None:
    step = 0
    sampler = StepSampler(2, 4, lambda: step)
    everything = list(sampler)
    assert everything == [[0, 1], [2, 3], [4, 5], [6, 7]]
    step = 3
    assert list(sampler) == everything[3:]
    assert len(sampler) == 4


class TestErrors:
    def test_small_image(self, folder: Path) -> None:
        with pytest.raises(ValueError, match=r"image .*0.png must be at least 64 x 64 pixels for crops, got 50 x 40"):
            crops(folder, crop=64)
        with pytest.raises(ValueError, match=r"must be at least 64 x 64"):
            FixedCrops(folder, scale=4, crop=64)

    @pytest.mark.parametrize("crop", [0, 2, 30])
    def test_crop(self, folder: Path, crop: int) -> None:
        with pytest.raises(ValueError, match=f"crop must be a positive multiple of the scale 4, got {crop}"):
            crops(folder, crop=crop)

    def test_unreadable_image(self, tmp_path: Path) -> None:
        (tmp_path / "broken.png").write_bytes(b"not an image")
        with pytest.raises(ValueError, match=r"cannot read image .*broken.png"):
            crops(tmp_path)

    def test_empty_and_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="holds no image"):
            crops(tmp_path)
        with pytest.raises(FileNotFoundError, match="does not exist"):
            crops(tmp_path / "nowhere")
