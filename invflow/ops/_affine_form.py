"""The rule by which a network's output becomes an elementwise map."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from invflow.backends.native import words
from invflow.backends.protocol import Form

__all__ = ["PUBLISHED_FORM", "AffineForm", "OrderName", "PackingName", "ScaleName", "affine_form_of"]

ScaleName = Literal["sigmoid", "exp", "bounded_exp", "tanh_exp", "bounded_atan_exp", "atan_exp", "none"]
OrderName = Literal["shift_then_scale", "scale_then_shift"]
PackingName = Literal["cross", "split"]


@dataclass(frozen=True)
class AffineForm:
    r"""Rule by which a network's output :math:`h` becomes an elementwise map.

    The default is that of the published SRFlow models. ``AffineForm("exp", order="scale_then_shift")`` is that of the
    papers.

    ======================  ==========================================================================================
    ``scale``               the scale as a function of the raw output :math:`r`, with :math:`a` = ``bound``
    ======================  ==========================================================================================
    ``"sigmoid"``           :math:`\operatorname{sigmoid}(r + 2) + \text{eps}`
    ``"exp"``               :math:`e^r`
    ``"bounded_exp"``       :math:`e^{a \tanh(r / a)}`
    ``"tanh_exp"``          :math:`e^{a \tanh r}`
    ``"bounded_atan_exp"``  :math:`e^{0.636 a \arctan(r / a)}` (Ardizzone et al., Analyzing Inverse Problems, 2019);
                            with :math:`a = 0.5` it is :math:`e^{0.318 \arctan(2 r)}` (Liang et al., HCFlow, 2021)
    ``"atan_exp"``          :math:`e^{0.636 a \arctan r}`
    ``"none"``              1, and h has no raw scales: an additive map (Dinh et al., NICE, 2015); log_det is exactly 0
    ======================  ==========================================================================================

    Args:
        scale: one of these.
        order: ``"shift_then_scale"`` is :math:`y = (x + t) s`, ``"scale_then_shift"`` is :math:`y = x s + t`.
        packing: places of shift and raw scale in ``h``: ``"cross"`` has shifts in even and scales in odd channels,
            ``"split"`` has shifts in the first half.
        eps: the least scale of ``"sigmoid"``, 0 or between 1e-30 and 1e4; the inverse amplifies by at most 1 / eps.
            A smaller one is lost where float32 numbers are subnormal. Beside a larger one the sigmoid is lost.
        bound: the largest absolute log-scale of the bounded scales, between 1e-30 and 80 (0.999 of it for those with
            0.636, which stands for 2 / pi). With a larger one the scale is no normal float32 number.
        volume_preserving: subtract from every log-scale the mean over the transformed channels of its pixel. The
            log-scales of a pixel then sum to zero, and log_det is 0 (Sorrenson et al., GIN, 2020).

    Raises:
        TypeError: eps or bound is not a number, or volume_preserving no bool.
        ValueError: an unknown name or a parameter out of range.
    """

    scale: ScaleName = "sigmoid"
    order: OrderName = "shift_then_scale"
    packing: PackingName = "cross"
    eps: float = 1e-4
    bound: float = 2.0
    volume_preserving: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (("scale", ScaleName), ("order", OrderName), ("packing", PackingName)):
            if getattr(self, name) not in get_args(allowed):
                choices = ", ".join(repr(choice) for choice in get_args(allowed))
                raise ValueError(f"{name} must be one of {choices}, got {getattr(self, name)!r}")
        if type(self.volume_preserving) is not bool:
            given = type(self.volume_preserving).__name__
            raise TypeError(f"volume_preserving must be True or False, got {given}")
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
        form = Form(self.scale, self.parameter, self.order, self.packing)
        object.__setattr__(self, "_form", form)
        # kernels know no sums over channels
        summed = self.volume_preserving and self.scale != "none"
        object.__setattr__(self, "_words", None if summed else words(form))

    @property
    def parameter(self) -> float:
        """The number that goes with ``scale``: eps, bound, or 0 if there is none."""
        return self.eps if self.scale == "sigmoid" else self.bound if self.scale in _BOUNDED else 0.0

    @property
    def outputs(self) -> int:
        """Channels of ``h`` for each transformed channel: shift and raw scale, or the shift alone."""
        return 1 if self.scale == "none" else 2

    def for_kernels(self) -> Form:
        """Return scale, parameter, order and packing."""
        form: Form = self.__dict__["_form"]
        return form

    @property
    def words(self) -> tuple[int, float, int, int] | None:
        """The form as compiled kernels know it; ``None`` if they do not."""
        found: tuple[int, float, int, int] | None = self.__dict__["_words"]
        return found

    def prepared(self, h: Tensor, dtype: torch.dtype) -> tuple[Tensor, AffineForm]:
        """Return ``h`` and its form as kernels take them, which know no sums over channels.

        A volume-preserving form hands its log-scales on as the raw scales of an exponential.

        Args:
            h: (B, 2C, *), or (B, C, *) without a scale.
            dtype: dtype of the arithmetic.
        """
        if not self.volume_preserving or self.scale == "none":
            return h, self
        shift, raw = self.unpack(h.to(dtype))
        _, log_scale = self.log_scale(raw)
        return torch.cat([shift, log_scale - log_scale.mean(1, keepdim=True)], 1), _EXPONENTIALS[self.order]

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
        log_scale = _BOUNDED[self.scale](raw, self.bound) if self.scale in _BOUNDED else raw
        return log_scale.exp(), log_scale

    def elementwise(self, x: Tensor, h: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """Apply the map that ``h`` makes, in plain PyTorch.

        Args:
            x: (B, C, *).
            h: (B, 2C, *), or (B, C, *) without a scale.
            inverse: apply the inverse map.

        Returns:
            y and the logarithm of its derivative by ``x``, (B, C, *) each.
        """
        if self.scale == "none":
            return x - h if inverse else x + h, torch.zeros_like(x)
        h, form = self.prepared(h, x.dtype)
        shift, raw = form.unpack(h)
        scale, log_scale = form.log_scale(raw)
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
        if self.volume_preserving:
            return y, x.new_zeros(x.shape[0])
        return y, log_slope.sum(tuple(range(1, x.dim())))


#: log(scale) of the bounded scales, from the raw output and the bound.
_BOUNDED: dict[str, Callable[[Tensor, float], Tensor]] = {
    "bounded_exp": lambda raw, a: a * torch.tanh(raw / a),
    "tanh_exp": lambda raw, a: a * torch.tanh(raw),
    "bounded_atan_exp": lambda raw, a: 0.636 * a * torch.atan(raw / a),
    "atan_exp": lambda raw, a: 0.636 * a * torch.atan(raw),
}


def _as_float(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    return float(value)


#: The form of the published SRFlow models, and the default everywhere.
PUBLISHED_FORM = AffineForm()

_EXPONENTIALS: dict[OrderName, AffineForm] = {
    order: AffineForm("exp", order=order, packing="split") for order in get_args(OrderName)
}


def affine_form_of(form: Form) -> AffineForm:
    """Return an :class:`AffineForm` that the kernels take as ``form``."""
    fields: dict[str, Any] = {"scale": form.scale, "order": form.order, "packing": form.packing}
    if form.scale == "sigmoid":
        fields["eps"] = form.parameter
    elif form.scale in _BOUNDED:
        fields["bound"] = form.parameter
    return AffineForm(**fields)
