"""What the compiled backends share: every operator described as the one kernel of ``flow_step`` with parts left out.

Tensors of any floating dtype are described by address, dtype and strides: NCHW and channels_last memory, slices of
channels and expanded batches are used where they are, any other layout is copied once. Results are allocated here, and
nothing is checked: validation happens in the public operators.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from invflow._numerics import compute_dtype, empty_state

DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_SCALES = {"sigmoid": 0, "exp": 1, "bounded_exp": 2}
_ORDERS = {"shift_then_scale": 0, "scale_then_shift": 1}
_PACKINGS = {"cross": 0, "split": 1}

_Form = tuple[str, float, str, str]  # scale, parameter, order, packing
_NO_VIEW = (0, 0, 0, 0, 0)


class FusedOperators:
    """The operators of a backend, made of its two kernels.

    Args:
        forward: called with a step, the view of y and the address of log_det.
        backward: called with a step, the view of grad_y, the address of grad_log_det, the view of grad_x and the
            addresses of grad_matrix and grad_shift.
    """

    def __init__(self, forward: Callable[..., None], backward: Callable[..., None]) -> None:
        self._run_forward = forward
        self._run_backward = backward

    def channel_affine(self, x: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
        """``y[b, o, p] = shift[o] + sum_i matrix[o, i] x[b, i, p]``."""
        return self._forward(Step(x, matrix, shift))[0]

    def channel_affine_backward(self, grad_y: Tensor, x: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of x, matrix and shift: ``M^T g``, ``sum_bp g x^T`` and ``sum_bp g``."""
        step = Step(x, matrix, matrix[0])
        no_grad = torch.zeros(x.shape[0], dtype=compute_dtype(x.dtype), device=x.device)
        return self._backward(step, grad_y, no_grad)

    def affine_coupling(self, x: Tensor, h: Tensor, start: int, *form: Any) -> tuple[Tensor, Tensor]:
        """The transformed state and the log-determinant of every sample; ``form`` is the registered operator's."""
        step = Step(x)
        step.before.append(step.map(h, None, start, form[:4], form[4]))
        return self._forward(step)

    def affine_coupling_backward(
        self, grad_y: Tensor, grad_log_det: Tensor, x: Tensor, h: Tensor, start: int, *form: Any
    ) -> tuple[Tensor, Tensor]:
        """Gradients of x and h."""
        step, grad_h = Step(x), _empty_gradient(x, h)
        step.before.append(step.map(h, grad_h, start, form[:4], form[4]))
        return self._backward(step, grad_y, grad_log_det)[0], grad_h

    def flow_step(
        self,
        x: Tensor,
        matrix: Tensor,
        shift: Tensor,
        coupling: Tensor | None,
        injector: Tensor | None,
        *settings: Any,
    ) -> tuple[Tensor, Tensor]:
        """The transformed state and the log-determinant of every sample; ``settings`` are the registered operator's."""
        step = Step(x, matrix, shift)
        _add_maps(step, coupling, injector, None, None, settings)
        return self._forward(step)

    def flow_step_backward(
        self,
        grad_y: Tensor,
        grad_log_det: Tensor,
        x: Tensor,
        matrix: Tensor,
        shift: Tensor,
        coupling: Tensor | None,
        injector: Tensor | None,
        *settings: Any,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Gradients of x, matrix, shift, coupling and injector, the last two empty where there is none."""
        step = Step(x, matrix, shift)
        grads = [x.new_empty(0) if h is None else _empty_gradient(x, h) for h in (coupling, injector)]
        _add_maps(step, coupling, injector, grads[0], grads[1], settings)
        grad_x, grad_matrix, grad_shift = self._backward(step, grad_y, grad_log_det)
        return grad_x, grad_matrix, grad_shift, grads[0], grads[1]

    def _forward(self, step: Step) -> tuple[Tensor, Tensor]:
        y = empty_state(step.x)
        log_det = torch.empty(step.x.shape[0], dtype=compute_dtype(step.x.dtype), device=step.x.device)
        self._run_forward(step, step.view(y), log_det.data_ptr())
        return y, log_det

    def _backward(self, step: Step, grad_y: Tensor, grad_log_det: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of x, matrix and shift (the last two empty without a matrix); the maps name where those of h go."""
        grad_x, grad_log_det = empty_state(step.x), grad_log_det.contiguous()
        size = 0 if step.matrix is None else step.x.shape[1]
        dtype, device = compute_dtype(step.x.dtype), step.x.device
        grad_matrix = torch.empty(size, size, dtype=dtype, device=device)
        grad_shift = torch.empty(size, dtype=dtype, device=device)
        self._run_backward(
            step,
            step.view(grad_y),
            grad_log_det.data_ptr(),
            step.view(grad_x),
            grad_matrix.data_ptr(),
            grad_shift.data_ptr(),
        )
        return grad_x, grad_matrix, grad_shift


class Step:
    """Arguments of the kernel. Keeps the tensors alive whose addresses it holds."""

    def __init__(self, x: Tensor, matrix: Tensor | None = None, shift: Tensor | None = None) -> None:
        self.kept: list[Tensor] = []
        self.x = x
        self.matrix = None if matrix is None else matrix.contiguous()
        self.shift = None if shift is None else shift.contiguous()
        self.before: list[Any] = []
        self.after: list[Any] = []

    def view(self, tensor: Tensor) -> tuple[int, int, int, int, int]:
        """Address, dtype and strides of samples, channels and pixels; a copy's, if rows of pixels do not line up."""
        tensor, strides = with_pixels_in_line(tensor)
        self.kept.append(tensor)
        return tensor.data_ptr(), DTYPES[tensor.dtype], *strides

    def map(self, h: Tensor, grad_h: Tensor | None, start: int, form: _Form, inverse: bool) -> tuple[Any, ...]:
        """The elementwise map of the channels from ``start`` on that ``h`` makes, for ``before`` or ``after``."""
        scale, parameter, order, packing = form
        repeat = max(1, self.x.shape[0] // h.shape[0]) if h.shape[0] else 1
        views = self.view(h), _NO_VIEW if grad_h is None else self.view(grad_h)
        words = _SCALES[scale], parameter, _ORDERS[order], _PACKINGS[packing]
        return *views, start, h.shape[1] // 2, repeat, *words, inverse

    def arguments(self) -> tuple[Any, ...]:
        """As ``csrc/include/invflow/tuples.h`` reads them."""
        batch, channels, height, width = self.x.shape
        matrix, shift = (0 if tensor is None else tensor.data_ptr() for tensor in (self.matrix, self.shift))
        return batch, channels, height * width, self.view(self.x), matrix, shift, self.before, self.after


def with_pixels_in_line(tensor: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """The tensor, or a copy if rows of pixels do not line up, and its strides of samples, channels and pixels."""
    samples, channels, rows, columns = tensor.stride()
    _, _, height, width = tensor.shape
    if width == 1:
        columns = rows
    elif height != 1 and rows != width * columns:
        tensor = tensor.contiguous()
        samples, channels, _, columns = tensor.stride()
    return tensor, (samples, channels, columns)


def _empty_gradient(x: Tensor, h: Tensor) -> Tensor:
    """Memory for the gradient of ``h``: zero where no sample of ``x`` contributes to it, else of any content."""
    return empty_state(h) if x.shape[0] else empty_state(h).zero_()


def _add_maps(
    step: Step,
    coupling: Tensor | None,
    injector: Tensor | None,
    grad_coupling: Tensor | None,
    grad_injector: Tensor | None,
    settings: tuple[Any, ...],
) -> None:
    start, inverse = settings[0], settings[9]
    if coupling is not None:
        step.before.append(step.map(coupling, grad_coupling, start, settings[1:5], inverse))
    if injector is not None:
        place = step.before if inverse else step.after
        place.append(step.map(injector, grad_injector, 0, settings[5:9], inverse))
