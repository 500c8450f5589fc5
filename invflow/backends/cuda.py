"""The CUDA C++ backend: calls the compiled extension ``invflow._CUDA`` with addresses, sizes, strides and a stream.

The kernels run on the device of the state and its current stream. Nothing waits for them, and what they need beside
their results is allocated by PyTorch, so that they can be captured in a CUDA graph.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from invflow.backends._fused import DTYPES, FusedOperators, Step

try:
    _CUDA: Any = importlib.import_module("invflow._CUDA")
except ImportError as error:
    _CUDA, _import_error = None, str(error)
else:
    _import_error = ""


#: By device: why it cannot run the kernels, empty if it can. One that cannot is asked again, for the reason may pass:
#: memory that other processes use, for one.
_refusals: dict[int, str] = {}

#: By device that can: with how many channels, by dtype of the state.
_most_channels: dict[int, dict[torch.dtype, int]] = {}

#: Operators whose kernels keep all channels of some pixels in the shared memory of a block.
_WITH_MATRIX = ("channel_affine", "flow_step")


def _not_usable() -> str:
    if _CUDA is None:
        return f"the extension invflow._CUDA could not be imported ({_import_error})"
    return "" if torch.version.cuda else "this PyTorch was not built with CUDA"


def unavailable() -> str:
    """Why this backend cannot run here at all; empty if it can. Initialises CUDA."""
    return _not_usable() or ("" if torch.cuda.is_available() else "torch finds no CUDA device")


def why_not(op: str, x: Tensor) -> str:
    """Why this backend cannot run ``op`` on tensors like ``x``; empty if it can."""
    if reason := _not_usable():
        return reason
    if x.device.type != "cuda":
        return f"it needs tensors on a CUDA device, got {x.device}"
    if x.dtype not in DTYPES:
        return f"it needs float32, float64, bfloat16 or float16, got {x.dtype}"
    device = x.device.index or 0
    if device not in _most_channels and not torch.compiler.is_compiling():
        _refusals[device] = _CUDA.why_not(device)
        if not _refusals[device]:
            _most_channels[device] = {dtype: _CUDA.most_channels(device, number) for dtype, number in DTYPES.items()}
    if reason := _refusals.get(device, ""):
        return f"{x.device} cannot run kernels for {_CUDA.architectures} made by {_CUDA.compiler}: {reason}"
    most = _most_channels.get(device, {}).get(x.dtype)
    if op in _WITH_MATRIX and most is not None and x.dim() > 1 and x.shape[1] > most:
        return f"{x.device} has shared memory for {most} channels of {x.dtype}, got {x.shape[1]}"
    return ""


def build_facts() -> dict[str, str]:
    """What the extension was built with, for ``python -m invflow.info``."""
    return {"compiler": _CUDA.compiler, "architectures": _CUDA.architectures, "version": _CUDA.version}


def _stream(device: torch.device) -> int:
    return torch.cuda.current_stream(device).cuda_stream


def _run(kernel: Any, workspace: Any, step: Step, *results: Any) -> None:
    arguments, device = step.arguments(), step.x.device
    number = device.index or 0
    memory = torch.empty(workspace(number, arguments, *results), dtype=torch.uint8, device=device)
    # freed at the end, and then given to later work on the same stream only
    kernel((number, _stream(device), memory.data_ptr()), arguments, *results)


def _forward(step: Step, *results: Any) -> None:
    _run(_CUDA.flow_step, _CUDA.flow_step_workspace, step, *results)


def _backward(step: Step, *gradients: Any) -> None:
    _run(_CUDA.flow_step_backward, _CUDA.flow_step_backward_workspace, step, *gradients)


_operators = FusedOperators(_forward, _backward)
channel_affine = _operators.channel_affine
channel_affine_backward = _operators.channel_affine_backward
affine_coupling = _operators.affine_coupling
affine_coupling_backward = _operators.affine_coupling_backward
flow_step = _operators.flow_step
flow_step_backward = _operators.flow_step_backward
