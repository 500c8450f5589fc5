"""``affine_coupling``: an elementwise affine map whose shift and scale a network computed, and its log-determinant."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from invflow._numerics import compute_dtype, empty_state
from invflow.backends import select_backend
from invflow.ops._checks import check_raw_output, check_same_device, check_start, check_state
from invflow.ops._registration import past_dispatcher, register
from invflow.ops._transforms import needs_reference, reference_backward

__all__ = ["AffineForm", "affine_coupling", "affine_coupling_reference"]

ScaleName = Literal["sigmoid", "exp", "bounded_exp"]
OrderName = Literal["shift_then_scale", "scale_then_shift"]
PackingName = Literal["cross", "split"]


@dataclass(frozen=True)
class AffineForm:
    r"""How a network's output :math:`h` becomes an elementwise affine map. The default is that of the published
    SRFlow models; ``AffineForm("exp", order="scale_then_shift")`` is that of the papers.

    Args:
        scale: the scale as a function of the raw output :math:`r`: ``"sigmoid"`` is
            :math:`\operatorname{sigmoid}(r + 2) + \text{eps}`, ``"exp"`` is :math:`e^r`, and ``"bounded_exp"`` is
            :math:`e^{a \tanh(r / a)}` with :math:`a` = ``bound``.
        order: ``"shift_then_scale"`` is :math:`y = (x + t) s`, ``"scale_then_shift"`` is :math:`y = x s + t`.
        packing: where shift and raw scale stand in ``h``: ``"cross"`` has shifts in even and scales in odd channels,
            ``"split"`` has shifts in the first half.
        eps: the least scale of ``"sigmoid"``, >= 0; the inverse amplifies by at most 1 / eps.
        bound: the largest absolute log-scale of ``"bounded_exp"``, > 0.

    Raises:
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
        if not (math.isfinite(self.eps) and self.eps >= 0):
            raise ValueError(f"eps must be finite and at least 0, got {self.eps}")
        if not (math.isfinite(self.bound) and self.bound > 0):
            raise ValueError(f"bound must be finite and greater than 0, got {self.bound}")

    @property
    def parameter(self) -> float:
        """The number that goes with ``scale``: eps, bound, or 0 where there is none."""
        return self.eps if self.scale == "sigmoid" else self.bound if self.scale == "bounded_exp" else 0.0

    def flat(self) -> tuple[ScaleName, float, OrderName, PackingName]:
        """Scale, parameter, order and packing, as the registered operators take them."""
        return self.scale, self.parameter, self.order, self.packing

    def unpack(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Shift and raw scale, each (B, C, H, W), from ``h`` (B, 2C, H, W)."""
        if self.packing == "cross":
            return h[:, 0::2], h[:, 1::2]
        half = h.shape[1] // 2
        return h[:, :half], h[:, half:]

    def log_scale(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """The scale and its natural logarithm, of the shape of ``raw``."""
        if self.scale == "sigmoid":
            scale = torch.sigmoid(raw + 2.0) + self.eps
            # without eps the logarithm has a form that stays finite where the sigmoid underflows
            return scale, scale.log() if self.eps else F.logsigmoid(raw + 2.0)
        log_scale = raw if self.scale == "exp" else self.bound * torch.tanh(raw / self.bound)
        return log_scale.exp(), log_scale

    def transform(self, x: Tensor, h: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """The map of ``x`` (B, C, H, W) that ``h`` (B', 2C, H, W) makes, and its log_det (B,), in plain PyTorch."""
        if h.shape[0] != x.shape[0]:
            h = h.repeat_interleave(x.shape[0] // h.shape[0], 0)
        shift, raw = self.unpack(h)
        scale, log_scale = self.log_scale(raw)
        if self.order == "shift_then_scale":
            y = x / scale - shift if inverse else (x + shift) * scale
        else:
            y = (x - shift) / scale if inverse else x * scale + shift
        log_det = log_scale.sum((1, 2, 3))
        return y, -log_det if inverse else log_det


#: The form of the published SRFlow models, and the default everywhere.
PUBLISHED_FORM = AffineForm()


def affine_coupling_reference(
    x: Tensor, h: Tensor, form: AffineForm, start: int, inverse: bool
) -> tuple[Tensor, Tensor]:
    """:func:`affine_coupling` in plain PyTorch: the truth that the kernels are verified against."""
    dtype, stop = compute_dtype(x.dtype), start + h.shape[1] // 2
    part, log_det = form.transform(x[:, start:stop].to(dtype), h.to(dtype), inverse)
    return torch.cat([x[:, :start], part.to(x.dtype), x[:, stop:]], 1), log_det


_FORM = "int start, str scale, float parameter, str order, str packing, bool inverse"
_forward = past_dispatcher(
    register(
        "affine_coupling",
        f"(Tensor x, Tensor h, {_FORM}) -> (Tensor, Tensor)",
        lambda x, h, *form: (empty_state(x), x.new_empty(x.shape[0], dtype=compute_dtype(x.dtype))),
    )
)
_backward = register(
    "affine_coupling_backward",
    f"(Tensor grad_y, Tensor grad_log_det, Tensor x, Tensor h, {_FORM}) -> (Tensor, Tensor)",
    lambda grad_y, grad_log_det, x, h, *form: (empty_state(x), empty_state(h)),
)


class _AffineCoupling(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, h: Tensor, form: AffineForm, start: int, inverse: bool, backend: str
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, h)
        ctx.settings = form, start, inverse, backend
        return _forward(x, h, start, *form.flat(), inverse, backend)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, h = ctx.saved_tensors
        form, start, inverse, backend = ctx.settings
        if torch.is_grad_enabled():
            found = reference_backward(
                lambda x, h: affine_coupling_reference(x, h, form, start, inverse),
                (x, h),
                grads,
                ctx.needs_input_grad[:2],
            )
            return *found, None, None, None, None
        grad_x, grad_h = _backward(*grads, x, h, start, *form.flat(), inverse, backend)
        return grad_x, grad_h, None, None, None, None


def affine_coupling(
    x: Tensor,
    h: Tensor,
    form: AffineForm | None = None,
    *,
    start: int = 0,
    inverse: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Elementwise affine map of channels ``start`` to ``start + C'`` of the state; the other channels pass unchanged.

    With the shift :math:`t` and the scale :math:`s > 0` that ``form`` makes of ``h``, and its default order,
    :math:`y = (x + t) s` and :math:`\log\det = \sum \log s`; the inverse is :math:`x = y / s - t`. An affine coupling
    transforms half of the channels (Dinh et al., Real NVP, 2017, eq. 7), an affine injector all of them
    (Lugmayr et al., SRFlow, 2020, eq. 6).

    Args:
        x: (B, C, H, W), any floating dtype and strides.
        h: (B', 2C', H, W), the network's raw output, any floating dtype and strides. B' is B or a divisor of it: each
            sample of ``h`` then serves B / B' successive samples of ``x``.
        form: how ``h`` becomes shift and scale; default :class:`AffineForm`.
        start: the first channel that is transformed, 0 <= start <= C - C'.
        inverse: apply the inverse map, and return its log-determinant.
        backend: overrides :func:`invflow.use_backend` for this call.

    Returns:
        y (B, C, H, W) with dtype and memory format of ``x``, and log_det (B,), float64 if ``x`` is float64, else
        float32.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape or device, or an unknown backend.
        RuntimeError: an explicitly chosen backend that cannot run this.
    """
    form = PUBLISHED_FORM if form is None else form
    check_state(x)
    check_start(x, start, check_raw_output(x, h))
    check_same_device(x, h=h)
    chosen = select_backend(backend, "affine_coupling", x)
    if chosen == "reference" or needs_reference():
        return affine_coupling_reference(x, h, form, start, inverse)
    if torch.is_grad_enabled() and (x.requires_grad or h.requires_grad):
        return _AffineCoupling.apply(x, h, form, start, inverse, chosen)
    return _forward(x, h, start, *form.flat(), inverse, chosen)
