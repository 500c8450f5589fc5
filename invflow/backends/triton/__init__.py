"""The Triton backend: kernels for NVIDIA and AMD GPUs that need no compiler at installation.

Importing this package imports neither Triton nor the kernels; the first call does. If ``TRITON_INTERPRET=1`` was set
when Python started, the kernels run on CPU tensors in Triton's interpreter. That is slow, for tests and debugging.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import Any

import torch
from torch import Tensor

from invflow._numerics import KERNEL_DTYPES
from invflow.backends.protocol import Call, Gradients

_INTERPRETING = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")
_INSTALLED = importlib.util.find_spec("triton") is not None


def is_interpreting() -> bool:
    """Return whether the environment asked for Triton's interpreter when this process started."""
    return _INTERPRETING


def unavailable() -> str:
    """Return why this backend cannot run here at all; empty if it can."""
    if not _INSTALLED:
        return "the package triton is not installed (pip install triton)"
    if not is_interpreting() and not torch.cuda.is_available():
        return (
            "torch finds no CUDA or ROCm device, and Triton's interpreter, which runs on the CPU, was not asked for "
            "(set TRITON_INTERPRET=1 before Python starts)"
        )
    return ""


def why_not(op: str, x: Tensor) -> str:
    """Return why this backend cannot run ``op`` on tensors like ``x``; empty if it can."""
    wanted = "cpu" if is_interpreting() else "cuda"
    if x.device.type != wanted or not _INSTALLED:
        if reason := unavailable():
            return reason
        if is_interpreting():
            return f"under TRITON_INTERPRET=1 it needs tensors on the CPU, got {x.device}"
        return f"it needs tensors on a CUDA or ROCm device, got {x.device}"
    return "" if x.dtype in KERNEL_DTYPES else f"it needs float32, float64, bfloat16 or float16, got {x.dtype}"


def build_facts() -> dict[str, str]:
    """Return Triton's version and the device that runs the kernels, for ``python -m invflow.info``."""
    return {
        "triton": importlib.import_module("triton").__version__,
        "runs on": "the CPU, interpreted" if is_interpreting() else torch.cuda.get_device_name(),
    }


def flow_step(call: Call) -> tuple[Tensor, Tensor]:
    """Return y and log_det (see :class:`invflow.backends.protocol.Backend`)."""
    operators, settings = _operators(), call.settings
    if call.matrix is None:
        return operators.affine_coupling(call.x, call.coupling, settings.start, settings.coupling, settings.inverse)
    return operators.flow_step(call.x, call.matrix, call.shift, operators.step_of(call))


def flow_step_backward(grad_y: Tensor, grad_log_det: Tensor, call: Call) -> Gradients:
    """Return the gradients (see :class:`invflow.backends.protocol.Backend`)."""
    operators, (x, matrix, shift, coupling, _, settings) = _operators(), call
    if matrix is None:
        grad_x, grad_h = operators.affine_coupling_backward(
            grad_y, grad_log_det, x, coupling, settings.start, settings.coupling, settings.inverse
        )
        return grad_x, None, None, grad_h, None
    step = operators.step_of(call)
    grads = operators.flow_step_backward(grad_y, grad_log_det, x, matrix, shift, step)
    if coupling is not None and step.coupling is None:  # it has no channels
        return *grads[:3], torch.empty_like(coupling), grads[4]
    return grads


def _operators() -> Any:
    return importlib.import_module("invflow.backends.triton.operators")
