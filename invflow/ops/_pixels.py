"""States of any rank as images: the only place that knows how kernels, which take (B, C, H, W), see the others."""

from __future__ import annotations

import torch
from torch import Tensor

from invflow._numerics import state_format
from invflow.ops._transforms import needs_reference

__all__ = ["as_image"]


def as_image(x: Tensor) -> Tensor:
    """Return a state (B, C, *) as (B, C, 1, pixels), and one of four dimensions as it is.

    It is a view wherever the pixels lie in line, in any layout: also of a sequence that is stored as (B, N, C), and of
    a volume in channels_last_3d. A part of a volume is copied once, in the layout that it has. A vector has one pixel.
    """
    rank = x.dim()
    if rank == 4:
        return x
    if rank == 2:
        return x.view(*x.shape, 1, 1)
    if rank == 3:
        return x.unsqueeze(2)
    # neither a transformed nor a traced tensor tells its layout
    if not (needs_reference() or torch.jit.is_tracing()) and state_format(x) == torch.channels_last:
        return x.movedim(1, -1).flatten(1, -2).movedim(-1, 1).unsqueeze(2)
    return x.flatten(2).unsqueeze(2)
