"""Memory layouts of images and of what is computed from them."""

from __future__ import annotations

import torch
from torch import Tensor

from sr_models.networks.precision import uses_matrix_units

__all__ = ["in_fastest_layout"]


def in_fastest_layout(image: Tensor) -> Tensor:
    """Return an image in the layout of the fastest convolutions, which all that is computed from it then has.

    That is channels_last on a CPU, and in the training steps of a GPU whose convolutions use its matrix units.
    """
    last = image.is_cpu or (torch.is_grad_enabled() and uses_matrix_units(image.device))
    return image.contiguous(memory_format=torch.channels_last) if last else image
