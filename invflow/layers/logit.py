"""Logit preprocessing: values in [0, 1] become real numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from invflow._numerics import compute_dtype, reads_freely
from invflow.layers.conditioning import without_context
from invflow.layers.protocol import ConditionedInverse, Context, Shape, SharedContext
from invflow.ops._transforms import has_values, is_watched

__all__ = ["Logit"]


class Logit(nn.Module):
    r"""Logit preprocessing: :math:`z = \operatorname{logit}(p)` with :math:`p = \alpha + (1 - 2 \alpha) x`;
    :math:`\log\det = \sum (\log(1 - 2 \alpha) - \log p - \log(1 - p))` (Dinh et al., Real NVP, 2017, section 4.1;
    Papamakarios et al., Masked Autoregressive Flow, 2017, appendix E).

    It follows a dequantisation. A flow after it has samples within the range of the data, but for the margin alpha.
    Values outside of [0, 1] are allowed as far as p is between 0 and 1.

    Args:
        alpha: distance of p from 0 and 1; at least 0 and below 1/2. With 0, x must not be 0 or 1.

    Shape:
        x (B, ...) -> z (B, ...), log_det (B,).

    Raises:
        ValueError: values of x for which p is not between 0 and 1. They are looked at on a CPU only.
    """

    num_latents = 1
    takes_shared_context = True

    def __init__(self, alpha: float = 0.05) -> None:
        super().__init__()
        if not 0 <= alpha < 0.5:
            raise ValueError(f"Logit: alpha must be at least 0 and below 0.5, got {alpha}")
        self.alpha = alpha

    def forward(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        _check_floating(x, "x")
        p = self.alpha + (1 - 2 * self.alpha) * x.to(compute_dtype(x.dtype))
        if not is_watched() and reads_freely(p) and has_values(p) and p.numel():
            least, largest = (value.item() for value in torch.aminmax(p))
            if not (least > 0 and largest < 1):
                raise ValueError(
                    f"Logit: alpha + (1 - 2 alpha) x must be between 0 and 1, got {least:.6g} to {largest:.6g}; "
                    "scale x to [0, 1]"
                )
        v = torch.log(p) - torch.log1p(-p)
        return v.to(x.dtype), -self._inverse_log_det(v)

    def inverse(self, z: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        _check_floating(z, "z")
        v = z.to(compute_dtype(z.dtype))
        x = (torch.sigmoid(v) - self.alpha) / (1 - 2 * self.alpha)
        return x.to(z.dtype), self._inverse_log_det(v)

    def output_shapes(self, shape: Shape) -> list[Shape]:
        return [shape]

    def conditioned_inverse(self, context: SharedContext) -> ConditionedInverse:
        return without_context(self)

    def _inverse_log_det(self, v: Tensor) -> Tensor:
        terms = F.logsigmoid(v) + F.logsigmoid(-v) - math.log(1 - 2 * self.alpha)
        return terms.flatten(1).sum(1) if v.dim() > 1 else terms

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"


def _check_floating(x: object, name: str) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"Logit: {name} must be a torch.Tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"Logit: {name} must have a floating-point dtype, got {x.dtype}")
