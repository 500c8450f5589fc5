"""Argument checks of operators and layers: each names the argument, what was given and what is allowed."""

from __future__ import annotations

from torch import Tensor

from invflow._numerics import KERNEL_DTYPES, compute_dtype


def check_state(x: object, name: str = "x") -> None:
    """Raise ``TypeError`` or ``ValueError`` unless ``x`` is a floating-point tensor (B, C, *)."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if x.dim() < 2:
        raise ValueError(f"{name} must have at least 2 dimensions (batch, channels, ...), got shape {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"{name} must have a floating-point dtype, got {x.dtype}")


def check_image(x: object, name: str = "x") -> None:
    """Raise ``TypeError`` or ``ValueError`` unless ``x`` is a floating-point tensor (B, C, H, W)."""
    if isinstance(x, Tensor) and x.dim() != 4:
        raise ValueError(f"{name} must have 4 dimensions (batch, channels, height, width), got shape {tuple(x.shape)}")
    check_state(x, name)


def check_raw_output(x: Tensor, h: Tensor, name: str = "h", outputs: int = 2) -> int:
    """Return C' if ``h`` (B', 2C', *) can be a network's output for C' channels of ``x`` (B, C, *).

    B' must divide B. Of a form without a scale, h has C' channels: ``outputs`` is 1.

    Raises:
        TypeError: no tensor, or none of a dtype that kernels read.
        ValueError: a wrong shape.
    """
    if not isinstance(h, Tensor) or h.dim() < 2 or h.dtype not in KERNEL_DTYPES:
        check_state(h, name)
        raise TypeError(f"{name} must be float32, float64, bfloat16 or float16, got {h.dtype}")
    shape, given = x.shape, h.shape
    if len(shape) == 4 == len(given):  # unpacked, which is faster than slices
        batch, channels, height, width = shape
        samples, maps, rows, columns = given
        same = rows == height and columns == width
    else:
        batch, channels, samples, maps = shape[0], shape[1], given[0], given[1]
        same = given[2:] == shape[2:]
    count = maps // outputs
    shared = samples == batch or (samples > 0 and batch % samples == 0)
    if maps % outputs or not same or not shared:
        number = f"{'any' if outputs == 1 else 'an even'} number"
        expected = ", ".join(map(str, (f"{batch} or a divisor", number, *shape[2:])))
        raise ValueError(f"{name} must have shape ({expected}) for x of shape {tuple(shape)}, got {tuple(given)}")
    if count > channels:
        raise ValueError(
            f"{name} must have at most {outputs * channels} channels for x with {channels} channels, got {maps}"
        )
    return count


def check_start(x: Tensor, start: int, count: int, outputs: int = 2) -> None:
    """Raise ``ValueError`` unless ``x`` has channels ``start`` to ``start + count``."""
    if not 0 <= start <= x.shape[1] - count:
        raise ValueError(
            f"start must be in 0..{x.shape[1] - count} for x with {x.shape[1]} channels and h with {outputs * count}, "
            f"got {start}"
        )


def check_affine(x: Tensor, matrix: Tensor, shift: Tensor) -> None:
    """Raise ``TypeError`` or ``ValueError`` unless matrix and shift act on the channels of ``x``."""
    channels, dtype = x.shape[1], compute_dtype(x.dtype)
    if matrix.shape == (channels, channels) and shift.shape == (channels,) and matrix.dtype is dtype is shift.dtype:
        return
    for name, tensor, expected in (("matrix", matrix, (channels, channels)), ("shift", shift, (channels,))):
        if tensor.shape != expected:
            raise ValueError(
                f"{name} must have shape {expected} for x with {channels} channels, got {tuple(tensor.shape)}"
            )
    if matrix.dtype != dtype or shift.dtype != dtype:
        raise TypeError(f"matrix and shift must be {dtype} for x of {x.dtype}, got {matrix.dtype} and {shift.dtype}")


def check_same_device(x: Tensor, **others: Tensor | None) -> None:
    """Raise ``ValueError`` unless every tensor that is there is on the device of ``x``."""
    on_cpu = x.is_cpu  # of which there is one
    for name, other in others.items():
        if other is not None and not (on_cpu and other.is_cpu) and other.device != x.device:
            raise ValueError(f"{name} must be on the device of x, {x.device}, got {other.device}")
