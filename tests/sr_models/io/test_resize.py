"""imresize against the reference fixtures, and its properties."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sr_models.io.resize import imresize

GOLDEN = np.load(Path(__file__).parents[2] / "data" / "golden" / "metrics.npz")
SCALES = {"x1_2": 1 / 2, "x1_4": 1 / 4, "x1_8": 1 / 8, "x4": 4}
SCALE_CASES = [key for key in GOLDEN.files if key.startswith("imresize/") and key.rpartition("/")[2] in SCALES]

lengths = st.integers(1, 40)
scales = st.floats(0.06, 5)
seeds = st.integers(0, 2**32 - 1)


def random_image(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def assert_matches(result: np.ndarray, expected: np.ndarray) -> None:
    assert result.dtype == expected.dtype
    assert result.shape == expected.shape
    # One grey level would already show in LR-PSNR; floats differ by the order of summation only.
    np.testing.assert_allclose(result, expected, rtol=0, atol=0 if expected.dtype == np.uint8 else 1e-12)


@pytest.mark.parametrize("key", SCALE_CASES)
def test_matches_reference(key):
    image, case = key.removeprefix("imresize/").split("/")
    assert_matches(imresize(GOLDEN[f"imresize/{image}/in"], SCALES[case]), GOLDEN[key])


def test_matches_reference_float_noise_enlarged():
    result = imresize(GOLDEN["imresize/float_noise/in"], 4)
    expected = GOLDEN["imresize/float_noise/x4_left"]
    assert result.shape == (192, 256, 3)
    assert_matches(result[:, : expected.shape[1]], expected)


def test_matches_reference_with_size():
    result = imresize(GOLDEN["imresize/astronaut/in"], size=(37, 53))
    assert_matches(result, GOLDEN["imresize/astronaut/out_shape"])


def test_matches_reference_on_scaled_image():
    result = imresize(GOLDEN["imresize/astronaut/in"] / 255.0, 1 / 4)
    assert_matches(result, GOLDEN["imresize/astronaut/float01_x1_4"])


@given(lengths, lengths, scales, st.integers(0, 255))
def test_constant_stays_constant(height, width, scale, value):
    result = imresize(np.full((height, width), value, dtype=np.uint8), scale)
    assert result.shape == (int(np.ceil(scale * height)), int(np.ceil(scale * width)))
    assert (result == value).all()


@given(seeds, lengths, lengths)
def test_scale_one_is_identity(seed, height, width):
    image = random_image(seed, height, width, 3)
    np.testing.assert_array_equal(imresize(image, 1), image)
    np.testing.assert_array_equal(imresize(image, size=(height, width)), image)


@given(seeds, lengths, lengths, scales)
def test_channels_are_independent(seed, height, width, scale):
    image = random_image(seed, height, width, 3)
    channels = [imresize(image[..., channel], scale) for channel in range(3)]
    np.testing.assert_array_equal(imresize(image, scale), np.stack(channels, axis=2))


@given(seeds, lengths, lengths, scales, st.sampled_from([0, 1]))
def test_commutes_with_flips(seed, height, width, factor, axis):
    image = random_image(seed, height, width) / 255
    # By size, since ceil(scale * length) / scale > length would move the grid off centre.
    size = (int(np.ceil(factor * height)), int(np.ceil(factor * width)))
    flipped = imresize(np.flip(image, axis), size=size)
    np.testing.assert_allclose(flipped, np.flip(imresize(image, size=size), axis), rtol=0, atol=1e-9)


@given(seeds, lengths, lengths, scales, st.floats(-3, 3), st.floats(-3, 3))
def test_floats_are_resized_linearly(seed, height, width, scale, a, b):
    x, y = np.random.default_rng(seed).standard_normal((2, height, width))
    combined = imresize(a * x + b * y, scale)
    np.testing.assert_allclose(combined, a * imresize(x, scale) + b * imresize(y, scale), rtol=0, atol=1e-9)


@given(st.integers(2, 6), st.integers(6, 20), st.integers(6, 20))
def test_enlarging_a_ramp_gives_a_ramp(scale, height, width):
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    result = imresize(rows + 2 * columns, scale)
    inner = result[2 * scale : -2 * scale, 2 * scale : -2 * scale]
    np.testing.assert_allclose(np.diff(inner, axis=0), 1 / scale, rtol=0, atol=1e-9)
    np.testing.assert_allclose(np.diff(inner, axis=1), 2 / scale, rtol=0, atol=1e-9)


def test_rounds_after_each_axis():
    image = random_image(0, 64, 64)
    rows_only = imresize(image, size=(16, 64))
    np.testing.assert_array_equal(imresize(image, size=(16, 16)), imresize(rows_only, size=(16, 16)))
    assert (imresize(image, 1 / 4) != np.rint(imresize(image.astype(float), 1 / 4))).any()


def test_smaller_scale_is_resized_first():
    image = random_image(0, 40, 60)
    np.testing.assert_array_equal(
        imresize(image, size=(20, 15)), imresize(imresize(image, size=(40, 15)), size=(20, 15))
    )


def test_leaves_input_and_cached_weights_alone():
    image = random_image(0, 33, 20, 3)
    copy = image.copy()
    first = imresize(image, 1 / 4)
    np.testing.assert_array_equal(imresize(image[::-1][::-1], 1 / 4), first)
    np.testing.assert_array_equal(image, copy)


@pytest.mark.parametrize(
    ("image", "arguments", "error", "message"),
    [
        ([[1.0]], {"scale": 2}, TypeError, "image must be a numpy array, got list"),
        (np.ones((4, 4), int), {"scale": 2}, TypeError, "image must be uint8 or floating point, got dtype int64"),
        (
            np.ones(4),
            {"scale": 2},
            ValueError,
            r"image must be \(H, W\) or \(H, W, C\) and not empty, got shape \(4,\)",
        ),
        (np.ones((0, 4)), {"scale": 2}, ValueError, r"not empty, got shape \(0, 4\)"),
        (np.ones((4, 4)), {}, ValueError, "exactly one of scale and size, got scale=None and size=None"),
        (np.ones((4, 4)), {"scale": 2, "size": (2, 2)}, ValueError, r"got scale=2 and size=\(2, 2\)"),
        (np.ones((4, 4)), {"scale": "2"}, TypeError, "scale must be a number, got str"),
        (np.ones((4, 4)), {"scale": 0}, ValueError, "scale must be positive and finite, got 0"),
        (np.ones((4, 4)), {"scale": float("nan")}, ValueError, "scale must be positive and finite, got nan"),
        (np.ones((4, 4)), {"size": 3}, TypeError, r"size must be a pair of integers \(height, width\), got 3"),
        (np.ones((4, 4)), {"size": (2.0, 2)}, TypeError, r"size must be a pair of integers .*, got \(2.0, 2\)"),
        (np.ones((4, 4)), {"size": (2,)}, ValueError, r"size must be a pair of positive integers .*, got \(2,\)"),
        (np.ones((4, 4)), {"size": (2, 0)}, ValueError, r"size must be a pair of positive integers .*, got \(2, 0\)"),
    ],
)
def test_rejects_bad_arguments(image, arguments, error, message):
    with pytest.raises(error, match=message):
        imresize(image, **arguments)


def kernel(distance: float) -> float:
    d = abs(distance)
    if d <= 1:
        return 1.5 * d**3 - 2.5 * d**2 + 1
    return -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2 if d < 2 else 0.0


def resized_row(row: np.ndarray, length: int, scale: float) -> np.ndarray:
    """One row after MATLAB's documentation, pixel by pixel, with the mirror written out as far as it is needed."""
    stretch = min(scale, 1.0)
    reach = int(np.ceil(2 / stretch)) + 2
    mirrored = row
    while len(mirrored) < len(row) + 2 * reach + 2 * len(row):
        mirrored = np.concatenate([mirrored, row[:: -1 if len(mirrored) // len(row) % 2 else 1]])
    before = row[::-1]
    while len(before) < reach + len(row):
        before = np.concatenate([row[:: -1 if len(before) // len(row) % 2 == 0 else 1], before])

    def pixel(index: int) -> float:
        return float(mirrored[index] if index >= 0 else before[index])

    result = []
    for j in range(length):
        u = (j + 0.5) / scale - 0.5
        taps = range(int(np.floor(u)) - reach, int(np.floor(u)) + reach + 1)
        weights = [kernel(stretch * (u - i)) for i in taps]
        result.append(sum(w * pixel(i) for w, i in zip(weights, taps, strict=True)) / sum(weights))
    return np.array(result)


@given(
    seeds,
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from([1 / 8, 1 / 4, 1 / 3, 1 / 2, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 8.0]),
)
def test_images_smaller_than_the_kernel(seed: int, height: int, width: int, scale: float) -> None:
    """The kernel reaches over 16 pixels and more of an eighth: the image is mirrored several times."""
    image = np.random.default_rng(seed).standard_normal((height, width))
    rows, columns = int(np.ceil(scale * height)), int(np.ceil(scale * width))
    expected = np.apply_along_axis(resized_row, 0, image, rows, scale)
    expected = np.apply_along_axis(resized_row, 1, expected, columns, scale)
    np.testing.assert_allclose(imresize(image, scale), expected, rtol=0, atol=1e-12)


@given(seeds, st.integers(1, 9), st.integers(1, 24), st.integers(1, 9), st.integers(1, 24))
def test_sizes_of_small_images(seed: int, height: int, rows: int, width: int, columns: int) -> None:
    image = np.random.default_rng(seed).standard_normal((height, width))
    expected = np.apply_along_axis(resized_row, 0, image, rows, rows / height)
    expected = np.apply_along_axis(resized_row, 1, expected, columns, columns / width)
    np.testing.assert_allclose(imresize(image, size=(rows, columns)), expected, rtol=0, atol=1e-12)
