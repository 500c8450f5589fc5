"""The one operator, registered with PyTorch forward and backward, its derivative, and the choice of what runs.

Every public operator is a call of :func:`run` with parts left out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from invflow._numerics import compute_dtype, empty_state
from invflow.backends.protocol import Call, Form, Settings
from invflow.ops._affine_form import affine_form_of
from invflow.ops._pixels import as_image
from invflow.ops._reference import flow_step_reference
from invflow.ops._registration import register
from invflow.ops._transforms import is_intercepted, needs_reference, reference_backward

__all__ = ["NO_MAP", "run"]

#: The form of a coupling or injector that is not there.
NO_MAP = Form("exp", 0.0, "scale_then_shift", "split")


def _fake_forward(x: Tensor, *others: Tensor | None) -> tuple[Tensor, Tensor]:
    return empty_state(x), x.new_empty(x.shape[0], dtype=compute_dtype(x.dtype))


def _fake_backward(grad_y: Tensor, grad_log_det: Tensor, x: Tensor, *others: Tensor | None) -> tuple[Tensor, ...]:
    parameters = [x.new_empty(0) if given is None else given.new_empty(given.shape) for given in others[:2]]
    maps = [x.new_empty(0) if h is None else empty_state(h) for h in others[2:]]
    return empty_state(x), *parameters, *maps


_forward = register("flow_step", (), 2, _fake_forward)
_backward = register("flow_step_backward", ("grad_y", "grad_log_det"), 5, _fake_backward)


def run(call: Call, backend: str) -> tuple[Tensor, Tensor]:
    """Run a flow step or a part of it on a backend that can. Nothing is checked.

    Args:
        call: without a matrix it has a coupling and no injector.
        backend: a name that :func:`invflow.backends.select_backend` returned.

    Returns:
        y (B, C, *) and the log-determinant (B,) of coupling and injector.
    """
    intercepted = is_intercepted()
    if intercepted and torch.compiler.is_compiling():
        call = Call(*call[:-1], _as_constants(call.settings))
    if backend == "reference" or needs_reference():
        return _reference(call)
    if call.x.dim() != 4:
        y, log_det = run(_of_images(call), backend)
        return y.reshape(call.x.shape), log_det
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in call[:-1]):
        return _FlowStep.apply(*call, backend)
    return _forward(call, backend, intercepted)


def _of_images(call: Call) -> Call:
    x, matrix, shift, coupling, injector, settings = call
    coupling, injector = (None if h is None else as_image(h) for h in (coupling, injector))
    return Call(as_image(x), matrix, shift, coupling, injector, settings)


def _as_constants(settings: Settings) -> Settings:
    """Return the settings with every number a constant of the graph.

    A compiler with dynamic shapes would make inputs of them, one of which it cannot hand to two kernels. It takes the
    value of what a set holds, with a guard.
    """

    def constant(value: Any) -> Any:
        (known,) = {value}
        return known

    def fixed(form: Form) -> Form:
        return Form(form.scale, constant(form.parameter), form.order, form.packing)

    return Settings(fixed(settings.coupling), fixed(settings.injector), constant(settings.start), settings.inverse)


def _reference(call: Call) -> tuple[Tensor, Tensor]:
    x, matrix, shift, coupling, injector, settings = call
    return flow_step_reference(
        x,
        matrix,
        shift,
        coupling,
        injector,
        coupling_form=affine_form_of(settings.coupling),
        injector_form=affine_form_of(settings.injector),
        start=settings.start,
        inverse=settings.inverse,
    )


class _FlowStep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor]:
        *fields, ctx.backend = args
        call = Call(*fields)
        ctx.save_for_backward(*call[:-1])
        ctx.settings = call.settings
        y, log_det = _forward(call, ctx.backend, is_intercepted())
        of_coupling, of_injector = call.settings[:2]
        if (call.coupling is None or of_coupling.scale == "none") and (
            call.injector is None or of_injector.scale == "none"
        ):
            ctx.mark_non_differentiable(log_det)  # a constant
        return y, log_det

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, matrix, shift, coupling, injector = ctx.saved_tensors
        call = Call(x, matrix, shift, coupling, injector, ctx.settings)
        if torch.is_grad_enabled():
            return *_differentiable_gradients(call, grads, ctx.needs_input_grad), None, None
        found = _backward(*grads, call, ctx.backend, is_intercepted())
        given = [None if tensor is None else grad for tensor, grad in zip(call[:-1], found, strict=True)]
        return *given, None, None


def _differentiable_gradients(call: Call, grads: tuple[Tensor, ...], needs: tuple[bool, ...]) -> list[Tensor | None]:
    inputs = call[:-1]
    present = [position for position, tensor in enumerate(inputs) if tensor is not None]

    def reference(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        fields: list[Any] = [*inputs, call.settings]
        for position, tensor in zip(present, tensors, strict=True):
            fields[position] = tensor
        return _reference(Call(*fields))

    tensors = [tensor for tensor in inputs if tensor is not None]
    found = reference_backward(reference, tensors, grads, [needs[position] for position in present])
    by_position = dict(zip(present, found, strict=True))
    return [by_position.get(position) for position in range(len(inputs))]
