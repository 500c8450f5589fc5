"""Projection onto the images that reduce to a low-resolution image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sr_models.flow import projection
from sr_models.flow.projection import approach, exact_dtype, project, reduction_for
from sr_models.io.resize import imresize

lengths, scales, seeds = st.integers(1, 40), st.sampled_from([2, 3, 4, 8]), st.integers(0, 2**31)


def images_and_lr(height: int, width: int, scale: int, seed: int, dtype: torch.dtype = torch.float64) -> list:
    random = np.random.default_rng(seed)
    return [
        torch.from_numpy(random.random((2, 3, *size))).to(dtype)
        for size in ((scale * height, scale * width), (height, width))
    ]


def reduced(image: torch.Tensor, scale: int) -> np.ndarray:
    """Reduce (3, H, W) by the reference, in float64."""
    return imresize(image.double().permute(1, 2, 0).numpy(), 1 / scale).transpose(2, 0, 1)


@given(lengths, lengths, scales, seeds)
@settings(max_examples=25, deadline=None)
def test_a_projected_image_reduces_to_the_low_resolution_image_and_is_left_alone(
    height: int, width: int, scale: int, seed: int
) -> None:
    images, lr = images_and_lr(height, width, scale, seed)
    found = project(images, lr)
    for image, low in zip(found, lr, strict=True):
        np.testing.assert_allclose(reduced(image, scale), low, rtol=0, atol=1e-10)
    torch.testing.assert_close(project(found, lr), found, rtol=0, atol=1e-10)
    single = project(images.float(), lr.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single, found.float(), rtol=0, atol=1e-6)


@given(lengths, lengths, scales, seeds)
@settings(max_examples=10, deadline=None)
def test_no_image_that_reduces_to_it_is_nearer(height: int, width: int, scale: int, seed: int) -> None:
    """The change is orthogonal to every image that reduces to nothing."""
    images, lr = images_and_lr(height, width, scale, seed)
    nothing = project(torch.from_numpy(np.random.default_rng(seed + 1).standard_normal(images.shape)), 0 * lr)
    change = project(images, lr) - images
    assert abs((change * nothing).sum()) <= 1e-9 * change.norm() * (1 + nothing.norm())


@pytest.mark.parametrize("length", [31, 32, 33, 64, 100])
def test_lengths_around_those_of_the_blocks(length: int) -> None:
    images, lr = images_and_lr(length, 3, 4, 0)
    for image, low in zip(project(images, lr), lr, strict=True):
        np.testing.assert_allclose(reduced(image, 4), low, rtol=0, atol=1e-10)


def test_weights_that_are_left_out_are_negligible(monkeypatch: pytest.MonkeyPatch) -> None:
    images, lr = images_and_lr(90, 2, 4, 0)
    found = project(images, lr)
    projection._reduction.cache_clear()
    monkeypatch.setattr(projection, "_NEGLIGIBLE", 0.0)
    torch.testing.assert_close(project(images, lr), found, rtol=0, atol=1e-10)
    projection._reduction.cache_clear()


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_gradients(scale: int) -> None:
    images, lr = (part[:1, :1].requires_grad_() for part in images_and_lr(2, 3, scale, 0))
    assert torch.autograd.gradcheck(project, (images, lr))


def test_leading_dimensions_are_expanded() -> None:
    images = torch.rand(2, 5, 3, 16, 24)
    lr = torch.rand(2, 1, 3, 4, 6)
    found = project(images, lr)
    for image in range(2):
        for sample in range(5):
            alone = project(images[image, sample], lr[image, 0])
            torch.testing.assert_close(found[image, sample], alone, rtol=0, atol=1e-6)


def test_sizes_that_do_not_fit_are_refused() -> None:
    for size in ((15, 24), (16, 12), (3, 4), (16, 25)):
        message = f"images must have a multiple of lr's size 4 x 6, got {size[0]} x {size[1]}"
        with pytest.raises(ValueError, match=message):
            project(torch.rand(3, *size), torch.rand(3, 4, 6))


def test_the_reduction_is_that_of_the_reference() -> None:
    images, lr = images_and_lr(37, 5, 4, 0)
    a = reduction_for(images, lr, exact_dtype(images))
    np.testing.assert_allclose(a.reduce(images)[0], reduced(images[0], 4), rtol=0, atol=1e-12)
    # the smallest image that reduces to it
    torch.testing.assert_close(a.lift(lr), project(torch.zeros_like(images), lr), rtol=0, atol=1e-12)


def saturated(seed: int, size: int, scale: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A truth of which many pixels are black or white, as 8-bit low resolution, and an image far from it."""
    random = np.random.default_rng(seed)
    coarse = random.standard_normal((size // 2, size // 2, 3))
    truth = np.clip(imresize(coarse, size=(size * scale, size * scale)) * 250 + 128, 0, 255).round().astype(np.uint8)
    assert ((truth == 0) | (truth == 255)).mean() > 0.4
    lr = torch.from_numpy(imresize(truth, 1 / scale).transpose(2, 0, 1).copy()) / 255
    image = torch.from_numpy(random.random((3, size * scale, size * scale))).float()
    return image, lr


@pytest.mark.parametrize("scale", [4, 8])
def test_images_in_the_range_of_values_reduce_to_it_too(scale: int) -> None:
    image, lr = saturated(0, 16, scale)
    found = approach(image, lr, tolerance=1e-3, passes=300)
    assert found.min() >= 0
    assert found.max() <= 1
    down = reduced(found, scale)
    # clipped after each axis, as images of 8 bits are
    rows = np.clip(imresize(found.double().permute(1, 2, 0).numpy(), size=(16, 16 * scale)), 0, 1)
    clipped = np.clip(imresize(rows, size=(16, 16)), 0, 1).transpose(2, 0, 1)
    assert np.abs(clipped - lr.numpy()).max() <= 2e-3
    assert np.abs(down - lr.numpy()).max() > 2e-3


def test_an_image_that_agrees_already_stays() -> None:
    image = torch.rand(3, 32, 24) * 0.6 + 0.2
    lr = torch.from_numpy(reduced(image, 4)).float()
    torch.testing.assert_close(approach(image, lr, tolerance=1e-5, passes=50), image, rtol=0, atol=1e-6)


def test_where_no_image_reduces_to_it_projections_end(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    lift = projection.Reduction.lift

    def counted(self: projection.Reduction, lr: torch.Tensor) -> torch.Tensor:
        calls.append(lr)
        return lift(self, lr)

    monkeypatch.setattr(projection.Reduction, "lift", counted)
    lr = torch.from_numpy(np.random.default_rng(0).integers(0, 2, (3, 12, 12))).float()
    found = approach(torch.rand(3, 48, 48), lr, tolerance=1e-3, passes=10_000)
    assert found.isfinite().all()
    assert len(calls) <= 100


def test_products_in_less_than_float32_are_not_used() -> None:
    """A user may allow bfloat16 for products of float32; projections then are in float64."""
    image, lr = torch.rand(3, 8, 8), torch.rand(3, 2, 2)
    assert projection._loop_dtype(image) == torch.float32
    assert projection._loop_dtype(image.double()) == torch.float64
    torch.set_float32_matmul_precision("medium")
    try:
        assert projection._loop_dtype(image) == torch.float64
        assert approach(image, lr, tolerance=1e-4, passes=10).dtype == torch.float32
    finally:
        torch.set_float32_matmul_precision("highest")
