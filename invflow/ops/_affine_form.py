"""The rule by which a network's output becomes an elementwise map."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from invflow.backends.protocol import Form

__all__ = ["PUBLISHED_FORM", "AffineForm", "OrderName", "PackingName", "ScaleName", "affine_form_of"]

ScaleName = Literal["sigmoid", "exp", "bounded_exp"]
OrderName = Literal["shift_then_scale", "scale_then_shift"]
PackingName = Literal["cross", "split"]


@dataclass(frozen=True)
class AffineForm:
    r"""Rule by which a network's output :math:`h` becomes an elementwise map.

    The default is that of the published SRFlow models. ``AffineForm("exp", order="scale_then_shift")`` is that of the
    papers.

    Args:
        scale: the scale as a function of the raw output :math:`r`: ``"sigmoid"`` is
            :math:`\operatorname{sigmoid}(r + 2) + \text{eps}`, ``"exp"`` is :math:`e^r`, and ``"bounded_exp"`` is
            :math:`e^{a \tanh(r / a)}` with :math:`a` = ``bound``.
        order: ``"shift_then_scale"`` is :math:`y = (x + t) s`, ``"scale_then_shift"`` is :math:`y = x s + t`.
        packing: places of shift and raw scale in ``h``: ``"cross"`` has shifts in even and scales in odd channels,
            ``"split"`` has shifts in the first half.
        eps: the least scale of ``"sigmoid"``, 0 or between 1e-30 and 1e4; the inverse amplifies by at most 1 / eps.
            A smaller one is lost where float32 numbers are subnormal. Beside a larger one the sigmoid is lost.
        bound: the largest absolute log-scale of ``"bounded_exp"``, between 1e-30 and 80. With a larger one the scale is
            no normal float32 number.

    Raises:
        TypeError: eps or bound is not a number.
        ValueError: an unknown name or a parameter out of range.
    """

    scale: ScaleName = "sigmoid"
    order: OrderName = "shift_then_scale"
    packing: PackingName = "cross"
    eps: float = 1e-4
    bound: float = 2.0

    def __post_init__(self) -> None:
        for name, allowed in (("scale", ScaleName), ("order", OrderName), ("packing", PackingName)):
            if getattr(self, name) not in get_args(allowed):
                choices = ", ".join(repr(choice) for choice in get_args(allowed))
                raise ValueError(f"{name} must be one of {choices}, got {getattr(self, name)!r}")
        for name in ("eps", "bound"):
            if type(value := getattr(self, name)) is not float:
                object.__setattr__(self, name, _as_float(name, value))
        if not (math.isfinite(self.eps) and self.eps >= 0):
            raise ValueError(f"eps must be finite and at least 0, got {self.eps}")
        if self.eps and not 1e-30 <= self.eps <= 1e4:
            raise ValueError(f"eps must be 0 or between 1e-30 and 1e4, got {self.eps}")
        if not (math.isfinite(self.bound) and self.bound > 0):
            raise ValueError(f"bound must be finite and greater than 0, got {self.bound}")
        if not 1e-30 <= self.bound <= 80:
            raise ValueError(f"bound must be between 1e-30 and 80, got {self.bound}")
        self._remember_form()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._remember_form()

    def _remember_form(self) -> None:
        object.__setattr__(self, "_form", Form(self.scale, self.parameter, self.order, self.packing))

    @property
    def parameter(self) -> float:
        """The number that goes with ``scale``: eps, bound, or 0 if there is none."""
        return self.eps if self.scale == "sigmoid" else self.bound if self.scale == "bounded_exp" else 0.0

    def for_kernels(self) -> Form:
        """Return scale, parameter, order and packing."""
        form: Form = self.__dict__["_form"]
        return form

    def unpack(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return shift and raw scale, each (B, C, *), from ``h`` (B, 2C, *)."""
        if self.packing == "cross":
            return h[:, 0::2], h[:, 1::2]
        half = h.shape[1] // 2
        return h[:, :half], h[:, half:]

    def log_scale(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scale and its natural logarithm, of the shape of ``raw``."""
        if self.scale == "sigmoid":
            scale = torch.sigmoid(raw + 2.0) + self.eps
            # without eps the logarithm has a form that stays finite where the sigmoid underflows
            return scale, scale.log() if self.eps else F.logsigmoid(raw + 2.0)
        log_scale = raw if self.scale == "exp" else self.bound * torch.tanh(raw / self.bound)
        return log_scale.exp(), log_scale

    def elementwise(self, x: Tensor, h: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """Apply the map that ``h`` makes, in plain PyTorch.

        Args:
            x: (B, C, *).
            h: (B, 2C, *).
            inverse: apply the inverse map.

        Returns:
            y and the logarithm of its derivative by ``x``, (B, C, *) each.
        """
        shift, raw = self.unpack(h)
        scale, log_scale = self.log_scale(raw)
        if self.order == "shift_then_scale":
            y = x / scale - shift if inverse else (x + shift) * scale
        else:
            y = (x - shift) / scale if inverse else x * scale + shift
        return y, -log_scale if inverse else log_scale

    def transform(self, x: Tensor, h: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """Apply the map that ``h`` makes, in plain PyTorch; arguments as for :meth:`elementwise`.

        Returns:
            y (B, C, *) and log_det (B,).
        """
        y, log_slope = self.elementwise(x, h, inverse)
        return y, log_slope.sum(tuple(range(1, x.dim())))


def _as_float(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    return float(value)


#: The form of the published SRFlow models, and the default everywhere.
PUBLISHED_FORM = AffineForm()


def affine_form_of(form: Form) -> AffineForm:
    """Return an :class:`AffineForm` that the kernels take as ``form``."""
    fields: dict[str, Any] = {"scale": form.scale, "order": form.order, "packing": form.packing}
    if form.scale == "sigmoid":
        fields["eps"] = form.parameter
    elif form.scale == "bounded_exp":
        fields["bound"] = form.parameter
    return AffineForm(**fields)
