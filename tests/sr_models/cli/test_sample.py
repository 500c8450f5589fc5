"""``sr-models sample``: images of every kind and size, the same ones for the same seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import sr_models
from sr_models.checkpoints.files import load_model, save_model
from sr_models.cli import main
from sr_models.io.images import read_image, write_image

TINY = "{steps: 1, hidden_channels: 4, features: 4, growth: 2, blocks: 2, stacked_blocks: [0, 1]}"


def test_sample(run: Path, folder: Path, tmp_path: Path) -> None:
    arguments = ["sample", "--checkpoint", str(run / "model.safetensors"), "--images", str(folder), "--n", "2"]
    assert main([*arguments, "--output", str(tmp_path / "one")]) == 0
    assert main([*arguments, "--output", str(tmp_path / "two")]) == 0
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == [f"{stem}_sample{index:03d}.png" for stem in "ab" for index in range(2)]
    for name in names:
        first = read_image(tmp_path / "one" / name)
        assert first.shape == (128, 160, 3)
        assert np.array_equal(first, read_image(tmp_path / "two" / name))


def test_grey_images_and_models_in_double_precision(run: Path, tmp_path: Path) -> None:
    (tmp_path / "grey").mkdir()
    picture = np.random.default_rng(0).integers(0, 256, (6, 8), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "grey" / "a.png")
    save_model(load_model(run / "model.safetensors").double(), tmp_path / "double.safetensors")
    for checkpoint in (run / "model.safetensors", tmp_path / "double.safetensors"):
        out = tmp_path / checkpoint.stem
        arguments = ["sample", "--checkpoint", str(checkpoint), "--images", str(tmp_path / "grey"), "--n", "1"]
        assert main([*arguments, "--output", str(out)]) == 0
        assert read_image(out / "a_sample000.png").shape == (24, 32, 3)
    first, second = (read_image(tmp_path / name / "a_sample000.png").astype(int) for name in ("model", "double"))
    assert np.abs(first - second).max() <= 1


@pytest.mark.parametrize("size", [(37, 53), (1, 1), (1, 6)])
def test_any_size(tmp_path: Path, size: tuple[int, int]) -> None:
    save_model(sr_models.create("srflow", **yaml.safe_load(TINY)), tmp_path / "model.safetensors")
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    write_image(tmp_path / "a.png", picture)
    arguments = ["--checkpoint", str(tmp_path / "model.safetensors"), "--images", str(tmp_path), "--n", "1"]
    assert main(["sample", *arguments, "--output", str(tmp_path / "out")]) == 0
    assert read_image(tmp_path / "out" / "a_sample000.png").shape == (4 * size[0], 4 * size[1], 3)
