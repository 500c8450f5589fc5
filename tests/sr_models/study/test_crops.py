"""Crops are pixels of the methods' images at the same places, in files that tell nothing of the method."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sr_models import create
from sr_models.io.images import read_image, to_tensor, to_uint8, write_image
from sr_models.io.resize import imresize
from sr_models.study.crops import cut_crops, find_source
from sr_models.study.settings import CROPS, SIDE, crop_positions

METHODS = ("winner-of-all", "gan-of-doom")


def test_crops_are_cut_at_the_same_places(folders: Path) -> None:
    source = find_source(folders / "truth", {name: folders / name for name in METHODS}, seed=3)
    counted = []
    crops = list(cut_crops(source, done=lambda: counted.append(1)))
    assert len(crops) == 4 * 3 * CROPS
    assert len(counted) == 4
    assert len({len(png) for *_, png in crops}) == 1
    for image, method, crop, png in crops:
        row, column = crop_positions(96, 200, image, 3)[crop]
        folder = "truth" if method is None else METHODS[method]
        whole = read_image(folders / folder / f"0{image}{'' if method is None else '_sample000'}.png")
        shown = np.asarray(Image.open(io.BytesIO(png)))
        np.testing.assert_array_equal(shown, whole[row : row + SIDE, column : column + SIDE])


@pytest.mark.parametrize("naming", ["0{}.png", "0{}_sample000.png", "{:06d}_sample00000.png", "{:06d}.png"])
def test_namings(folders: Path, tmp_path: Path, naming: str) -> None:
    for index in range(4):
        shutil.copy(folders / METHODS[1] / f"0{index}_sample000.png", tmp_path / naming.format(index))
    source = find_source(folders / "truth", {"one": tmp_path, "two": folders / METHODS[0]})
    assert [path.name for path in source.files["one"]] == [naming.format(index) for index in range(4)]


def test_cropped_images_are_used_where_all_have_pixels(tmp_path: Path) -> None:
    whole = np.random.default_rng(0).integers(0, 256, (103, 95, 3), dtype=np.uint8)
    for folder, image in {"truth": whole, "one": whole, "two": whole[:96, :88]}.items():
        (tmp_path / folder).mkdir()
        write_image(tmp_path / folder / "a.png", image)
    source = find_source(tmp_path / "truth", {"one": tmp_path / "one", "two": tmp_path / "two"})
    by_method = {(method, crop): png for _, method, crop, png in cut_crops(source)}
    assert all(by_method[None, crop] == by_method[0, crop] == by_method[1, crop] for crop in range(CROPS))


def test_what_does_not_fit_is_named(folders: Path, tmp_path: Path) -> None:
    truth, good = folders / "truth", folders / METHODS[0]
    with pytest.raises(ValueError, match="baselines must be a model with an encoder, got hcflow, which has none"):
        find_source(truth, {"one": good}, baselines=create("hcflow", features=8, growth=4, steps=1))
    with pytest.raises(ValueError, match="compares 2 to 9 methods, got 1; name each with --method"):
        find_source(truth, {"one": good})
    with pytest.raises(ValueError, match="compares 2 to 9 methods, got 10"):
        find_source(truth, {str(number): good for number in range(10)})
    for index in range(3):
        shutil.copy(good / f"0{index}_sample000.png", tmp_path / f"0{index}.png")
    with pytest.raises(ValueError, match=r"method two, image 03.png: no sample in"):
        find_source(truth, {"one": good, "two": tmp_path})
    write_image(tmp_path / "03.png", np.zeros((96, 190, 3), np.uint8))
    with pytest.raises(ValueError, match=r"method two: .*03.png is 190 x 96 pixels, and .*03.png 200 x 96: they must"):
        find_source(truth, {"one": good, "two": tmp_path})
    write_image(tmp_path / "03.png", np.zeros((40, 90, 3), np.uint8))
    with pytest.raises(ValueError, match=r"must be at least 80 x 80 pixels, got 40 x 90"):
        find_source(tmp_path, {"one": good, "two": good})


def test_baselines_are_two_more_methods(folders: Path) -> None:
    model = create(
        "srflow-da", steps=1, hidden_channels=4, features=4, growth=2, blocks=2, stacked_blocks=(0, 1)
    ).eval()
    methods = {"gan-of-doom": folders / "gan-of-doom"}
    source = find_source(folders / "truth", methods, baselines=model)
    assert source.settings.methods == ("gan-of-doom", "bicubic", "encoder's image")
    reduced = imresize(read_image(folders / "truth" / "02.png"), 0.25)
    with torch.no_grad():
        encoded = to_uint8(model.image(to_tensor(reduced)[None])[0])
    expected = {1: imresize(reduced, 4), 2: encoded}
    places = crop_positions(96, 200, 2, 0)
    found = {(method, crop): png for image, method, crop, png in cut_crops(source) if image == 2 and method in expected}
    for (method, crop), png in found.items():
        row, column = places[crop]
        shown = np.asarray(Image.open(io.BytesIO(png)))
        np.testing.assert_array_equal(shown, expected[method][row : row + SIDE, column : column + SIDE])
    assert len(found) == 2 * CROPS
    next(model.parameters()).data.add_(1)
    again = find_source(folders / "truth", methods, baselines=model)
    assert source.settings.changes(again.settings) == ["files of encoder's image are others"]
    with pytest.raises(ValueError, match="method 'bicubic' is one of the baselines; name the folder otherwise"):
        find_source(folders / "truth", {"bicubic": folders / "truth"}, baselines=model)
