"""Blur, noise and JPEG: what each does, how strong it is, and that it is the same everywhere."""

from __future__ import annotations

import hashlib
import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sr_models.degradations import degrade, real
from sr_models.degradations.real import add_noise, blur, compress
from sr_models.io.resize import imresize
from sr_models.randomness import random_stream


def streams(number: int) -> list[torch.Generator]:
    return [random_stream(0, "crops", index) for index in range(number)]


def picture(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def flat(value: int, height: int = 64, width: int = 64) -> np.ndarray:
    return np.full((height, width, 3), value, dtype=np.uint8)


def test_the_stages_follow_each_other() -> None:
    hr = picture(32, 48, 3)
    for index in range(4):
        stream = random_stream(1, "crops", index)
        expected = compress(add_noise(imresize(blur(hr, 4, stream), 1 / 4), stream), stream)
        np.testing.assert_array_equal(degrade("real")(hr, 4, random_stream(1, "crops", index)), expected)


def test_streams_give_different_images() -> None:
    hr = picture(32, 32, 3)
    assert len({degrade("real")(hr, 4, stream).tobytes() for stream in streams(10)}) == 10


def test_results_before_jpeg_are_those_of_every_machine() -> None:
    """The digest was made on x86-64 with AVX-512. JPEG is left out: its library belongs to Pillow."""
    digest = hashlib.sha256()
    for stream in streams(20):
        digest.update(add_noise(imresize(blur(picture(40, 56, 3), 4, stream), 1 / 4), stream).tobytes())
    assert digest.hexdigest() == "0bc17175a9ad4e00e3ade844bdac22993667d3bc299f0b438015073da653f096"


def impulse(scale: int, stream: torch.Generator) -> np.ndarray:
    """What blur makes of one white pixel, as weights."""
    hr = np.zeros((61, 61, 3), dtype=np.uint8)
    hr[30, 30] = 255
    return blur(hr, scale, stream)[:, :, 0] / 255


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_the_blur_is_an_oblique_gaussian_of_the_stated_widths(scale: int, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = [1.5 / scale, 2.5 / scale, math.pi / 6]
    monkeypatch.setattr(real, "_uniform", lambda low, high, stream: drawn.pop(0))
    weights = impulse(scale, torch.Generator())
    y, x = np.mgrid[-30:31, -30:31]
    assert weights.sum() == pytest.approx(1, abs=0.2)
    along = (weights * (math.cos(math.pi / 6) * x + math.sin(math.pi / 6) * y) ** 2).sum() / weights.sum()
    across = (weights * (math.cos(math.pi / 6) * y - math.sin(math.pi / 6) * x) ** 2).sum() / weights.sum()
    assert along == pytest.approx(1.5**2, rel=0.15)
    assert across == pytest.approx(2.5**2, rel=0.15)


@pytest.mark.parametrize(("scale", "low", "high"), [(2, 0.1, 1.5), (4, 0.2, 3.0), (8, 0.4, 6.0)])
def test_widths_grow_with_the_scale_within_their_range(
    scale: int, low: float, high: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[float] = []
    gaussian = real._gaussian

    def recorded(widths: list[float], angle: float) -> np.ndarray:
        found.extend(widths)
        assert 0 <= angle <= math.pi
        return gaussian(widths, angle)

    monkeypatch.setattr(real, "_gaussian", recorded)
    for stream in streams(100):
        blur(flat(0, 8, 8), scale, stream)
    assert low <= min(found) < low + 0.1 * (high - low)
    assert high - 0.1 * (high - low) < max(found) <= high


def test_kernels_sum_to_one_exactly() -> None:
    for stream in streams(30):
        np.testing.assert_array_equal(blur(flat(255), 4, stream), flat(255))
        np.testing.assert_array_equal(blur(flat(0), 4, stream), flat(0))
    for widths in ([0.05, 0.05], [0.2, 3.0], [6.0, 6.0]):
        kernel = real._gaussian(widths, 0.3)
        assert kernel.sum() == 2**16
        assert kernel.min() >= 0
        np.testing.assert_array_equal(kernel, kernel[::-1, ::-1])


def test_the_blur_is_exact_integer_arithmetic() -> None:
    """A convolution with integers, term by term, agrees to the last bit."""
    hr = picture(9, 12, 3)
    stream = random_stream(2, "crops", 0)
    blurred = blur(hr, 4, stream)
    stream = random_stream(2, "crops", 0)
    widths = [4 * real._uniform(*real.BLUR, stream) for _ in range(2)]
    kernel = real._gaussian(widths, real._uniform(0, math.pi, stream)).astype(np.int64)
    margin = len(kernel) // 2
    padded = np.pad(hr.astype(np.int64), ((margin, margin), (margin, margin), (0, 0)), mode="symmetric")
    for row, column in np.ndindex(9, 12):
        window = padded[row : row + len(kernel), column : column + len(kernel)]
        # the kernel is symmetric about its centre
        expected = ((window * kernel[:, :, None]).sum((0, 1)) + 2**15) // 2**16
        np.testing.assert_array_equal(blurred[row, column], expected)


def fixed(monkeypatch: pytest.MonkeyPatch, deviation: float, shot: float, colour: float) -> None:
    drawn = [deviation, shot, colour]
    monkeypatch.setattr(real, "_uniform", lambda low, high, stream: drawn.pop(0))


@pytest.mark.parametrize(
    ("value", "deviation", "shot", "expected"),
    [(128, 10, 0, 10), (128, 10, 1, 10), (128, 10, 0.3, 10), (32, 20, 1, 10), (200, 8, 0, 8), (200, 8, 1, 10)],
)
def test_strength_of_the_noise(
    value: int, deviation: float, shot: float, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed(monkeypatch, deviation, shot, 1.0)
    noise = add_noise(flat(value, 100, 100), random_stream(0, "crops", 0)).astype(float) - value
    assert noise.std() == pytest.approx(expected, rel=0.02)
    assert noise.mean() == pytest.approx(0, abs=0.2)
    # normal: share of values within one standard deviation, and fourth moment
    assert (np.abs(noise) < expected).mean() == pytest.approx(0.683, abs=0.03)
    assert (noise**4).mean() / expected**4 == pytest.approx(3, rel=0.1)


def test_noise_of_one_or_three_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    for colour, channels in ((0.39, 1), (0.41, 3)):
        fixed(monkeypatch, 20, 0.5, colour)
        noise = add_noise(flat(128), random_stream(0, "crops", 0))
        correlation = np.corrcoef(noise.reshape(-1, 3).astype(float).T)[0, 1]
        assert correlation == pytest.approx(1.0 if channels == 1 else 0.0, abs=0.05)


def test_noise_stays_within_eight_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (0, 255):
        fixed(monkeypatch, 30, 0, 1.0)
        noisy = add_noise(flat(value), random_stream(0, "crops", 0)).astype(int)
        # half of the values are clipped, none wraps around
        assert (noisy == value).mean() == pytest.approx(0.5, abs=0.05)
        assert np.abs(noisy - value).max() < 5 * 30


def test_strengths_are_within_their_ranges() -> None:
    deviations = [add_noise(flat(128), stream).astype(float).std() for stream in streams(200)]
    assert min(deviations) == pytest.approx(1, abs=0.5)
    assert max(deviations) == pytest.approx(30, abs=1.5)
    assert np.mean(deviations) == pytest.approx(15.5, abs=1.5)


def test_quality_of_jpeg_is_drawn_from_its_range(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    save = Image.Image.save

    def recorded(self: Image.Image, file: io.BytesIO, **options: Any) -> None:
        found.append(options["quality"])
        save(self, file, **options)

    monkeypatch.setattr(Image.Image, "save", recorded)
    small = picture(8, 8, 3)
    for index in range(600):
        compress(small, random_stream(0, "crops", index))
    assert set(found) == set(range(30, 96))


def test_jpeg_is_that_of_pillow() -> None:
    lr = picture(20, 12, 3)
    compressed = compress(lr, random_stream(0, "crops", 0))
    quality = int(torch.randint(30, 96, (), generator=random_stream(0, "crops", 0)))
    buffer = io.BytesIO()
    Image.fromarray(lr).save(buffer, format="JPEG", quality=quality, subsampling=2)
    np.testing.assert_array_equal(compressed, np.array(Image.open(buffer)))
    assert (compressed != lr).any()
