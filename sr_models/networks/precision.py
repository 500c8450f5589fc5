"""Precision of networks: encoder, couplings and injectors may run in half precision, while the flow stays exact.

The inverse of a coupling is exact whatever its network computes, as long as both directions compute the same. So the
state, the channel maps, the arithmetic of couplings and the log-determinants stay in float32.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal, get_args

import torch

__all__ = [
    "Precision",
    "check_precision",
    "half_precision",
    "network_dtype",
    "network_precision",
    "resolved",
    "uses_matrix_units",
    "uses_tf32",
]

#: ``"auto"`` is bfloat16 where it is faster than float32.
Precision = Literal["fp32", "bf16", "fp16", "auto"]

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def check_precision(precision: str) -> None:
    """Raise ``ValueError`` unless it is a :data:`Precision`."""
    if precision not in get_args(Precision):
        choices = ", ".join(map(repr, get_args(Precision)))
        raise ValueError(f"precision must be one of {choices}, got {precision!r}")


def resolved(precision: str, device: torch.device) -> str:
    """Return what ``"auto"`` stands for on a device: ``"bf16"`` or ``"fp32"``. Anything else stands for itself.

    bfloat16 is faster on GPUs that multiply it, and on CPUs with AMX. On CPUs with AVX512-BF16 alone, convolutions in
    bfloat16 take about twice as long as in float32.

    Raises:
        ValueError: no :data:`Precision`.
    """
    check_precision(precision)
    if precision != "auto":
        return precision
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device.type == "cpu" and torch.cpu._is_amx_tile_supported()
    return "bf16" if fast else "fp32"


def network_dtype(precision: str, device: torch.device, dtype: torch.dtype = torch.float32) -> torch.dtype | None:
    """Return the dtype of the networks of a model on a device; ``None`` for that of the model.

    Args:
        precision: a :data:`Precision`.
        device: device of the model.
        dtype: dtype of the model.

    Raises:
        ValueError: no :data:`Precision`, or one that differs from that of a model in another dtype than float32.
    """
    chosen = _DTYPES.get(resolved(precision, device))
    if chosen is None or chosen is dtype or (precision == "auto" and dtype is not torch.float32):
        return None
    if dtype is not torch.float32:
        raise ValueError(f"precision must be 'fp32' or 'auto' for a model in {dtype}, got {precision!r}")
    return chosen


def network_precision(dtype: torch.dtype | None, device: torch.device) -> AbstractContextManager[object]:
    """Return a context, of this thread, within which the networks of a model in float32 run in another dtype.

    It is autocast, from which the operators of :mod:`invflow` exempt themselves. A layer of another kind whose state
    goes through matrix products or convolutions must disable autocast around them, or its state is rounded.

    Args:
        dtype: ``torch.bfloat16`` or ``torch.float16``. ``None`` is the model's own, also within an outer autocast.
        device: device of the model.
    """
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    if dtype is None:
        return torch.autocast(device.type, enabled=False)
    # no weight is used twice, and a CUDA graph would go on to read what was remembered before its capture
    return torch.autocast(device.type, dtype, cache_enabled=False)


def half_precision(device: torch.device) -> torch.dtype | None:
    """Return the dtype that :func:`network_precision` gave to networks here; ``None`` for that of the model."""
    if not torch.amp.is_autocast_available(device.type) or not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)


def uses_tf32() -> bool:
    """Return whether cuDNN rounds the factors of convolutions in float32 to TF32, in the older or newer way to say so.

    ``torch.backends.cudnn.allow_tf32`` raises an error after some of the newer settings.
    """
    conv = getattr(torch.backends.cudnn, "conv", None)
    return bool(torch.backends.cudnn.allow_tf32 if conv is None else conv.fp32_precision == "tf32")


def uses_matrix_units(device: torch.device) -> bool:
    """Return whether convolutions of a model in float32 run on a GPU's matrix units: in half precision or in TF32."""
    return device.type == "cuda" and (half_precision(device) is not None or uses_tf32())
