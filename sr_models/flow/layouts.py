"""Memory layouts of images and of what is computed from them."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["in_fastest_layout"]


def in_fastest_layout(image: Tensor) -> Tensor:
    """Return an image in the layout of the fastest convolutions, which all that is computed from it then has.

    That is channels_last on a CPU, and in the training steps of a GPU whose convolutions use its matrix units.
    """
    if image.is_cuda:
        last = torch.is_grad_enabled() and (torch.is_autocast_enabled("cuda") or torch.backends.cudnn.allow_tf32)
    else:
        last = image.device.type == "cpu"
    return image.contiguous(memory_format=torch.channels_last) if last else image
