"""Image quality metrics of the super-resolution literature, on 8-bit RGB images of shape (H, W, 3).

None of them crops: the NTIRE challenges crop truth and samples to multiples of 8 first
(:func:`sr_models.io.images.crop_to_multiple`), the SRFlow papers do not crop at all.
"""

from sr_models.evaluation.metrics.distances import (
    Distance,
    LPIPSDistance,
    best_available_distance,
    lpips_available,
    mse_distance,
    window_errors,
)
from sr_models.evaluation.metrics.diversity import (
    DiversityResult,
    diversity_of_maps,
    diversity_percent,
    diversity_score,
)
from sr_models.evaluation.metrics.fidelity import lr_psnr, psnr, psnr_y, ssim

__all__ = [
    "Distance",
    "DiversityResult",
    "LPIPSDistance",
    "best_available_distance",
    "diversity_of_maps",
    "diversity_percent",
    "diversity_score",
    "lpips_available",
    "lr_psnr",
    "mse_distance",
    "psnr",
    "psnr_y",
    "ssim",
    "window_errors",
]
