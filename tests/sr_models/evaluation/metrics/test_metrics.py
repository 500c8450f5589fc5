"""Fidelity and diversity against the reference fixtures, and their properties."""

import itertools
import json
import math
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sr_models.evaluation.metrics import (
    diversity_score,
    lr_psnr,
    mse_distance,
    psnr,
    ssim,
)
from sr_models.io.images import crop_to_multiple

FOLDER = Path(__file__).parents[3] / "data" / "golden"
GOLDEN = np.load(FOLDER / "metrics.npz")
EXPECTED = json.loads((FOLDER / "metrics.json").read_text())
DIVERSITY_CASES = list(EXPECTED["diversity"])

# The reference computed the maps and their means in float32; the scores are differences of these in percent.
MEAN_RTOL = 3e-6
SCORE_ATOL = 3e-4

seeds = st.integers(0, 2**32 - 1)


def random_images(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


# Fidelity


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


# Diversity


@pytest.mark.parametrize("case", DIVERSITY_CASES)
def test_diversity_matches_reference(case, request):
    name, scale, count, distance_name = case.split("/")
    distance = mse_distance if distance_name == "mse" else request.getfixturevalue("random_lpips")
    hr = crop_to_multiple(GOLDEN[f"div/{name}/gt"], 8)
    samples = [sample[: hr.shape[0], : hr.shape[1]] for sample in GOLDEN[f"div/{name}/srs"][: int(count[1:])]]
    expected = EXPECTED["diversity"][case]

    result = diversity_score(samples, hr, distance)
    assert result.mean_distance == pytest.approx(expected["LPIPS_mean"], rel=MEAN_RTOL)
    assert result.score == pytest.approx(expected["score"], abs=SCORE_ATOL)
    ratios = [lr_psnr(sample, hr, int(scale[1:])) for sample in samples]
    assert min(ratios) == pytest.approx(expected["LRPSNR_worst"], abs=1e-10)
    assert np.mean(ratios) == pytest.approx(expected["LRPSNR_mean"], abs=1e-10)


@given(seeds, st.permutations(range(4)))
def test_diversity_ignores_the_order_of_samples(seed, order):
    hr, *samples = random_images(seed, 5, 9, 8)
    result = diversity_score(samples, hr, mse_distance)
    shuffled = diversity_score([samples[index] for index in order], hr, mse_distance)
    assert (shuffled.score, shuffled.global_best, shuffled.local_best) == (
        result.score,
        result.global_best,
        result.local_best,
    )
    assert shuffled.mean_distance == pytest.approx(result.mean_distance, rel=1e-12)


@given(seeds, st.integers(1, 4))
def test_diversity_of_equal_samples_is_zero(seed, count):
    hr, sample = random_images(seed, 2, 9, 8)
    result = diversity_score([sample] * count, hr, mse_distance)
    assert result.score == 0
    assert result.global_best == result.local_best == pytest.approx(float(mse_distance(sample, hr).mean()), rel=1e-12)


@given(seeds)
def test_diversity_bounds_and_growth(seed):
    hr, *samples = random_images(seed, 6, 9, 8)
    results = [diversity_score(samples[:count], hr, mse_distance) for count in range(1, 6)]
    for fewer, more in itertools.pairwise(results):
        assert more.local_best <= fewer.local_best
        assert more.global_best <= fewer.global_best
    for result in results:
        assert 0 < result.local_best <= result.global_best <= result.mean_distance * (1 + 1e-12)
        assert result.score == pytest.approx(100 * (1 - result.local_best / result.global_best), abs=1e-10)


def test_diversity_by_hand():
    maps = {0: [[1.0, 0.0]], 1: [[0.0, 3.0]]}
    hr = np.zeros((1, 2, 3), np.uint8)
    result = diversity_score([hr, hr + np.uint8(1)], hr, lambda sr, _: np.array(maps[int(sr[0, 0, 0])]))
    assert (result.score, result.mean_distance, result.global_best, result.local_best) == (100, 1, 0.5, 0)


@given(seeds)
def test_diversity_with_the_truth_among_the_samples_is_zero(seed):
    hr, other = random_images(seed, 2, 9, 8)
    result = diversity_score([other, hr], hr, mse_distance)
    assert (result.score, result.global_best, result.local_best) == (0, 0, 0)
    assert result.mean_distance > 0


def test_diversity_result_is_frozen():
    hr = random_images(0, 9, 8)
    with pytest.raises(FrozenInstanceError):
        diversity_score([hr], hr, mse_distance).score = 1


def test_diversity_errors():
    hr = random_images(0, 9, 8)
    with pytest.raises(ValueError, match="samples must hold at least one image, got none"):
        diversity_score([], hr, mse_distance)
    with pytest.raises(TypeError, match="hr must be a uint8 numpy array, got dtype float64"):
        diversity_score([hr], hr / 255, mse_distance)
    with pytest.raises(ValueError, match=r"sr and hr must have the same shape, got \(9, 7, 3\) and \(9, 8, 3\)"):
        diversity_score([hr, hr[:, 1:]], hr, mse_distance)
    with pytest.raises(ValueError, match=r"distance must return a map of shape \(9, 8\), got \(\)"):
        diversity_score([hr], hr, lambda sr, hr: np.float64(1))
