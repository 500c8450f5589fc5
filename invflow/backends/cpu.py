"""The native CPU backend: calls the compiled extension ``invflow._C`` with addresses and sizes.

Functions here take contiguous or strided float32 tensors (a strided one is copied once), allocate their results and
check nothing: validation happens in the public operators.
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

_SCALES = {"sigmoid": 0, "exp": 1, "bounded_exp": 2}
_ORDERS = {"shift_then_scale": 0, "scale_then_shift": 1}
_PACKINGS = {"cross": 0, "split": 1}


def unavailable() -> str:
    """Why this backend cannot run here at all; empty if it can."""
    return f"the extension invflow._C could not be imported ({_import_error})" if _C is None else ""


def why_not(op: str, x: Tensor) -> str:
    """Why this backend cannot run ``op`` on tensors like ``x``; empty if it can."""
    if reason := unavailable():
        return reason
    if x.device.type != "cpu":
        return f"it needs tensors on the CPU, got {x.device}"
    if x.dtype != torch.float32:
        return f"it needs float32, got {x.dtype}"
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
    x, matrix, shift = x.contiguous(), matrix.contiguous(), shift.contiguous()
    y = torch.empty_like(x)
    batch, channels, height, width = x.shape
    _C.channel_affine(x.data_ptr(), matrix.data_ptr(), shift.data_ptr(), y.data_ptr(), batch, channels, height * width)
    return y


def channel_affine_backward(grad_y: Tensor, x: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, matrix and shift: ``M^T g``, ``sum_bp g x^T`` and ``sum_bp g``."""
    grad_y, x = grad_y.contiguous(), x.contiguous()
    grad_x = channel_affine(grad_y, matrix.t(), torch.zeros_like(matrix[0]))
    grad_rows, x_rows = grad_y.flatten(2), x.flatten(2)
    grad_matrix = torch.bmm(grad_rows, x_rows.transpose(1, 2)).sum(0)
    return grad_x, grad_matrix, grad_rows.sum((0, 2))


def affine_coupling(
    x: Tensor, h: Tensor, start: int, scale: str, parameter: float, order: str, packing: str, inverse: bool
) -> tuple[Tensor, Tensor]:
    """The transformed state and the log-determinant of every sample."""
    x, h = x.contiguous(), h.contiguous()
    y = torch.empty_like(x)
    log_det = torch.empty(x.shape[0], dtype=x.dtype, device=x.device)
    _C.affine_coupling(
        x.data_ptr(),
        h.data_ptr(),
        y.data_ptr(),
        log_det.data_ptr(),
        *_coupling_arguments(x, h, start, scale, parameter, order, packing, inverse),
    )
    return y, log_det


def affine_coupling_backward(
    grad_y: Tensor,
    grad_log_det: Tensor,
    x: Tensor,
    h: Tensor,
    start: int,
    scale: str,
    parameter: float,
    order: str,
    packing: str,
    inverse: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of x and h."""
    grad_y, grad_log_det = grad_y.contiguous(), grad_log_det.contiguous()
    x, h = x.contiguous(), h.contiguous()
    grad_x, grad_h = torch.empty_like(x), torch.empty_like(h)
    _C.affine_coupling_backward(
        grad_y.data_ptr(),
        grad_log_det.data_ptr(),
        x.data_ptr(),
        h.data_ptr(),
        grad_x.data_ptr(),
        grad_h.data_ptr(),
        *_coupling_arguments(x, h, start, scale, parameter, order, packing, inverse),
    )
    return grad_x, grad_h


def _coupling_arguments(
    x: Tensor, h: Tensor, start: int, scale: str, parameter: float, order: str, packing: str, inverse: bool
) -> tuple[int, int, int, int, int, int, float, int, int, bool]:
    batch, channels, height, width = x.shape
    return (
        batch,
        channels,
        start,
        h.shape[1] // 2,
        height * width,
        _SCALES[scale],
        parameter,
        _ORDERS[order],
        _PACKINGS[packing],
        inverse,
    )
