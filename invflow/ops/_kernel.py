"""The one operator, registered with PyTorch forward and backward, its derivative, and the choice of what runs.

Every public operator is a call of :func:`run` with parts left out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from invflow._numerics import compute_dtype, empty_state
from invflow.backends.protocol import Form, Settings
from invflow.ops._affine_form import AffineForm, affine_form_of
from invflow.ops._reference import flow_step_reference
from invflow.ops._registration import register
from invflow.ops._transforms import needs_reference, reference_backward

__all__ = ["NO_MAP", "run"]

_TENSORS = "Tensor x, Tensor? matrix, Tensor? shift, Tensor? coupling, Tensor? injector"

#: The form of a coupling or injector that is not there.
NO_MAP = Form("exp", 0.0, "scale_then_shift", "split")


def _fake_forward(x: Tensor, *others: Tensor | None) -> tuple[Tensor, Tensor]:
    return empty_state(x), x.new_empty(x.shape[0], dtype=compute_dtype(x.dtype))


def _fake_backward(
    grad_y: Tensor,
    grad_log_det: Tensor,
    x: Tensor,
    matrix: Tensor | None,
    shift: Tensor | None,
    coupling: Tensor | None,
    injector: Tensor | None,
) -> tuple[Tensor, ...]:
    parameters = [x.new_empty(0) if given is None else given.new_empty(given.shape) for given in (matrix, shift)]
    maps = [x.new_empty(0) if h is None else empty_state(h) for h in (coupling, injector)]
    return empty_state(x), *parameters, *maps


_forward = register("flow_step", _TENSORS, "(Tensor, Tensor)", _fake_forward)
_backward = register(
    "flow_step_backward",
    f"Tensor grad_y, Tensor grad_log_det, {_TENSORS}",
    "(Tensor, Tensor, Tensor, Tensor, Tensor)",
    _fake_backward,
)


def run(
    x: Tensor,
    matrix: Tensor | None,
    shift: Tensor | None,
    coupling: Tensor | None,
    injector: Tensor | None,
    settings: Settings,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Run a flow step or a part of it on a backend that can. Nothing is checked.

    Args:
        x: (B, C, H, W).
        matrix: (C, C) or ``None``; then ``shift`` and ``injector`` are ``None`` too.
        shift: (C,) or ``None``.
        coupling: (B', 2C', H, W) or ``None``.
        injector: (B', 2C, H, W) or ``None``.
        settings: forms of coupling and injector, first channel and direction.
        backend: a name that :func:`invflow.backends.select_backend` returned.

    Returns:
        y (B, C, H, W) and the log-determinant (B,) of coupling and injector.
    """
    if backend == "reference" or needs_reference():
        return _reference(x, matrix, shift, coupling, injector, settings)
    if torch.is_grad_enabled() and (
        x.requires_grad
        or (coupling is not None and coupling.requires_grad)
        or (matrix is not None and matrix.requires_grad)
        or (shift is not None and shift.requires_grad)
        or (injector is not None and injector.requires_grad)
    ):
        return _FlowStep.apply(x, matrix, shift, coupling, injector, settings, backend)
    return _forward(x, matrix, shift, coupling, injector, settings, backend)


def _reference(
    x: Tensor,
    matrix: Tensor | None,
    shift: Tensor | None,
    coupling: Tensor | None,
    injector: Tensor | None,
    settings: Settings,
) -> tuple[Tensor, Tensor]:
    forms: list[AffineForm | None] = [
        None if h is None else affine_form_of(form)
        for h, form in ((coupling, settings.coupling), (injector, settings.injector))
    ]
    return flow_step_reference(
        x,
        matrix,
        shift,
        coupling,
        injector,
        coupling_form=forms[0],
        injector_form=forms[1],
        start=settings.start,
        inverse=settings.inverse,
    )


class _FlowStep(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        matrix: Tensor | None,
        shift: Tensor | None,
        coupling: Tensor | None,
        injector: Tensor | None,
        settings: Settings,
        backend: str,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, matrix, shift, coupling, injector)
        ctx.settings, ctx.backend = settings, backend
        y, log_det = _forward(x, matrix, shift, coupling, injector, settings, backend)
        if coupling is None and injector is None:
            ctx.mark_non_differentiable(log_det)  # a constant
        return y, log_det

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *_differentiable_gradients(ctx.settings, inputs, grads, ctx.needs_input_grad), None, None
        found = _backward(*grads, *inputs, ctx.settings, ctx.backend)
        given = [None if tensor is None else grad for tensor, grad in zip(inputs, found, strict=True)]
        return *given, None, None


def _differentiable_gradients(
    settings: Settings, inputs: tuple[Tensor | None, ...], grads: tuple[Tensor, ...], needs: tuple[bool, ...]
) -> list[Tensor | None]:
    present = [position for position, tensor in enumerate(inputs) if tensor is not None]

    def reference(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        arguments: list[Any] = [None] * len(inputs)
        for position, tensor in zip(present, tensors, strict=True):
            arguments[position] = tensor
        x, matrix, shift, coupling, injector = arguments
        return _reference(x, matrix, shift, coupling, injector, settings)

    tensors = [tensor for tensor in inputs if tensor is not None]
    found = reference_backward(reference, tensors, grads, [needs[position] for position in present])
    by_position = dict(zip(present, found, strict=True))
    return [by_position.get(position) for position in range(len(inputs))]
