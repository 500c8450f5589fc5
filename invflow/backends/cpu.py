"""The native CPU backend: calls the compiled extension ``invflow._C`` with addresses, sizes and strides.

Every operator is the one kernel of ``flow_step`` with parts left out. Functions here take tensors of any floating
dtype; NCHW and channels_last memory, slices of channels and expanded batches are used where they are, any other layout
is copied once. They allocate their results and check nothing: validation happens in the public operators.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

try:
    _C: Any = importlib.import_module("invflow._C")
except ImportError as error:
    _C, _import_error = None, str(error)
else:
    _import_error = ""
    _C.instruction_set()  # a wrong INVFLOW_CPU_ISA is an error now, not at the first kernel

_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_SCALES = {"sigmoid": 0, "exp": 1, "bounded_exp": 2}
_ORDERS = {"shift_then_scale": 0, "scale_then_shift": 1}
_PACKINGS = {"cross": 0, "split": 1}

_Form = tuple[str, float, str, str]  # scale, parameter, order, packing
_NO_VIEW = (0, 0, 0, 0, 0)


def unavailable() -> str:
    """Why this backend cannot run here at all; empty if it can."""
    return f"the extension invflow._C could not be imported ({_import_error})" if _C is None else ""


def why_not(op: str, x: Tensor) -> str:
    """Why this backend cannot run ``op`` on tensors like ``x``; empty if it can."""
    if reason := unavailable():
        return reason
    if x.device.type != "cpu":
        return f"it needs tensors on the CPU, got {x.device}"
    if x.dtype not in _DTYPES:
        return f"it needs float32, float64, bfloat16 or float16, got {x.dtype}"
    return ""


def build_facts() -> dict[str, str]:
    """What the extension was built with and uses here, for ``python -m invflow.info``."""
    return {
        "compiler": _C.compiler,
        "instruction set": f"{_C.instruction_set()} of {'/'.join(_C.supported_instruction_sets())}",
        "OpenMP": "yes" if _C.has_openmp() else "no",
        "version": _C.version,
    }


def channel_affine(x: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
    """``y[b, o, p] = shift[o] + sum_i matrix[o, i] x[b, i, p]``."""
    return _forward(_Step(x, matrix, shift))[0]


def channel_affine_backward(grad_y: Tensor, x: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, matrix and shift: ``M^T g``, ``sum_bp g x^T`` and ``sum_bp g``."""
    step = _Step(x, matrix, matrix[0])
    grad_x, grad_matrix, grad_shift = _backward(step, grad_y, _zeros_of(x))
    return grad_x, grad_matrix, grad_shift


def affine_coupling(x: Tensor, h: Tensor, start: int, *form: Any) -> tuple[Tensor, Tensor]:
    """The transformed state and the log-determinant of every sample; ``form`` is that of the registered operator."""
    step = _Step(x)
    step.before.append(_map(step, h, None, start, form[:4], form[4]))
    return _forward(step)


def affine_coupling_backward(
    grad_y: Tensor, grad_log_det: Tensor, x: Tensor, h: Tensor, start: int, *form: Any
) -> tuple[Tensor, Tensor]:
    """Gradients of x and h."""
    step, grad_h = _Step(x), _empty_like(h)
    step.before.append(_map(step, h, grad_h, start, form[:4], form[4]))
    return _backward(step, grad_y, grad_log_det)[0], grad_h


def flow_step(
    x: Tensor, matrix: Tensor, shift: Tensor, coupling: Tensor | None, injector: Tensor | None, *settings: Any
) -> tuple[Tensor, Tensor]:
    """The transformed state and the log-determinant of every sample; ``settings`` are the registered operator's."""
    step = _Step(x, matrix, shift)
    _add_maps(step, coupling, injector, None, None, settings)
    return _forward(step)


def flow_step_backward(
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
    step = _Step(x, matrix, shift)
    grads = [torch.empty(0, dtype=x.dtype) if h is None else _empty_like(h) for h in (coupling, injector)]
    _add_maps(step, coupling, injector, grads[0], grads[1], settings)
    grad_x, grad_matrix, grad_shift = _backward(step, grad_y, grad_log_det)
    return grad_x, grad_matrix, grad_shift, grads[0], grads[1]


class _Step:
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
        samples, channels, rows, columns = tensor.stride()
        _, _, height, width = tensor.shape
        if width == 1:
            columns = rows
        elif height != 1 and rows != width * columns:
            tensor = tensor.contiguous()
            samples, channels, _, columns = tensor.stride()
        self.kept.append(tensor)
        return tensor.data_ptr(), _DTYPES[tensor.dtype], samples, channels, columns

    def arguments(self) -> tuple[Any, ...]:
        batch, channels, height, width = self.x.shape
        matrix, shift = (0 if tensor is None else tensor.data_ptr() for tensor in (self.matrix, self.shift))
        return batch, channels, height * width, self.view(self.x), matrix, shift, self.before, self.after


def _empty_like(x: Tensor) -> Tensor:
    if x.is_contiguous():
        return torch.empty_like(x)
    channels_last = x.is_contiguous(memory_format=torch.channels_last)
    return torch.empty_like(x, memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _zeros_of(x: Tensor) -> Tensor:
    return torch.zeros(x.shape[0], dtype=_compute_dtype(x))


def _map(step: _Step, h: Tensor, grad_h: Tensor | None, start: int, form: _Form, inverse: bool) -> tuple[Any, ...]:
    scale, parameter, order, packing = form
    repeat = step.x.shape[0] // h.shape[0] if h.shape[0] else 1
    views = step.view(h), _NO_VIEW if grad_h is None else step.view(grad_h)
    words = _SCALES[scale], parameter, _ORDERS[order], _PACKINGS[packing]
    return *views, start, h.shape[1] // 2, repeat, *words, inverse


def _add_maps(
    step: _Step,
    coupling: Tensor | None,
    injector: Tensor | None,
    grad_coupling: Tensor | None,
    grad_injector: Tensor | None,
    settings: tuple[Any, ...],
) -> None:
    start, inverse = settings[0], settings[9]
    if coupling is not None:
        step.before.append(_map(step, coupling, grad_coupling, start, settings[1:5], inverse))
    if injector is not None:
        place = step.before if inverse else step.after
        place.append(_map(step, injector, grad_injector, 0, settings[5:9], inverse))


def _forward(step: _Step) -> tuple[Tensor, Tensor]:
    y = _empty_like(step.x)
    log_det = torch.empty(step.x.shape[0], dtype=_compute_dtype(step.x))
    _C.flow_step(step.arguments(), step.view(y), log_det.data_ptr())
    return y, log_det


def _backward(step: _Step, grad_y: Tensor, grad_log_det: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, matrix and shift (the last two empty without a matrix); the maps name where those of h go."""
    grad_x, grad_log_det = _empty_like(step.x), grad_log_det.contiguous()
    size = 0 if step.matrix is None else step.x.shape[1]
    grad_matrix = torch.empty(size, size, dtype=_compute_dtype(step.x))
    grad_shift = torch.empty(size, dtype=_compute_dtype(step.x))
    _C.flow_step_backward(
        step.arguments(),
        step.view(grad_y),
        grad_log_det.data_ptr(),
        step.view(grad_x),
        grad_matrix.data_ptr(),
        grad_shift.data_ptr(),
    )
    return grad_x, grad_matrix, grad_shift
