"""PSNR, SSIM and LR-PSNR against the reference fixtures, and their properties."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sr_models.evaluation.metrics import (
    lr_psnr,
    mse_distance,
    psnr,
    psnr_y,
    ssim,
)

FOLDER = Path(__file__).parents[3] / "data" / "golden"
GOLDEN = np.load(FOLDER / "metrics.npz")
EXPECTED = json.loads((FOLDER / "metrics.json").read_text())

seeds = st.integers(0, 2**32 - 1)


def random_images(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", list(EXPECTED["pairs"]))
def test_fidelity_matches_reference(name):
    first, second = GOLDEN[f"imresize/{name}/in"], GOLDEN[f"pair/{name}/b"]
    expected = EXPECTED["pairs"][name]
    assert psnr(first, second) == pytest.approx(expected["psnr_skimage"], abs=1e-10)
    assert ssim(first, second) == pytest.approx(expected["ssim_skimage_multichannel"], abs=1e-12)
    assert lr_psnr(first, second, 4) == pytest.approx(expected["lrpsnr_x4"], abs=1e-10)
    assert lr_psnr(first, second, 8) == pytest.approx(expected["lrpsnr_x8"], abs=1e-10)


@given(seeds)
def test_fidelity_of_identical_images(seed):
    image = random_images(seed, 17, 16)
    assert psnr(image, image) == math.inf
    assert lr_psnr(image, image, 4) == math.inf
    assert ssim(image, image) == 1


@given(seeds)
def test_fidelity_is_symmetric(seed):
    first, second = random_images(seed, 2, 17, 16)
    assert psnr(first, second) == psnr(second, first)
    assert lr_psnr(first, second, 4) == lr_psnr(second, first, 4)
    assert ssim(first, second) == pytest.approx(ssim(second, first), abs=1e-12)
    assert ssim(first, second) < 1


@given(seeds, st.integers(1, 255))
def test_psnr_of_a_constant_error(seed, error):
    image = np.random.default_rng(seed).integers(0, 256 - error, (9, 8, 3), dtype=np.uint8)
    expected = 20 * math.log10(255 / error)
    assert psnr(image, image + np.uint8(error)) == pytest.approx(expected, abs=1e-12)
    assert psnr(image + np.uint8(error), image) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("metric", [psnr, ssim, lambda sr, hr: lr_psnr(sr, hr, 4), mse_distance])
def test_metrics_check_their_images(metric):
    good = random_images(0, 32, 40)
    with pytest.raises(TypeError, match="sr must be a uint8 numpy array, got dtype float64"):
        metric(good / 255, good)
    with pytest.raises(TypeError, match="hr must be a uint8 numpy array, got Tensor"):
        metric(good, torch.from_numpy(good))
    with pytest.raises(ValueError, match=r"sr must be \(H, W, 3\) and not empty, got shape \(32, 40\)"):
        metric(good[..., 0], good)
    with pytest.raises(ValueError, match=r"same shape, got \(32, 40, 3\) and \(32, 39, 3\)"):
        metric(good, good[:, :-1])


def test_fidelity_errors():
    image = random_images(0, 6, 40)
    with pytest.raises(ValueError, match="ssim needs images of at least 7x7 pixels, got 6x40"):
        ssim(image, image)
    with pytest.raises(ValueError, match="scale must be positive, got 0"):
        lr_psnr(image, image, 0)


def test_the_smallest_image_of_ssim_is_one_window():
    image = random_images(0, 7, 7)
    assert ssim(image, image) == 1
    assert ssim(image, 255 - image) < 0


@pytest.mark.parametrize("shape", [(7, 7), (8, 23), (22, 9), (23, 40), (45, 31)])
def test_ssim_is_that_of_scikit_image_at_every_size(shape):
    """Also where blocks of rows end, and where windows are white."""
    metrics = pytest.importorskip("skimage.metrics")
    image, other = random_images(0, 2, *shape)
    near = np.clip(image.astype(int) + np.arange(image.size).reshape(image.shape) % 7 - 3, 0, 255).astype(np.uint8)
    white = np.full_like(image, 255)
    for first, second in ((image, other), (image, near), (image, white), (white - np.uint8(1), white)):
        expected = metrics.structural_similarity(first, second, win_size=7, data_range=255, channel_axis=2)
        assert ssim(first, second) == pytest.approx(expected, abs=1e-10)


@given(seeds, st.integers(0, 3))
def test_psnr_of_the_luma(seed, border):
    first, second = random_images(seed, 2, 9, 8)
    weights = np.array([0.256788, 0.504129, 0.097906])  # to six digits
    inside = np.s_[border : 9 - border, border : 8 - border]
    luma = [(image[inside].astype(float) * weights).sum(2) for image in (first, second)]
    expected = 10 * math.log10(255**2 / np.mean((luma[0] - luma[1]) ** 2))
    assert psnr_y(first, second, border) == pytest.approx(expected, abs=1e-4)
    framed = second.copy()
    framed[inside] = first[inside]
    assert psnr_y(first, framed, border) == math.inf


def test_psnr_of_a_luma_that_is_all_border():
    image = random_images(0, 8, 16)
    assert math.isnan(psnr_y(image, image, 4))
    with pytest.raises(ValueError, match="border must be at least 0, got -1"):
        psnr_y(image, image, -1)
