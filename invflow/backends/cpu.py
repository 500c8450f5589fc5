"""The native CPU backend: calls the compiled extension ``invflow._C`` with addresses, sizes and strides."""

from __future__ import annotations

import importlib
from typing import Any

from torch import Tensor

from invflow.backends._fused import DTYPES, FusedOperators, Step

try:
    _C: Any = importlib.import_module("invflow._C")
except ImportError as error:
    _C, _import_error = None, str(error)
else:
    _import_error = ""
    _C.instruction_set()  # a wrong INVFLOW_CPU_ISA is an error now, not at the first kernel


def unavailable() -> str:
    """Why this backend cannot run here at all; empty if it can."""
    return f"the extension invflow._C could not be imported ({_import_error})" if _C is None else ""


def why_not(op: str, x: Tensor) -> str:
    """Why this backend cannot run ``op`` on tensors like ``x``; empty if it can."""
    if reason := unavailable():
        return reason
    if x.device.type != "cpu":
        return f"it needs tensors on the CPU, got {x.device}"
    if x.dtype not in DTYPES:
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


def _forward(step: Step, *results: Any) -> None:
    _C.flow_step(step.arguments(), *results)


def _backward(step: Step, *gradients: Any) -> None:
    _C.flow_step_backward(step.arguments(), *gradients)


_operators = FusedOperators(_forward, _backward)
channel_affine = _operators.channel_affine
channel_affine_backward = _operators.channel_affine_backward
affine_coupling = _operators.affine_coupling
affine_coupling_backward = _operators.affine_coupling_backward
flow_step = _operators.flow_step
flow_step_backward = _operators.flow_step_backward
