"""Monotonic rational-quadratic splines, elementwise, in both directions."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["SplineForm"]


class SplineForm(NamedTuple):
    """Rule by which a network's output becomes a spline from [-limit, limit] to itself, with the identity outside.

    Attributes:
        bins: number K of pieces.
        limit: half of the length of the interval.
        least: the least width and height of a piece, as a fraction of the interval, and the least slope at a knot.
    """

    bins: int
    limit: float
    least: float

    @property
    def parameters(self) -> int:
        """Number of raw parameters of an element: K widths, K heights and K - 1 slopes between the pieces."""
        return 3 * self.bins - 1

    def transform(self, x: Tensor, raw: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        """Apply the spline or its inverse.

        Args:
            x: (B, C, *), float32 or float64.
            raw: (B, C, 3K - 1, *), of the dtype of ``x``: widths, heights, slopes. All zeros make the identity.
            inverse: apply the inverse.

        Returns:
            y and the logarithm of its derivative by ``x``, (B, C, *) each.
        """
        inside = x.abs() <= self.limit
        given = x.clamp(-self.limit, self.limit)
        piece = self._piece_at(given, raw, inverse=inverse)
        y, log_slope = piece.inverse(given) if inverse else piece.forward(given)
        return torch.where(inside, y, x), log_slope.masked_fill(~inside, 0.0)

    def _piece_at(self, given: Tensor, raw: Tensor, *, inverse: bool) -> _Piece:
        """Return the piece in whose width, or height for the inverse, each element lies."""
        widths, heights, between = raw.split([self.bins, self.bins, self.bins - 1], 2)
        x, y = self._knots(widths), self._knots(heights)
        # slope 1 for a raw value of zero, and at both ends, where the identity goes on
        slopes = self.least + F.softplus(between + math.log(math.expm1(1 - self.least)))
        slopes = F.pad(slopes.transpose(2, -1), (1, 1), value=1.0).transpose(2, -1)
        # counted: torch.searchsorted knows the last dimension only
        inner = (y if inverse else x)[:, :, 1:-1]
        number = (given.unsqueeze(2) >= inner).sum(2, keepdim=True)

        def at(values: Tensor, place: Tensor) -> Tensor:
            return values.gather(2, place).squeeze(2)

        after = number + 1
        return _Piece(at(x, number), at(x, after), at(y, number), at(y, after), at(slopes, number), at(slopes, after))

    def _knots(self, raw: Tensor) -> Tensor:
        """Return the K + 1 ends of K pieces that fill the interval."""
        fractions = self.least + (1 - self.bins * self.least) * raw.softmax(2)
        inner = self.limit * (2 * fractions.cumsum(2)[:, :, :-1] - 1)
        end = torch.full_like(raw[:, :, :1], self.limit)
        return torch.cat([-end, inner, end], 2)


class _Piece(NamedTuple):
    r"""A piece between the knots :math:`(x_0, y_0)` and :math:`(x_1, y_1)`, where its slopes are :math:`d_0` and
    :math:`d_1`.

    With :math:`t = (x - x_0) / (x_1 - x_0)`, :math:`u = 1 - t`, and v and w the same of y:

    .. math:: v = \frac{t (s t + d_0 u)}{s (t^2 + u^2) + (d_0 + d_1) t u}, \qquad s = \frac{y_1 - y_0}{x_1 - x_0}

    No term is negative. Solved for t, with :math:`p = d_0 w - d_1 v` and :math:`r = \sqrt{p^2 + 4 s^2 v w}`:

    .. math:: t = \frac{2 s v}{r + p + 2 s v}, \qquad u = \frac{2 s w}{r - p + 2 s w}

    The first has no cancellation where p is positive, the second where it is not.
    """

    x0: Tensor
    x1: Tensor
    y0: Tensor
    y1: Tensor
    d0: Tensor
    d1: Tensor

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        width, height = self.x1 - self.x0, self.y1 - self.y0
        t, u = ((x - self.x0) / width).clamp(0, 1), ((self.x1 - x) / width).clamp(0, 1)
        s = height / width
        v = t * (s * t + self.d0 * u) / self._below(s, t, u)
        return self.y0 + height * v, self._log_slope(s, t, u)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        width, height = self.x1 - self.x0, self.y1 - self.y0
        v, w = ((y - self.y0) / height).clamp(0, 1), ((self.y1 - y) / height).clamp(0, 1)
        s = height / width
        p = self.d0 * w - self.d1 * v
        r = (p * p + 4 * s * s * v * w).sqrt()
        from_left = p > 0
        t = 2 * s * v / torch.where(from_left, r + p + 2 * s * v, 1.0)
        u = 2 * s * w / torch.where(from_left, 1.0, r - p + 2 * s * w)
        x = torch.where(from_left, self.x0 + width * t, self.x1 - width * u)
        t, u = torch.where(from_left, t, 1 - u), torch.where(from_left, 1 - t, u)
        return x, -self._log_slope(s, t, u)

    def _below(self, s: Tensor, t: Tensor, u: Tensor) -> Tensor:
        return s * (t * t + u * u) + (self.d0 + self.d1) * t * u

    def _log_slope(self, s: Tensor, t: Tensor, u: Tensor) -> Tensor:
        """The logarithm of dy / dx = s^2 (d_1 t^2 + 2 s t u + d_0 u^2) / (below)^2."""
        above = self.d1 * t * t + 2 * s * t * u + self.d0 * u * u
        return 2 * (s / self._below(s, t, u)).log() + above.log()
