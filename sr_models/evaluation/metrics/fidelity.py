"""Fidelity of one image to another: PSNR, SSIM and PSNR after downscaling."""

import math

import numpy as np
from skimage.metrics import structural_similarity

from sr_models.evaluation.metrics._arguments import check_same_rgb
from sr_models.io.resize import imresize

_SSIM_WINDOW = 7


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
    mean_square = float(np.mean((sr.astype(np.float64) - hr) ** 2))
    return 10 * math.log10(255**2 / mean_square) if mean_square > 0 else math.inf


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
    return float(structural_similarity(sr, hr, win_size=_SSIM_WINDOW, data_range=255, channel_axis=2))


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
