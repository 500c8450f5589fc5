"""``flow_step``: everything between two coupling networks of a flow, in one pass over the state."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from invflow._numerics import compute_dtype, empty_state
from invflow.backends import select_backend
from invflow.ops._affine_coupling import PUBLISHED_FORM, AffineForm, affine_coupling_reference
from invflow.ops._channel_affine import channel_affine_reference
from invflow.ops._checks import check_affine, check_raw_output, check_same_device, check_start, check_state
from invflow.ops._registration import past_dispatcher, register
from invflow.ops._transforms import needs_reference, reference_backward

__all__ = ["flow_step", "flow_step_reference"]


def flow_step_reference(
    x: Tensor,
    matrix: Tensor,
    shift: Tensor,
    coupling: Tensor | None,
    injector: Tensor | None,
    coupling_form: AffineForm,
    injector_form: AffineForm,
    start: int,
    inverse: bool,
) -> tuple[Tensor, Tensor]:
    """:func:`flow_step` in plain PyTorch: the truth that the kernels are verified against."""
    y = x.to(compute_dtype(x.dtype))
    log_det = y.new_zeros(x.shape[0])
    if coupling is not None:
        y, part = affine_coupling_reference(y, coupling, coupling_form, start, inverse)
        log_det = log_det + part
    if not inverse:
        y = channel_affine_reference(y, matrix, shift)
    if injector is not None:
        y, part = affine_coupling_reference(y, injector, injector_form, 0, inverse)
        log_det = log_det + part
    if inverse:
        y = channel_affine_reference(y, matrix, shift)
    return y.to(x.dtype), log_det


_SETTINGS = (
    "int start, str coupling_scale, float coupling_parameter, str coupling_order, str coupling_packing, "
    "str injector_scale, float injector_parameter, str injector_order, str injector_packing, bool inverse"
)
_forward = past_dispatcher(
    register(
        "flow_step",
        f"(Tensor x, Tensor matrix, Tensor shift, Tensor? coupling, Tensor? injector, {_SETTINGS}) -> (Tensor, Tensor)",
        lambda x, *rest: (empty_state(x), x.new_empty(x.shape[0], dtype=compute_dtype(x.dtype))),
    )
)


def _empty_or_none(h: Tensor | None, x: Tensor) -> Tensor:
    return x.new_empty(0) if h is None else empty_state(h)


_backward = register(
    "flow_step_backward",
    "(Tensor grad_y, Tensor grad_log_det, Tensor x, Tensor matrix, Tensor shift, Tensor? coupling, Tensor? injector, "
    f"{_SETTINGS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    lambda grad_y, grad_log_det, x, matrix, shift, coupling, injector, *rest: (
        empty_state(x),
        matrix.new_empty(matrix.shape),
        shift.new_empty(shift.shape),
        _empty_or_none(coupling, x),
        _empty_or_none(injector, x),
    ),
)


class _Settings(NamedTuple):
    coupling_form: AffineForm
    injector_form: AffineForm
    start: int
    inverse: bool

    def flat(self) -> tuple[Any, ...]:
        """As the registered operators take them."""
        return self.start, *self.coupling_form.flat(), *self.injector_form.flat(), self.inverse

    def reference(
        self, x: Tensor, matrix: Tensor, shift: Tensor, coupling: Tensor | None, injector: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return flow_step_reference(
            x, matrix, shift, coupling, injector, self.coupling_form, self.injector_form, self.start, self.inverse
        )


class _FlowStep(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        matrix: Tensor,
        shift: Tensor,
        coupling: Tensor | None,
        injector: Tensor | None,
        settings: _Settings,
        backend: str,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, matrix, shift, coupling, injector)
        ctx.settings, ctx.backend = settings, backend
        y, log_det = _forward(x, matrix, shift, coupling, injector, *settings.flat(), backend)
        if coupling is None and injector is None:
            ctx.mark_non_differentiable(log_det)  # a constant
        return y, log_det

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *_differentiable_gradients(ctx.settings, inputs, grads, ctx.needs_input_grad), None, None
        found = _backward(*grads, *inputs, *ctx.settings.flat(), ctx.backend)
        given = [None if tensor is None else grad for tensor, grad in zip(inputs, found, strict=True)]
        return *given, None, None


def _differentiable_gradients(
    settings: _Settings, inputs: tuple[Tensor | None, ...], grads: tuple[Tensor, ...], needs: tuple[bool, ...]
) -> list[Tensor | None]:
    present = [position for position, tensor in enumerate(inputs) if tensor is not None]

    def reference(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        arguments: list[Any] = [None] * len(inputs)
        for position, tensor in zip(present, tensors, strict=True):
            arguments[position] = tensor
        return settings.reference(*arguments)

    tensors = [tensor for tensor in inputs if tensor is not None]
    found = reference_backward(reference, tensors, grads, [needs[position] for position in present])
    by_position = dict(zip(present, found, strict=True))
    return [by_position.get(position) for position in range(len(inputs))]


def flow_step(
    x: Tensor,
    matrix: Tensor,
    shift: Tensor,
    coupling: Tensor | None = None,
    injector: Tensor | None = None,
    *,
    coupling_form: AffineForm | None = None,
    injector_form: AffineForm | None = None,
    start: int | None = None,
    inverse: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Everything between two coupling networks in one pass over the state, which is read once and written once.

    Encoding, the affine coupling of one step, the affine map of the channels (actnorm and 1x1 convolution) and the
    affine injector of the next step follow each other; decoding, the inverse coupling, the inverse injector and the
    inverse affine map of one step:

    ====================  ============================================================
    ``inverse=False``     coupling, then :math:`M x + v`, then injector
    ``inverse=True``      inverse coupling, then inverse injector, then :math:`M x + v`
    ====================  ============================================================

    In the second case ``matrix`` and ``shift`` are already those of the inverse map. Coupling and injector are as in
    :func:`affine_coupling`; the log-determinant of the affine map is the caller's, as in :func:`channel_affine`.

    Args:
        x: (B, C, H, W), any floating dtype and strides.
        matrix: M (C, C), float64 if ``x`` is, else float32.
        shift: v (C,), the same dtype as ``matrix``.
        coupling: (B, 2C', H, W), raw output of the coupling's network; ``None`` leaves the coupling out.
        injector: (B, 2C, H, W), raw output of the injector's network; ``None`` leaves the injector out.
        coupling_form: how ``coupling`` becomes shift and scale; default :class:`AffineForm`.
        injector_form: how ``injector`` does.
        start: the first channel that the coupling transforms; default C - C', the last channels.
        inverse: which of the two orders.
        backend: overrides :func:`invflow.use_backend` for this call.

    The batch of ``coupling`` and ``injector`` may be a divisor B' of B: each of their samples then serves B / B'
    successive samples of ``x``.

    Returns:
        y (B, C, H, W) with dtype and memory format of ``x``, and log_det (B,) of coupling and injector, float64 if
        ``x`` is float64, else float32. Half-precision states are computed in float32 and rounded once.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape or device, or an unknown backend.
        RuntimeError: an explicitly chosen backend that cannot run this.
    """
    check_state(x)
    check_affine(x, matrix, shift)
    check_same_device(x, matrix=matrix, shift=shift)
    if coupling is not None:
        count = check_raw_output(x, coupling, "coupling")
        start = x.shape[1] - count if start is None else start
        check_start(x, start, count)
        check_same_device(x, coupling=coupling)
    if injector is not None:
        if check_raw_output(x, injector, "injector") != x.shape[1]:
            raise ValueError(f"injector must have {2 * x.shape[1]} channels, got {injector.shape[1]}")
        check_same_device(x, injector=injector)
    settings = _Settings(coupling_form or PUBLISHED_FORM, injector_form or PUBLISHED_FORM, start or 0, inverse)
    chosen = select_backend(backend, "flow_step", x)
    tensors = (x, matrix, shift, coupling, injector)
    if chosen == "reference" or needs_reference():
        return settings.reference(*tensors)
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
        return _FlowStep.apply(*tensors, settings, chosen)
    return _forward(*tensors, *settings.flat(), chosen)
