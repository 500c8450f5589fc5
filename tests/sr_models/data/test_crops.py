"""Training crops: what they are, and that they depend on seed and index alone."""

from __future__ import annotations

import pickle
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from sr_models.data.crops import FixedCrops, RandomCrops
from sr_models.data.sampler import StepSampler
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
        with pytest.raises(ValueError, match=r"no image can be used: .*broken.png \(.*(no|not an) image"):
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


def ramp(height: int, width: int, step: int = 1) -> np.ndarray:
    """An image whose colours are the row and the column of a pixel."""
    y, x = np.mgrid[0:height, 0:width] * step
    return np.stack([y, x, 0 * y], -1).astype(np.uint8)


def test_crops_are_turned_and_flipped_in_eight_ways(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", ramp(18, 17))
    data = crops(tmp_path, crop=16, length=600, rotate=True)
    found = Counter()
    for item in (data[index] for index in range(len(data))):
        hr = to_uint8(item["hr"]).astype(int)
        top, left = hr[..., 0].min(), hr[..., 1].min()
        windows = [np.rot90(ramp(18, 17)[top : top + 16, left : left + 16], turns) for turns in range(4)]
        flipped = [window.transpose(1, 0, 2) for window in windows]
        (way,) = [way for way, window in enumerate([*windows, *flipped]) if np.array_equal(window, hr)]
        found[way] += 1
        assert np.array_equal(to_uint8(item["lr"]), imresize(to_uint8(item["hr"]), 1 / 4))
    assert set(found) == set(range(8))
    assert max(found.values()) < 2 * min(found.values())


class TestPairs:
    """Low-resolution images that are given: pixel (y, x) of them has the colours of pixel (4 y, 4 x)."""

    @pytest.fixture
    def pair(self, tmp_path: Path) -> Path:
        for index, (height, width) in enumerate([(43, 37), (24, 30)]):
            write_image(tmp_path / f"hr{index}.png", ramp(height, width))
        (tmp_path / "X4").mkdir()
        # one is reduced after its rest was cut off, one before
        write_image(tmp_path / "X4" / "hr0x4.png", ramp(10, 9, 4))
        write_image(tmp_path / "X4" / "hr1x4.png", ramp(6, 8, 4))
        write_image(tmp_path / "X4" / "other.png", ramp(6, 8, 4))
        return tmp_path

    def paired(self, pair: Path, **changes: Any) -> RandomCrops:
        return crops(pair / "hr*.png", lr_images=pair / "X4", **{"crop": 16, "length": 1000, "rotate": True, **changes})

    def test_both_show_the_same_place_in_the_same_way(self, pair: Path) -> None:
        data = self.paired(pair)
        places = set()
        for item in (data[index] for index in range(len(data))):
            hr, lr = (to_uint8(item[name]).astype(int) for name in ("hr", "lr"))
            assert hr.shape == (16, 16, 3)
            assert lr.shape == (4, 4, 3)
            # least row and column of every block of 4 x 4
            assert np.array_equal(hr.reshape(4, 4, 4, 4, 3).min((1, 3)), lr)
            places.add((Path(item["path"]).name, lr[..., 0].min(), lr[..., 1].min()))
        # every place on the low-resolution grid that both images cover
        assert places == {
            (name, 4 * top, 4 * left)
            for name, tops, lefts in (("hr0.png", 7, 6), ("hr1.png", 3, 4))
            for top in range(tops)
            for left in range(lefts)
        }

    def test_notes_and_fingerprint(self, pair: Path) -> None:
        data = self.paired(pair)
        assert data.notes[0] == f"2 images in {pair}"
        assert f"3 images in {pair / 'X4'}" in data.notes
        assert "not used: 1 low-resolution images without a high-resolution one" in data.notes
        alone = crops(pair / "hr*.png", crop=16)
        assert data.fingerprint != alone.fingerprint
        assert self.paired(pair).fingerprint == data.fingerprint
        with (pair / "X4" / "other.png").open("ab") as file:
            file.write(b"\0")
        assert self.paired(pair).fingerprint != data.fingerprint

    def test_images_without_a_partner(self, pair: Path) -> None:
        (pair / "X4" / "hr1x4.png").unlink()
        data = self.paired(pair)
        assert [path.name for path in data.listing.paths] == ["hr0.png"]
        assert any("1 without a low-resolution image: hr1.png (no hr1 or hr1x4 in" in line for line in data.notes)
        with pytest.raises(ValueError, match=r"1 image cannot be used \(strict\): .*without a low-resolution image"):
            self.paired(pair, strict=True)
        (pair / "X4" / "hr0x4.png").unlink()
        with pytest.raises(ValueError, match=r"no image can be used: .* 2 without a low-resolution image: .*hr0\.png"):
            self.paired(pair)

    def test_another_scale(self, pair: Path) -> None:
        for path in (pair / "X4").iterdir():
            path.rename(path.with_stem(path.stem.replace("x4", "x2")))
        with pytest.raises(
            ValueError, match=r"no image can be used: .*43 x 37 pixels, which is not 2 times the 10 x 9"
        ):
            self.paired(pair, scale=2)

    def test_a_pair_that_does_not_fit_any_more(self, pair: Path) -> None:
        data = self.paired(pair)
        write_image(pair / "X4" / "hr0x4.png", ramp(6, 8, 4))
        items = [data[index] for index in range(20)]
        assert {Path(item["path"]).name for item in items} == {"hr1.png"}
        failed = {line for item in items for line in item["failed"].splitlines()}
        assert failed == {
            f"{pair / 'hr0.png'}: 43 x 37 pixels, which is not 4 times the 6 x 8 of its low-resolution image"
        }

    def test_fixed_crops(self, pair: Path) -> None:
        fixed = FixedCrops(pair / "hr*.png", scale=4, crop=16, lr_images=pair / "X4")
        assert len(fixed) == 4 + 4
        for item in (fixed[index] for index in range(len(fixed))):
            hr, lr = (to_uint8(item[name]).astype(int) for name in ("hr", "lr"))
            assert np.array_equal(hr[::4, ::4], lr)

    def test_with_a_degradation(self, pair: Path) -> None:
        with pytest.raises(ValueError, match=r"degradation must be 'bicubic' .* lr_images, got 'real'"):
            self.paired(pair, degradation="real")


class TestBadFiles:
    @pytest.fixture
    def photographs(self, tmp_path: Path) -> Path:
        rng = np.random.default_rng(0)
        for index in range(4):
            write_image(tmp_path / f"{index}.png", rng.integers(0, 256, (40, 40, 3), dtype=np.uint8))
        return tmp_path

    def spoil(self, photographs: Path) -> dict[str, str]:
        """Damage three files in three ways that no listing saw; returns the reasons that are to be told."""
        content = bytearray((photographs / "0.png").read_bytes())
        content[len(content) // 2 : len(content) // 2 + 20] = bytes(20)
        (photographs / "0.png").write_bytes(content)
        (photographs / "1.png").unlink()
        write_image(photographs / "2.png", np.zeros((20, 50, 3), np.uint8))
        return {
            "0.png": r"broken|unrecognized|error|truncated",
            "1.png": "does not exist",
            "2.png": "must be at least 32 x 32 pixels, got 20 x 50",
        }

    def test_another_image_takes_the_place(self, photographs: Path) -> None:
        before = crops(photographs)
        expected = [before[index] for index in range(30)]
        assert not any(item["failed"] for item in expected)
        data = crops(photographs)
        reasons = self.spoil(photographs)
        told: dict[str, str] = {}
        for index, item in enumerate(expected):
            found, again = data[index], data[index]
            assert Path(found["path"]).name == "3.png"
            assert torch.equal(found["hr"], again["hr"])
            assert found["failed"] == again["failed"]
            assert bool(found["failed"]) == (Path(item["path"]).name != "3.png")
            if not found["failed"]:
                assert torch.equal(found["hr"], item["hr"])
            told.update(line.split(": ", 1) for line in found["failed"].splitlines())
        assert {Path(path).name for path in told} == set(reasons)
        for path, reason in told.items():
            assert re.search(reasons[Path(path).name], reason)
            assert path not in reason

    def test_fixed_crops(self, photographs: Path) -> None:
        before = FixedCrops(photographs, scale=4, crop=32)
        expected = [before[index] for index in range(16)]
        fixed = FixedCrops(photographs, scale=4, crop=32)
        self.spoil(photographs)
        for index in range(16):
            # the same quarter of the next image
            assert torch.equal(fixed[index]["hr"], expected[12 + index % 4]["hr"])
            assert len(fixed[index]["failed"].splitlines()) == max(0, 3 - index // 4)

    def test_without_any_image(self, photographs: Path) -> None:
        data, fixed = crops(photographs), FixedCrops(photographs, scale=4, crop=32)
        for path in photographs.iterdir():
            path.unlink()
        for workers in (0, 1):
            for images, message in ((data, "no image could be read in 100 tries"), (fixed, "no image can be read")):
                with pytest.raises(ValueError, match=message) as error:
                    next(iter(DataLoader(images, num_workers=workers)))
                assert re.fullmatch(
                    rf"{message}( any more)?; the last one: .*/\d.png: does not exist", str(error.value)
                )

    @pytest.mark.parametrize("strict", [False, True])
    def test_at_the_start(self, photographs: Path, strict: bool) -> None:
        (photographs / "5.png").write_bytes((photographs / "0.png").read_bytes()[:-30])
        write_image(photographs / "6.png", np.zeros((20, 50, 3), np.uint8))
        if strict:
            with pytest.raises(ValueError, match=r"2 images cannot be used \(strict\): .*5\.png .*6\.png"):
                crops(photographs, strict=True)
        else:
            data = crops(photographs)
            assert len(data.listing) == 4
            assert [line.split(":")[1] for line in data.notes[1:]] == [" 1 damaged", " 1 too small"]


@pytest.mark.parametrize("paired", [False, True])
def test_workers_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, paired: bool) -> None:
    """Also when files turn out bad, and when memory holds only some of the images."""
    rng = np.random.default_rng(0)
    (tmp_path / "lr").mkdir()
    for index in range(6):
        write_image(tmp_path / f"{index}.png", rng.integers(0, 256, (40, 44, 3), dtype=np.uint8))
        write_image(tmp_path / "lr" / f"{index}.png", rng.integers(0, 256, (10, 11, 3), dtype=np.uint8))
    monkeypatch.setattr("sr_models.data.memory.LIMIT", 5 * 40 * 44 * 3)
    lr_images = tmp_path / "lr" if paired else None
    data = {
        workers: crops(tmp_path / "*.png", lr_images=lr_images, crop=16, rotate=True, length=48)
        for workers in (0, 1, 2)
    }
    (tmp_path / "2.png").unlink()
    batches = {
        workers: list(DataLoader(images, batch_sampler=StepSampler(4, range(2, 12)), num_workers=workers))
        for workers, images in data.items()
    }
    assert len(batches[0]) == 10
    assert any(failed for batch in batches[0] for failed in batch["failed"])
    for workers in (1, 2):
        for one, other in zip(batches[0], batches[workers], strict=True):
            assert set(one) == {"hr", "lr", "path", "failed"}
            assert all(torch.equal(one[name], other[name]) for name in ("hr", "lr"))
            assert (one["path"], one["failed"]) == (other["path"], other["failed"])


def test_processes_that_do_not_share_memory(folder: Path) -> None:
    """Some systems start workers anew, with a copy of the data set."""
    data = crops(folder)
    expected = [data[index]["hr"] for index in range(4)]
    copy = pickle.loads(pickle.dumps(data))
    assert all(torch.equal(copy[index]["hr"], hr) for index, hr in enumerate(expected))
    assert copy.fingerprint == data.fingerprint


def test_memory_does_not_grow_with_the_crops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(8):
        write_image(tmp_path / f"{index}.png", np.zeros((40, 40, 3), np.uint8))
    monkeypatch.setattr("sr_models.data.memory.LIMIT", 3 * 40 * 40 * 3)
    data = crops(tmp_path)
    kept = set()
    for index in range(40):
        data[index]
        kept.add(len(data._memory._kept))
    assert kept == {1, 2, 3}
    fixed = FixedCrops(tmp_path, scale=4, crop=32)
    for index in range(len(fixed)):
        fixed[index]
    assert 0 < fixed._memory._bytes <= 3 * 40 * 40 * 3


def test_a_data_set_is_given_by_its_parent(tmp_path: Path) -> None:
    for name, shape in (
        ("train_HR/0001.png", (40, 40)),
        ("train_LR_bicubic/X4/0001x4.png", (10, 10)),
        ("valid_HR/0801.png", (32, 40)),
        ("valid_LR_bicubic/X4/0801x4.png", (8, 10)),
    ):
        path = tmp_path / f"DIV2K_{name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path, np.zeros((*shape, 3), np.uint8))
    for lr_images in (None, tmp_path):
        assert crops(tmp_path, lr_images=lr_images).listing.names == ["0001.png"]
        fixed = FixedCrops(tmp_path, scale=4, crop=32, lr_images=lr_images)
        assert [Path(item["path"]).name for item in (fixed[0], fixed[1])] == ["0801.png"] * 2


def test_a_mistake_of_a_degradation_is_no_bad_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, fixed = crops(folder), FixedCrops(folder, scale=4, crop=32)

    def wrong(hr: np.ndarray, scale: int, stream: torch.Generator) -> np.ndarray:
        raise ValueError("a mistake")

    monkeypatch.setattr("sr_models.data.crops.degrade", lambda name: wrong)
    for images in (data, fixed):
        with pytest.raises(ValueError, match=r"^a mistake$"):
            images[0]


def test_another_degradation(folder: Path) -> None:
    data = crops(folder, degradation="real")
    for index in range(5):
        item, again, bicubic = data[index], data[index], crops(folder)[index]
        assert torch.equal(item["lr"], again["lr"])
        assert torch.equal(item["hr"], bicubic["hr"])
        assert not torch.equal(item["lr"], bicubic["lr"])
    fixed = [FixedCrops(folder, scale=4, crop=32, degradation="real") for _ in range(2)]
    for index in (3, 0, 5):
        assert torch.equal(fixed[0][index]["lr"], fixed[1][index]["lr"])
    with pytest.raises(ValueError, match=r"degradation must be one of 'bicubic', 'real', got 'bicubix'"):
        crops(folder, degradation="bicubix")


@pytest.mark.parametrize("source", ["DIV2K_train_HR_sub", "DIV2K_train_HR_sub/*.png"])
def test_cut_images_belong_to_cut_low_resolution_images(tmp_path: Path, source: str) -> None:
    for name, side in (("HR_sub/0001_s001", 16), ("LR_bicubic/X4/0001_s001", 4), ("LR_bicubic/X4_sub/0001_s001", 4)):
        path = tmp_path / f"DIV2K_train_{name}.png"
        path.parent.mkdir(parents=True)
        write_image(path, np.full((side, side, 3), "X4_sub" in name, np.uint8))
    item = crops(tmp_path / source, lr_images=tmp_path / "DIV2K_train_LR_bicubic", crop=16)[0]
    assert (to_uint8(item["lr"]) == 1).all()


def test_fixed_crops_of_a_smaller_image_take_the_place(tmp_path: Path) -> None:
    write_image(tmp_path / "0.png", ramp(40, 40))
    write_image(tmp_path / "1.png", ramp(32, 32))
    fixed = FixedCrops(tmp_path, scale=4, crop=32)
    (tmp_path / "0.png").unlink()
    assert len(fixed) == 5
    for index in range(5):
        assert np.array_equal(to_uint8(fixed[index]["hr"]), ramp(32, 32))
