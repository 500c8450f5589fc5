"""Calls of ordinary tensors on the CPU: one function in C++ checks them, makes the results and runs the kernel.

A small state takes less time than Python needs to look at its tensors one by one. What is out of the ordinary is
declined, and so is what is wrong. The caller then goes the general way, which can do everything and explains errors.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from invflow._numerics import compute_dtype, pixels_of
from invflow.backends import current_backend
from invflow.backends._cpu import cpu
from invflow.backends.native import form_of_words, words
from invflow.backends.protocol import Call, Settings
from invflow.ops._affine_form import PUBLISHED_FORM, AffineForm
from invflow.ops._kernel import NO_MAP, run
from invflow.ops._transforms import reference_backward

__all__ = ["have_numbers", "numbers_of", "ordinary_call"]

_logger = logging.getLogger("invflow")
#: Wider vectors with more work go to PyTorch's products of matrices (see invflow/backends/rows.py), as in
#: csrc/cpu/ordinary.cpp.
_WIDEST_VECTOR, _LEAST_ROWS = 512, 1024


def ordinary_call(
    x: Tensor,
    matrix: Tensor | None,
    shift: Tensor | None,
    coupling: Tensor | None,
    injector: Tensor | None,
    *,
    coupling_form: AffineForm | None = None,
    injector_form: AffineForm | None = None,
    start: int | None = None,
    inverse: bool = False,
    backend: str | None = None,
    log_scale: Tensor | None = None,
    log_abs_det: Tensor | None = None,
    matrix_inverse: Tensor | None = None,
) -> tuple[Tensor, Tensor] | None:
    """Run a flow step or a part of it, or return ``None`` where that takes the general way.

    Args:
        x, matrix, shift, coupling, injector: as :func:`invflow.flow_step` takes them. Without a matrix there is only a
            coupling.
        coupling_form, injector_form, start, inverse, backend: likewise.
        log_scale: (C,) of an actnorm. Matrix and shift are the convolution's weight and the actnorm's bias then, and
            the channel map is derived from the three.
        log_abs_det: ``log |det|`` of the matrix, a float64 scalar that needs no gradient. Log-determinants then include
            that of the channel map.
        matrix_inverse: inverse (C, C) of the weight, float64, if there is a log_scale.
    """
    if torch.compiler.is_compiling() or not (isinstance(x, Tensor) and x.is_cpu):
        return None
    shape = x.shape
    if len(shape) == 2 and shape[1] > _WIDEST_VECTOR and shape[0] * shape[1] > _LEAST_ROWS:
        return None  # before anything is done twice
    chosen = current_backend() if backend is None else backend
    extension = cpu.extension
    # the general way logs its choice
    if extension is None or not (chosen == "auto" or chosen == "cpu") or _logger.isEnabledFor(logging.DEBUG):
        return None
    forms = (coupling_form or PUBLISHED_FORM).words, (injector_form or PUBLISHED_FORM).words
    rest = coupling, injector, forms, start, inverse
    found = extension.forward_of_tensors(x, matrix, shift, log_scale, log_abs_det, *rest)
    if found is False:  # a gradient is asked for
        found = _FlowStep.apply(extension, x, matrix, shift, log_scale, log_abs_det, matrix_inverse, *rest)
    result: tuple[Tensor, Tensor] | None = found
    return result


def numbers_of(tensors: list[Tensor]) -> bytes | None:
    """Return dtypes, shapes and values of tensors; ``None`` if one of them is out of the ordinary."""
    extension = cpu.extension
    return None if extension is None else extension.numbers_of(tensors)


def have_numbers(tensors: list[Tensor], numbers: bytes) -> bool:
    """Return whether tensors are ordinary and have what :func:`numbers_of` returned, bit by bit."""
    extension = cpu.extension
    return extension is not None and extension.have_numbers(tensors, numbers)


class _FlowStep(torch.autograd.Function):
    """Returns ``None`` for what is declined. Profiles and messages name it as they name the general way."""

    @staticmethod
    def forward(
        ctx: Any,
        extension: Any,
        x: Tensor,
        matrix: Tensor | None,
        shift: Tensor | None,
        log_scale: Tensor | None,
        log_abs_det: Tensor | None,
        matrix_inverse: Tensor | None,
        coupling: Tensor | None,
        injector: Tensor | None,
        *rest: Any,
    ) -> tuple[Tensor, Tensor] | None:
        found: tuple[Tensor, Tensor] | None
        found = extension.forward_of_tensors(x, matrix, shift, log_scale, log_abs_det, coupling, injector, *rest)
        if found is None:
            return None
        ctx.save_for_backward(x, matrix, shift, log_scale, matrix_inverse, coupling, injector)
        ctx.extension, ctx.rest = extension, rest
        if log_scale is None:
            of_coupling, of_injector = rest[0]
            if (coupling is None or of_coupling[0] == _NO_SCALE) and (injector is None or of_injector[0] == _NO_SCALE):
                ctx.mark_non_differentiable(found[1])  # a constant
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            return _general_gradients(ctx, grads)
        arguments = *ctx.saved_tensors, *ctx.rest
        found = ctx.extension.backward_of_tensors(*grads, *arguments)
        if found is None:
            return _general_gradients(ctx, grads)
        x, matrix, shift, log_scale, coupling, injector = found
        return None, x, matrix, shift, log_scale, None, None, coupling, injector, None, None, None


_NO_SCALE = words(AffineForm("none").for_kernels())[0]


def _general_gradients(ctx: Any, grads: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
    """Compute the gradients by the general way: differentiable ones, or of gradients that are out of the ordinary."""
    x, matrix, shift, log_scale, _, coupling, injector = ctx.saved_tensors
    (of_coupling, of_injector), start, inverse = ctx.rest
    inputs = x, matrix, shift, log_scale, coupling, injector
    present = [position for position, tensor in enumerate(inputs) if tensor is not None]

    def general(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        given: list[Any] = [None] * len(inputs)
        for position, tensor in zip(present, tensors, strict=True):
            given[position] = tensor
        x, matrix, shift, log_scale, coupling, injector = given
        of_map: Tensor | float = 0.0
        if log_scale is not None:
            matrix, shift, log_abs_det = _derived(matrix, shift, log_scale, compute_dtype(x.dtype))
            of_map = (pixels_of(x) * log_abs_det).to(matrix.dtype)
        at = start
        if at is None:
            at = 0 if coupling is None else x.shape[1] - coupling.shape[1] // form_of_words(of_coupling).outputs
        # the words of what is not there may be none
        settings = Settings(
            NO_MAP if coupling is None else form_of_words(of_coupling),
            NO_MAP if injector is None else form_of_words(of_injector),
            at,
            inverse,
        )
        y, log_det = run(Call(x, matrix, shift, coupling, injector, settings), "cpu")
        return y, log_det + of_map

    places = (1, 2, 3, 4, 7, 8)  # of the inputs among the arguments of forward
    needs = [ctx.needs_input_grad[places[position]] for position in present]
    tensors = [tensor for tensor in inputs if tensor is not None]
    found = reference_backward(general, tensors, grads, needs, differentiable=torch.is_grad_enabled())
    results: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
    for position, grad in zip(present, found, strict=True):
        results[places[position]] = grad
    return tuple(results)


def _derived(weight: Tensor, bias: Tensor, log_scale: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return matrix and shift of an actnorm and a convolution, and ``log |det|`` of the matrix in float64."""
    exact, log_scale = weight.double(), log_scale.double()
    matrix = exact * log_scale.exp()
    log_abs_det = log_scale.sum() + torch.linalg.slogdet(exact).logabsdet
    return matrix.to(dtype), torch.mv(matrix, bias.double()).to(dtype), log_abs_det
