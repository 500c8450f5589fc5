"""Fidelity of one image to another: PSNR, PSNR of the luma, SSIM, and PSNR after downscaling."""

import math

import numpy as np

from sr_models.evaluation.metrics._arguments import check_same_rgb
from sr_models.io.resize import imresize

_SSIM_WINDOW = 7
#: Rows of which the structural similarity is computed at a time, so that everything stays in the processor's cache.
_ROWS = 16
#: Weights of R, G and B, from 0 to 255, in the luma of ITU-R BT.601, from 16 to 235.
_LUMA = (65.481 / 255, 128.553 / 255, 24.966 / 255)


def psnr(sr: np.ndarray, hr: np.ndarray) -> float:
    r"""Return the peak signal-to-noise ratio over all pixels and channels, in decibels.

    .. math:: 10 \log_{10} \frac{255^2}{\mathrm{mean}\, (sr - hr)^2}

    Args:
        sr: Array (H, W, 3), uint8.
        hr: Array (H, W, 3), uint8.

    Returns:
        The ratio in dB; infinity for identical images.

    Raises:
        TypeError: If one of the images is not a uint8 array.
        ValueError: If the images are not (H, W, 3), or differ in shape.
    """
    check_same_rgb(sr, hr)
    difference = np.subtract(sr, hr, dtype=np.int16).astype(np.int32)
    return _decibels(float(np.sum(np.square(difference, out=difference), dtype=np.int64)) / difference.size)


def psnr_y(sr: np.ndarray, hr: np.ndarray, border: int) -> float:
    r"""Return the peak signal-to-noise ratio of the luma within a border, as classical tables report it, in decibels.

    The luma is that of ITU-R BT.601, :math:`Y = 16 + (65.481 R + 128.553 G + 24.966 B) / 255`. It is not rounded, as in
    most code of today; MATLAB's ``rgb2ycbcr`` rounds it to 8 bits. The peak is 255. The SR-flow papers and the NTIRE
    challenges report :func:`psnr` instead.

    Args:
        sr: Array (H, W, 3), uint8.
        hr: Array (H, W, 3), uint8.
        border: Pixels that are left out at each side; tables leave out as many as the enlargement.

    Returns:
        The ratio in dB; infinity for identical luma, NaN if the border leaves nothing.

    Raises:
        TypeError: If one of the images is not a uint8 array.
        ValueError: If the images are not (H, W, 3), or differ in shape, or ``border`` is negative.
    """
    check_same_rgb(sr, hr)
    if border < 0:
        raise ValueError(f"border must be at least 0, got {border}")
    height, width = sr.shape[:2]
    if min(height, width) <= 2 * border:
        return math.nan
    inside = (slice(border, height - border), slice(border, width - border))
    difference = np.subtract(sr[inside], hr[inside], dtype=np.int16).astype(np.float64) @ np.array(_LUMA)
    return _decibels(float(np.mean(np.square(difference, out=difference))))


def ssim(sr: np.ndarray, hr: np.ndarray) -> float:
    """Return the structural similarity, the mean over the channels R, G and B.

    Uniform 7x7 window and sample covariance, scikit-image's defaults, which the SR-flow papers use; a Gaussian window
    gives other numbers.

    References:
        Wang, Bovik, Sheikh, Simoncelli, *Image quality assessment: from error visibility to structural similarity*,
        IEEE Trans. Image Processing 13(4), 2004.

    Args:
        sr: Array (H, W, 3), uint8, at least 7 pixels high and wide.
        hr: Array (H, W, 3), uint8.

    Returns:
        The similarity, at most 1, which it is for identical images.

    Raises:
        TypeError: If one of the images is not a uint8 array.
        ValueError: If the images are not (H, W, 3), differ in shape, or are smaller than the window.
    """
    check_same_rgb(sr, hr)
    if min(sr.shape[:2]) < _SSIM_WINDOW:
        raise ValueError(f"ssim needs images of at least 7x7 pixels, got {sr.shape[0]}x{sr.shape[1]}")
    tops = range(0, sr.shape[0] - _SSIM_WINDOW + 1, _ROWS)
    blocks = (slice(top, top + _ROWS + _SSIM_WINDOW - 1) for top in tops)
    total = math.fsum(_similarity(sr[rows], hr[rows]) for rows in blocks)
    return total / ((sr.shape[0] - _SSIM_WINDOW + 1) * (sr.shape[1] - _SSIM_WINDOW + 1) * 3)


def lr_psnr(sr: np.ndarray, hr: np.ndarray, scale: int) -> float:
    """Return the PSNR between the two images after shrinking both, in decibels.

    It measures whether a super-resolved image is consistent with the low-resolution one. As in the NTIRE challenges
    on learning the super-resolution space (2021, 2022), the truth is shrunk too, from and to 8 bits, rather than taken
    from a low-resolution file.

    Args:
        sr: Array (H, W, 3), uint8.
        hr: Array (H, W, 3), uint8.
        scale: Positive integer; the images are resized with ``imresize(image, 1 / scale)``.

    Returns:
        The ratio in dB; infinity if the shrunk images are identical.

    Raises:
        TypeError: If one of the images is not a uint8 array.
        ValueError: If the images are not (H, W, 3), or differ in shape, or ``scale`` is not positive.
    """
    check_same_rgb(sr, hr)
    if scale < 1:
        raise ValueError(f"scale must be positive, got {scale}")
    return psnr(imresize(sr, 1 / scale), imresize(hr, 1 / scale))


def _decibels(mean_square: float) -> float:
    return 10 * math.log10(255**2 / mean_square) if mean_square > 0 else math.inf


def _similarity(sr: np.ndarray, hr: np.ndarray) -> float:
    r"""Sum the structural similarity over all windows in two images, and over the channels.

    Sums over windows are whole numbers, which int32 holds exactly: at most :math:`2 (49 \cdot 255)^2`.
    """
    x, y = sr.reshape(len(sr), -1).astype(np.int32), hr.reshape(len(hr), -1).astype(np.int32)
    pixels = _SSIM_WINDOW**2
    products = pixels * _window_sums(x * y)
    squares = pixels * _window_sums(x * x + y * y)
    x, y = _window_sums(x), _window_sums(y)
    means, square_means = x * y, x * x + y * y
    # the sample covariance divides by one less than the number of pixels
    first, second = (0.01 * 255) ** 2 * pixels**2, (0.03 * 255) ** 2 * pixels * (pixels - 1)
    numerator = (2.0 * means + first) * (2.0 * (products - means) + second)
    return float(np.sum(numerator / ((square_means + first) * ((squares - square_means) + second))))


def _window_sums(values: np.ndarray) -> np.ndarray:
    """Sum over windows of 7 x 7 pixels: (H, 3 W) to (H - 6, 3 (W - 6)), channels innermost."""
    down = values[:-1] + values[1:]
    down = down[:-5] + down[2:-3] + down[4:-1] + values[6:]
    across = down[:, :-3] + down[:, 3:]
    return across[:, :-15] + across[:, 6:-9] + across[:, 12:-3] + down[:, 18:]
