"""Flow steps of states of few pixels: the channel map as a product of matrices, between elementwise kernels.

The compiled kernels compute with pixels side by side. A vector is one pixel, which leaves most lanes of an instruction
idle and reads the matrix anew for every sample. Here the pixels of all samples are the rows of one matrix, with their
channels side by side. To a kernel, a map of C' channels then is that of one channel with C' pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from invflow._numerics import KERNEL_DTYPES, compute_dtype, empty_state
from invflow.backends.native import NO_VIEW, Step, View, words
from invflow.backends.protocol import Call, Form, Gradients

__all__ = ["rows_backward", "rows_forward", "suits_rows"]

#: With as many pixels, kernels of pixels are faster at any size.
_TOO_MANY_PIXELS = 8
#: Least work for rows, which are set up at a fixed cost: B C^2 with a matrix, B C without; of one pixel, and of more.
_LEAST_WORK = {(True, True): 8192, (True, False): 65536, (False, True): 1024, (False, False): 2048}


def suits_rows(call: Call) -> bool:
    """Return whether a call is faster in rows, by what was measured on a CPU."""
    batch, channels, height, width = call[0].shape
    pixels = height * width
    if pixels >= _TOO_MANY_PIXELS or pixels == 0:
        return False
    x, matrix, _, coupling, injector, _ = call
    has_matrix = matrix is not None
    if batch * channels * (channels if has_matrix else 1) <= _LEAST_WORK[has_matrix, pixels == 1]:
        return False
    tensors = [tensor for tensor in (x, matrix, coupling, injector) if tensor is not None]
    # what has no memory is refused, or made, where pixels lie side by side
    if not all(map(Tensor.data_ptr, tensors)):
        return False
    return pixels == 1 or all(h is None or h.shape[0] == batch for h in (coupling, injector))


def rows_forward(call: Call, extension: Any) -> tuple[Tensor, Tensor]:
    """Return y and log_det (see :class:`invflow.backends.protocol.Backend`)."""
    x, matrix, shift = call[:3]
    before, after = _maps(call)
    y, dtype = empty_state(x), compute_dtype(x.dtype)
    result = _result_rows(y, dtype)
    if matrix is None or shift is None:
        result.copy_(_rows(x))
        log_dets = [each.apply(extension, result) for each in before]
    else:
        state = _copied(x, dtype) if before else _rows(x).to(dtype)
        log_dets = [each.apply(extension, state) for each in before]
        torch.addmm(shift, state, matrix.t(), out=result)
        log_dets += [each.apply(extension, result) for each in after]
    _deliver(result, y)
    if not log_dets:
        return y, result.new_zeros(x.shape[0])
    log_det = log_dets[0] if len(log_dets) == 1 else log_dets[0] + log_dets[1]
    batch = x.shape[0]  # len() of a tensor takes as long as some kernels
    return y, log_det if log_det.shape[0] == batch else log_det.view(batch, -1).sum(1)


def rows_backward(grad_y: Tensor, grad_log_det: Tensor, call: Call, extension: Any) -> Gradients:
    """Return the gradients (see :class:`invflow.backends.protocol.Backend`)."""
    x, matrix, shift = call[:3]
    before, after = _maps(call)
    grad_x, dtype = empty_state(x), compute_dtype(x.dtype)
    # products are given their results' memory, which autocast then leaves in its dtype
    grad_matrix, grad_shift, result = None, None, _result_rows(grad_x, dtype)
    pixels = x.shape[2] * x.shape[3]
    grad_log_det = grad_log_det.contiguous() if pixels == 1 else grad_log_det.repeat_interleave(pixels)
    state, arguments = _rows(x).to(dtype), []
    for each in before:
        arguments.append(state)
        if matrix is not None or each is not before[-1]:
            state = state.clone(memory_format=torch.contiguous_format)
            each.apply(extension, state)
    if matrix is None or shift is None:
        result.copy_(_rows(grad_y))
    else:
        grad = _copied(grad_y, dtype) if after else _rows(grad_y).to(dtype)
        for each in after:
            argument = torch.addmm(shift, state, matrix.t(), out=torch.empty_like(grad))
            each.differentiate(extension, argument, grad, grad_log_det)
        grad_matrix, grad_shift = torch.empty(matrix.shape, dtype=dtype), grad.sum(0)
        torch.mm(grad.t(), state, out=grad_matrix)
        torch.mm(grad, matrix, out=result)
    for each, argument in zip(reversed(before), reversed(arguments), strict=True):
        each.differentiate(extension, argument, result, grad_log_det)
    _deliver(result, grad_x)
    maps = {each.name: each.grad_h for each in (*before, *after)}
    return grad_x, grad_matrix, grad_shift, maps.get("coupling"), maps.get("injector")


class _RowMap:
    """An elementwise map of rows.

    Attributes:
        name: ``"coupling"`` or ``"injector"``.
        grad_h: the gradient of the network's output, once it is known.
    """

    def __init__(self, name: str, call: Call, h: Tensor, start: int, form: Form) -> None:
        self.name, self._given, self._h = name, h, _rows(h)
        self.grad_h: Tensor | None = None
        self._start, self._form, self._outputs = start, form, form.outputs
        self._count = h.shape[1] // self._outputs
        samples = h.shape[0]
        self._repeat = max(1, call.x.shape[0] // samples) if samples else 1
        self._rest = (*words(form), call.settings.inverse)

    def apply(self, extension: Any, state: Tensor) -> Tensor:
        """Apply the map to rows (R, C) in place, and return their log-determinants (R,)."""
        log_det = torch.empty(state.shape[0], dtype=state.dtype)
        view = self._part(state)
        extension.flow_step(self._step(state, NO_VIEW), view, log_det.data_ptr())
        return log_det

    def differentiate(self, extension: Any, state: Tensor, grad: Tensor, grad_log_det: Tensor) -> None:
        """Keep the gradient of h, and turn the gradient of the map's result into that of its argument, in place.

        Args:
            state: the argument (R, C).
            grad: gradient of the result (R, C).
            grad_log_det: gradient of the log-determinants (R,).
        """
        self.grad_h = empty_state(self._given)
        rows, view = _result_rows(self.grad_h, self._given.dtype), self._part(grad)
        step = self._step(state, self._view_of_h(rows))
        extension.flow_step_backward(step, view, grad_log_det.data_ptr(), view, 0, 0)
        _deliver(rows, self.grad_h)

    def _step(self, state: Tensor, grad_h: View) -> Step:
        of_h = (self._view_of_h(self._h), grad_h, 0, 1, self._repeat, *self._rest)
        return state.shape[0], 1, self._count, self._part(state), 0, 0, [of_h], []

    def _part(self, state: Tensor) -> View:
        samples, channels = state.stride()
        address = state.data_ptr() + self._start * channels * state.element_size()
        return address, KERNEL_DTYPES[state.dtype], samples, 0, channels

    def _view_of_h(self, h: Tensor) -> View:
        samples, channels = h.stride()
        if self._form.packing == "cross" and self._outputs == 2:
            return h.data_ptr(), KERNEL_DTYPES[h.dtype], samples, channels, 2 * channels
        return h.data_ptr(), KERNEL_DTYPES[h.dtype], samples, self._count * channels, channels


def _maps(call: Call) -> tuple[list[_RowMap], list[_RowMap]]:
    """Return the elementwise maps before and after the matrix."""
    settings = call.settings
    before: list[_RowMap] = []
    after: list[_RowMap] = []
    if call.coupling is not None:
        before.append(_RowMap("coupling", call, call.coupling, settings.start, settings.coupling))
    if call.injector is not None:
        place = before if settings.inverse else after
        place.append(_RowMap("injector", call, call.injector, 0, settings.injector))
    return before, after


def _rows(x: Tensor) -> Tensor:
    """Return a state (B, C, H, W) as rows (B H W, C): a view of one pixel, and where the channels are neighbours."""
    if x.shape[2] * x.shape[3] == 1:
        return x.view(x.shape[0], x.shape[1])
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _copied(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the rows of a state in new memory, row by row."""
    rows = _rows(x)
    return torch.empty(rows.shape, dtype=dtype).copy_(rows)


def _result_rows(y: Tensor, dtype: torch.dtype) -> Tensor:
    """Return rows of a dtype to write a new state into: its own memory, if it has that dtype and order."""
    if y.dtype is dtype and (y.shape[2] * y.shape[3] == 1 or y.stride(1) == 1):
        return _rows(y)
    return torch.empty((y.shape[0] * y.shape[2] * y.shape[3], y.shape[1]), dtype=dtype)


def _deliver(rows: Tensor, y: Tensor) -> None:
    """Bring rows that were written to where they belong, if they are elsewhere."""
    if rows.data_ptr() != y.data_ptr():
        batch, channels, height, width = y.shape
        y.copy_(rows.view(batch, height, width, channels).permute(0, 3, 1, 2))
