"""The backend ``cuda``: kernels in CUDA C++, on the device of the state and its current stream.

Nothing waits for the kernels, and PyTorch allocates their workspace, so that calls can be captured in a CUDA graph.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from invflow._numerics import KERNEL_DTYPES
from invflow.backends.native import Native, Step

__all__ = ["cuda"]

#: By device: the reason why it cannot run the kernels, empty if it can. A device that cannot is asked again, because
#: the reason may pass. Other processes may use its memory, for example.
_refusals: dict[int, str] = {}

#: By device that can: the largest number of channels, by dtype of the state.
_most_channels: dict[int, dict[torch.dtype, int]] = {}

#: Operators whose kernels keep all channels of some pixels in the shared memory of a block.
_WITH_MATRIX = ("channel_affine", "flow_step")


def _unusable() -> str:
    return "" if torch.version.cuda else "this PyTorch was not built with CUDA"


def _refusal(extension: Any, op: str, x: Tensor) -> str:
    device = x.device.index or 0
    if device not in _most_channels and not torch.compiler.is_compiling():
        _refusals[device] = extension.why_not(device)
        if not _refusals[device]:
            _most_channels[device] = {
                dtype: extension.most_channels(device, number) for dtype, number in KERNEL_DTYPES.items()
            }
    if reason := _refusals.get(device, ""):
        return f"{x.device} cannot run kernels for {extension.architectures} made by {extension.compiler}: {reason}"
    most = _most_channels.get(device, {}).get(x.dtype)
    if op in _WITH_MATRIX and most is not None and x.dim() > 1 and x.shape[1] > most:
        return f"{x.device} has shared memory for {most} channels of {x.dtype}, got {x.shape[1]}"
    return ""


def _stream(device: torch.device) -> int:
    return torch.cuda.current_stream(device).cuda_stream


def _launch(extension: Any, kernel: str, device: torch.device, step: Step, *results: Any) -> None:
    number = device.index or 0
    size = getattr(extension, f"{kernel}_workspace")(number, step, *results)
    # freed at the end, and then given to later work on the same stream only
    memory = torch.empty(size, dtype=torch.uint8, device=device)
    getattr(extension, kernel)((number, _stream(device), memory.data_ptr()), step, *results)


def _facts(extension: Any) -> dict[str, str]:
    return {
        "compiler": extension.compiler,
        "architectures": extension.architectures,
        "version": extension.version,
    }


cuda = Native("_CUDA", device="cuda", launch=_launch, facts=_facts, unusable=_unusable, refusal=_refusal)
