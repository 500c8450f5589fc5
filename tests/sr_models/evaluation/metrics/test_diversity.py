"""The diversity score against the reference fixtures, and its properties."""

import itertools
import json
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sr_models.evaluation.metrics import (
    diversity_score,
    lr_psnr,
    mse_distance,
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


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_diversity_is_computed_in_float64_whatever_the_distance_returns(dtype):
    hr, *samples = (random_images(seed, 9, 8) for seed in range(4))

    def distance(sr, hr):
        return mse_distance(sr, hr).astype(dtype)

    maps = [distance(sample, hr).astype(np.float64) for sample in samples]
    result = diversity_score(samples, hr, distance)
    assert result.global_best == min(map_.mean() for map_ in maps)
    assert result.mean_distance == np.mean([map_.mean() for map_ in maps])


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
