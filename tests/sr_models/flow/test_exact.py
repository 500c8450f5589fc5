"""8-bit images that reduce to an 8-bit low-resolution image in every value."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sr_models.flow import repair as repair_module
from sr_models.flow.exact import exact, levels_of
from sr_models.flow.repair import repair
from sr_models.io.images import to_uint8
from sr_models.io.resize import imresize

sides, scales, seeds = st.integers(1, 12), st.sampled_from([2, 3, 4, 8]), st.integers(0, 2**31)


def to_image(pixels: np.ndarray) -> torch.Tensor:
    """(H, W, 3) uint8 to (3, H, W) in [0, 1]."""
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy()).float() / 255


def differing(image: torch.Tensor, lr: np.ndarray, scale: int) -> int:
    """Count the values that differ once the image is saved and reduced."""
    return int((imresize(to_uint8(image), 1 / scale) != lr).sum())


@given(sides, sides, scales, seeds, st.sampled_from([0, 20, 400]))
@settings(max_examples=40, deadline=None)
def test_every_value_of_the_reduced_image(height: int, width: int, scale: int, seed: int, contrast: int) -> None:
    """Whatever image one begins with: another one, noise, black; 400 makes two thirds of the truth black or white."""
    random = np.random.default_rng(seed)
    truth = np.clip(random.standard_normal((scale * height, scale * width, 3)) * contrast + 128, 0, 255)
    lr = imresize(truth.round().astype(np.uint8), 1 / scale)
    for start in (torch.rand(3, *truth.shape[:2]), torch.zeros(3, *truth.shape[:2])):
        found = exact(start, to_image(lr))
        assert found.differing == differing(found.image, lr, scale) == 0
        torch.testing.assert_close((found.image * 255).round() / 255, found.image, rtol=0, atol=0)


def drawn(kind: str, size: int) -> np.ndarray:
    """Pictures (size, size, 3) of which at least 40 percent is black or white."""
    random = np.random.default_rng(0)
    picture = np.full((size, size, 3), 255.0)
    if kind == "discs":
        rows, columns = np.mgrid[:size, :size]
        for _ in range(size // 4):
            row, column, radius = random.integers(0, size), random.integers(0, size), random.integers(3, size // 5)
            picture[(rows - row) ** 2 + (columns - column) ** 2 < radius**2] = random.choice([0.0, 255.0, 90.0], 3)
    elif kind == "boxes":
        for _ in range(size):
            row, column, high, wide = (*random.integers(0, size, 2), *random.integers(2, 20, 2))
            picture[row : row + high, column : column + wide] = random.choice([0.0, 0.0, 128.0, 255.0])
    else:
        picture = 128 + 300 * imresize(random.standard_normal((size // 8, size // 8, 3)), size=(size, size))
    picture = np.clip(picture, 0, 255).round().astype(np.uint8)
    assert ((picture == 0) | (picture == 255)).mean() > 0.4
    return picture


@pytest.mark.parametrize("scale", [4, 8])
@pytest.mark.parametrize("kind", ["discs", "boxes", "clouds"])
def test_saturated_pictures(kind: str, scale: int) -> None:
    lr = imresize(drawn(kind, 128), 1 / scale)
    bicubic = imresize(lr, scale).astype(np.float32)
    noisy = np.clip(bicubic + np.random.default_rng(1).normal(0, 8, bicubic.shape), 0, 255).astype(np.uint8)
    found = exact(to_image(noisy), to_image(lr))
    assert found.differing == differing(found.image, lr, scale) == 0


@pytest.mark.parametrize(("kind", "most"), [("discs", 30), ("boxes", 60), ("clouds", 0)])
def test_saturated_pictures_at_scale_2(kind: str, most: int) -> None:
    """Four pixels a value are too few for some edges between black and white; those values are counted."""
    lr = imresize(drawn(kind, 128), 1 / 2)
    found = exact(to_image(imresize(lr, 2)), to_image(lr))
    assert found.differing == differing(found.image, lr, 2) <= most


def test_a_sample_changes_by_no_more_than_it_must() -> None:
    """The truth hardly changes; noise of two grey levels is not made worse."""
    random = np.random.default_rng(0)
    truth = imresize(random.integers(0, 256, (16, 16, 3), np.uint8), size=(64, 64))
    lr = imresize(truth, 1 / 4)
    found = exact(to_image(truth), to_image(lr))
    torch.testing.assert_close(found.image, to_image(truth), rtol=0, atol=3 / 255)
    noisy = (to_image(truth) + torch.randn(3, 64, 64) * 2 / 255).clamp(0, 1)
    found = exact(noisy, to_image(lr))
    assert (found.image - to_image(truth)).square().mean() < (noisy - to_image(truth)).square().mean() + 0.5 / 255**2


def test_a_place_that_is_no_reduction_of_any_image() -> None:
    """A white pixel on black would be surrounded by grey. What differs is near it, and is counted."""
    random = np.random.default_rng(0)
    lr = imresize(imresize(random.integers(90, 160, (12, 12, 3), np.uint8), size=(96, 96)), 1 / 4)
    lr[8:17, 8:17] = 0
    lr[12, 12] = 255
    found = exact(torch.rand(3, 96, 96), to_image(lr))
    wrong = imresize(to_uint8(found.image), 1 / 4) != lr
    assert 0 < found.differing == wrong.sum()
    assert not wrong[:4].any()
    assert not wrong[21:].any()
    assert not wrong[:, :4].any()
    assert not wrong[:, 21:].any()


def test_effort_is_limited_where_there_is_no_solution(monkeypatch: pytest.MonkeyPatch) -> None:
    places = []
    step = repair_module._State.step

    def counted(self: repair_module._State, chosen: np.ndarray, random: np.random.Generator) -> None:
        places.extend(chosen)
        step(self, chosen, random)

    monkeypatch.setattr(repair_module._State, "step", counted)
    lr = np.random.default_rng(0).integers(0, 2, (48, 48, 3), np.uint8) * 255
    found = exact(torch.rand(3, 192, 192), to_image(lr))
    assert found.differing > 4000
    assert len(places) <= 700


@pytest.mark.parametrize("scale", [4, 8])
def test_repair_alone(scale: int) -> None:
    """It makes an image right of which single pixels were changed, and says no more than it does."""
    random = np.random.default_rng(0)
    truth = imresize(random.integers(0, 256, (20, 20, 3), np.uint8), size=(20 * scale, 20 * scale))
    lr = imresize(truth, 1 / scale).transpose(2, 0, 1)
    pixels = truth.transpose(2, 0, 1).copy()
    rows, columns = random.integers(0, 20 * scale, (2, 40))
    pixels[:, rows, columns] = np.clip(pixels[:, rows, columns].astype(int) + 12, 0, 255)

    def wrong(pixels: np.ndarray) -> int:
        return int((imresize(pixels.transpose(1, 2, 0).copy(), 1 / scale).transpose(2, 0, 1) != lr).sum())

    assert wrong(pixels) > 10
    found = repair(pixels, lr, scale)
    assert found.dtype == np.uint8
    assert wrong(found) == 0
    assert np.array_equal(found, repair(pixels, lr, scale))
    assert np.array_equal(repair(found, lr, scale), found)


def test_low_resolution_images_that_are_none_of_8_bits_are_refused() -> None:
    for lr in (torch.full((3, 2, 2), 0.5), torch.full((3, 2, 2), 256 / 255), torch.full((3, 2, 2), -1 / 255)):
        with pytest.raises(ValueError, match="lr must have 8-bit values, multiples of 1/255"):
            exact(torch.rand(3, 8, 8), lr)
    levels = torch.arange(256.0)
    assert torch.equal(levels_of(levels / 255), levels)
    assert torch.equal(levels_of(levels.double() / 255), levels.double())
