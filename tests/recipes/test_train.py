"""Crops on a device, the schedule, and a training of seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from recipes.clock import Schedule
from recipes.crops import DeviceCrops, read_photographs
from recipes.train import train
from sr_models.checkpoints.files import load_model
from sr_models.io.images import write_image
from sr_models.io.resize import imresize


def photograph(height: int, width: int, blue: int) -> np.ndarray:
    """Pixels that tell their row, column and image."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, np.full_like(rows, blue)], 2).astype(np.uint8)


def test_crops_are_squares_of_the_photographs_in_all_eight_positions() -> None:
    images = [photograph(64, 100, 10), photograph(40, 48, 20)]
    torch.manual_seed(0)
    hr, lr = DeviceCrops(images, crop=32, scale=4, device=torch.device("cpu"))(200)
    assert hr.shape == (200, 3, 32, 32)
    assert lr.shape == (200, 3, 8, 8)
    seen: dict[int, set[int]] = {10: set(), 20: set()}
    for high, low in zip((255 * hr).round().to(torch.uint8), (255 * lr).round().to(torch.uint8), strict=True):
        image = {10: images[0], 20: images[1]}[int(high[2, 0, 0])]
        y, x = int(high[0].min()), int(high[1].min())
        assert y % 4 == x % 4 == 0
        expected = torch.from_numpy(image[y : y + 32, x : x + 32]).permute(2, 0, 1)
        small = torch.from_numpy(imresize(image, 1 / 4)[y // 4 : y // 4 + 8, x // 4 : x // 4 + 8]).permute(2, 0, 1)
        turned = {
            number: (torch.rot90(part, number % 4, (1, 2)).flip(2) if number > 3 else torch.rot90(part, number, (1, 2)))
            for number, part in enumerate([expected] * 8)
        }
        (position,) = [number for number, candidate in turned.items() if torch.equal(candidate, high)]
        again = torch.rot90(small, position % 4, (1, 2))
        assert torch.equal(again.flip(2) if position > 3 else again, low)
        seen[int(high[2, 0, 0])].add(position)
    assert seen == {10: set(range(8)), 20: set(range(8))}


def test_photographs_that_are_large_enough_are_there_twice(tmp_path: Path) -> None:
    large, small = photograph(66, 80, 1), photograph(63, 50, 2)
    write_image(tmp_path / "a.png", large)
    write_image(tmp_path / "b.png", small)
    found = read_photographs(tmp_path, reduced_above=32)
    assert [image.shape[:2] for image in found] == [(64, 80), (60, 48), (32, 40)]
    np.testing.assert_array_equal(found[2], imresize(large, 0.5)[:32])


def test_the_rate_rises_by_steps_and_falls_by_the_clock() -> None:
    rate = Schedule(2.0, 0.1, 4, 10.0)
    assert [rate(step, 0.0) for step in range(5)] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rate(100, 5.0) == pytest.approx(2.0 * (0.1 + 0.9 * 0.5))
    assert rate(100, 10.0) == rate(100, 11.0) == pytest.approx(0.2)


def test_a_training_of_seconds(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "photographs").mkdir()
    write_image(tmp_path / "photographs" / "a.png", imresize(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), 10))
    sizes = {"steps": 1, "hidden_channels": 4, "features": 4, "growth": 2, "blocks": 1}
    file = train(
        tmp_path / "photographs",
        tmp_path / "run",
        minutes=0.03,
        batch=2,
        crop=32,
        lr=1e-3,
        device=torch.device("cpu"),
        overrides=sizes,
    )
    model = load_model(file)
    assert model.config.base == "image"
    lr = torch.rand(1, 3, 8, 8)
    assert (model.image(lr) - model.base_image(lr, model.level_contexts(lr))).abs().max() < 1e-5  # type: ignore[operator]
    assert model.encoder.last_conv.weight.abs().max() > 0
    assert all(
        bool(layer.actnorm.initialized) for level in model.levels for layer in level if hasattr(layer, "actnorm")
    )
    assert model.sample(lr).isfinite().all()
