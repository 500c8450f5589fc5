"""The operators on tensors: the kernels that they launch, and the arguments.

Nothing here reads a tensor on the host, and all memory comes from PyTorch's allocator. Calls can therefore be captured
in a CUDA graph, once each kernel has run. Its first run times its configurations.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from invflow._numerics import compute_dtype, empty_state
from invflow.backends.native import with_pixels_in_line
from invflow.backends.protocol import Call, Form, Gradients
from invflow.backends.triton import tuning
from invflow.backends.triton.kernels.affine_coupling import affine_coupling_bwd_kernel, affine_coupling_fwd_kernel
from invflow.backends.triton.kernels.flow_step_by_tiles import (
    flow_step_input_bwd_kernel,
    flow_step_output_bwd_kernel,
    flow_step_tiled_fwd_kernel,
)
from invflow.backends.triton.kernels.flow_step_in_registers import flow_step_bwd_kernel, flow_step_fwd_kernel
from invflow.backends.triton.kernels.matrix_gradient import matrix_gradient_kernel
from invflow.backends.triton.tuning import launch

_IDENTITY = Form("exp", 0.0, "scale_then_shift", "split")  # of a map that is not there

#: Bytes of all channels of a pixel with which a thread, which has four pixels, does without tiles: more spill.
REGISTERS = 48
#: Channels of the largest tile of a state and of the matrix's gradient, by the bytes of a number: more spill.
LARGEST_TILE, LARGEST_TILE_OF_MATRIX = {4: 128, 8: 16}, {4: 64, 8: 16}
#: Programs that the gradient of the matrix is shared between.
_MATRIX_PROGRAMS = 512


class Step(NamedTuple):
    """The elementwise maps around the matrix: h of the coupling and of the injector, or ``None``, and their forms."""

    coupling: Tensor | None = None
    injector: Tensor | None = None
    start: int = 0
    coupling_form: Form = _IDENTITY
    injector_form: Form = _IDENTITY
    inverse: bool = False


def step_of(call: Call) -> Step:
    """Describe the elementwise maps around the matrix; a coupling of no channels is none."""
    coupling, settings = call.coupling, call.settings
    if coupling is not None and coupling.shape[1] == 0:
        coupling = None
    return Step(coupling, call.injector, settings.start, settings.coupling, settings.injector, settings.inverse)


def affine_coupling(x: Tensor, h: Tensor, start: int, form: Form, inverse: bool) -> tuple[Tensor, Tensor]:
    """Return y and log_det of a coupling alone."""
    y, count, pixels = empty_state(x), h.shape[1] // form.outputs, x.shape[2] * x.shape[3]
    parts = torch.empty(
        x.shape[0], count, _cdiv(pixels, tuning.GRAIN_OF_ROWS), dtype=compute_dtype(x.dtype), device=x.device
    )
    if x.numel():
        with _device_of(x):
            launch(
                affine_coupling_fwd_kernel,
                lambda meta: (x.shape[0] * _cdiv(pixels, meta["BLOCK"]), x.shape[1]),
                **_view("x", "x", x),
                **_view("h", "h", h),
                repeat=_repeat(x, h),
                **_view("y", "y", y),
                log_det_ptr=parts,
                **_sizes(x),
                START=start,
                COUNT=count,
                FORM=form,
                INVERSE=inverse,
                GRAIN=tuning.GRAIN_OF_ROWS,
            )
    return y, parts.sum((1, 2))


def affine_coupling_backward(
    grad_y: Tensor, grad_log_det: Tensor, x: Tensor, h: Tensor, start: int, form: Form, inverse: bool
) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and h."""
    grad_x, grad_h = empty_state(x), _empty_gradient(x, h)
    if x.numel():
        with _device_of(x):
            launch(
                affine_coupling_bwd_kernel,
                lambda meta: (x.shape[0] * _cdiv(x.shape[2] * x.shape[3], meta["BLOCK"]), x.shape[1]),
                **_view("grad_y", "gy", grad_y),
                grad_log_det_ptr=grad_log_det.contiguous(),
                **_view("x", "x", x),
                **_view("h", "h", h),
                repeat=_repeat(x, h),
                **_view("grad_x", "gx", grad_x),
                **_view("grad_h", "gh", grad_h),
                **_sizes(x),
                START=start,
                COUNT=h.shape[1] // form.outputs,
                FORM=form,
                INVERSE=inverse,
            )
    return grad_x, _shared_gradient(grad_h, h)


def flow_step(x: Tensor, matrix: Tensor, shift: Tensor | None, step: Step) -> tuple[Tensor, Tensor]:
    """Return y and log_det. ``None`` as ``shift`` is zero, and ``matrix`` may have any strides."""
    y, (batch, channels, height, width) = empty_state(x), x.shape
    pixels, has_maps = height * width, channels > 0 and (step.coupling is not None or step.injector is not None)
    in_registers = channels * matrix.element_size() <= REGISTERS
    block_c, tiles = _tiles(channels, matrix.element_size())
    grain = tuning.GRAIN_OF_ROWS if in_registers else tuning.GRAIN_OF_TILES
    parts = None
    if has_maps:
        rows = 1 if in_registers else tiles
        parts = torch.empty(batch, rows, _cdiv(pixels, grain), dtype=matrix.dtype, device=x.device)
    if x.numel():
        arguments = {
            **_view("x", "x", x),
            "matrix_ptr": matrix,
            "m_o": matrix.stride(0),
            "m_i": matrix.stride(1),
            "shift_ptr": None if shift is None else shift.contiguous(),
            **_maps(x, step),
            **_view("y", "y", y),
            "log_det_ptr": parts,
            **_sizes(x),
            **_constants(step, channels),
            "INVERSE": step.inverse,
            "GRAIN": grain,
        }
        with _device_of(x):
            if in_registers:
                launch(flow_step_fwd_kernel, lambda meta: (batch * _cdiv(pixels, meta["BLOCK"]),), **arguments)
            else:
                launch(flow_step_tiled_fwd_kernel, _grid_of_tiles(x, tiles), **arguments, **_product(x, block_c))
    return y, matrix.new_zeros(batch) if parts is None else parts.sum((1, 2))


def flow_step_backward(
    grad_y: Tensor, grad_log_det: Tensor, x: Tensor, matrix: Tensor, shift: Tensor, step: Step
) -> Gradients:
    """Compute the gradients of x, M, v, coupling and injector, ``None`` for the last two where there is none."""
    if step.coupling is None and step.injector is None:
        return *_channel_map_backward(grad_y, x, matrix), None, None
    batch, channels, height, width = x.shape
    grad_x = empty_state(x)
    grad_coupling, grad_injector = (
        None if h is None else _empty_gradient(x, h) for h in (step.coupling, step.injector)
    )
    follows = step.injector is not None and not step.inverse
    # of the channel map's result; that is grad_y if nothing follows
    grad_affine = torch.empty(x.shape, dtype=matrix.dtype, device=x.device) if follows else grad_y
    if x.numel():
        matrix, shift, grad_log_det = matrix.contiguous(), shift.contiguous(), grad_log_det.contiguous()
        before = {
            "grad_log_det_ptr": grad_log_det,
            **_view("x", "x", x),
            "matrix_ptr": matrix,
            "shift_ptr": shift,
            **_maps(x, step),
        }
        gradients = {
            **_view("grad_x", "gx", grad_x),
            **_view("grad_coupling", "gc", grad_coupling),
            **_view("grad_injector", "gi", grad_injector),
        }
        rest = {**_sizes(x), **_constants(step, channels)}
        with _device_of(x):
            if channels * matrix.element_size() <= REGISTERS:
                launch(
                    flow_step_bwd_kernel,
                    lambda meta: (batch * _cdiv(height * width, meta["BLOCK"]),),
                    **_view("grad_y", "gy", grad_y),
                    **before,
                    **gradients,
                    grad_affine_ptr=grad_affine if follows else None,
                    **rest,
                    INVERSE=step.inverse,
                )
            else:
                _backward_by_tiles(grad_y, grad_affine, x, follows, before, gradients, rest, step)
    grad_matrix, grad_shift = _matrix_gradient(grad_affine, x, step, matrix)
    found = [
        None if grad is None or h is None else _shared_gradient(grad, h)
        for grad, h in ((grad_coupling, step.coupling), (grad_injector, step.injector))
    ]
    return grad_x, grad_matrix, grad_shift, found[0], found[1]


def _channel_map_backward(grad_y: Tensor, x: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of x, M and v of a channel map alone."""
    # dtype and memory format of a state are those of x, whatever the gradient's are
    grad_x, _ = flow_step(grad_y, matrix.t(), None, Step())
    grad_x = empty_state(x).copy_(grad_x) if grad_x.stride() != empty_state(x).stride() else grad_x
    return grad_x, *_matrix_gradient(grad_y, x, Step(), matrix)


def _backward_by_tiles(
    grad_y: Tensor,
    grad_affine: Tensor,
    x: Tensor,
    follows: bool,
    before: dict[str, Any],
    gradients: dict[str, Any],
    rest: dict[str, Any],
    step: Step,
) -> None:
    block_c, tiles = _tiles(x.shape[1], before["matrix_ptr"].element_size())
    injector = [name for name in before if name.startswith(("injector", "i_"))]
    grads_of_injector = ["grad_injector_ptr", "gi_b", "gi_c", "gi_p"]
    if follows:
        launch(
            flow_step_output_bwd_kernel,
            _grid_of_tiles(x, tiles),
            **_view("grad_y", "gy", grad_y),
            **before,
            **{name: gradients[name] for name in grads_of_injector},
            grad_affine_ptr=grad_affine,
            **rest,
            **_product(x, block_c),
        )
        before = before | dict.fromkeys(injector, 0) | {"injector_ptr": None}
        gradients = gradients | dict.fromkeys(grads_of_injector, 0) | {"grad_injector_ptr": None}
    del before["shift_ptr"]
    launch(
        flow_step_input_bwd_kernel,
        _grid_of_tiles(x, tiles),
        **_view("grad_affine", "ga", grad_affine),
        **before,
        **gradients,
        **rest,
        INVERSE=step.inverse,
        **_product(x, block_c),
    )


def _matrix_gradient(grad: Tensor, x: Tensor, step: Step, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of M and v, given that of the channel map's result."""
    batch, channels, height, width = x.shape
    block_c = min(LARGEST_TILE_OF_MATRIX[matrix.element_size()], max(16, triton.next_power_of_2(channels)))
    tiles = _cdiv(channels, block_c)
    # one block of the smallest size at least for each part
    splits = min(batch * _cdiv(height * width, 32), _cdiv(_MATRIX_PROGRAMS, tiles * tiles)) if channels else 0
    grad_matrix = torch.empty(splits, channels, channels, dtype=matrix.dtype, device=x.device)
    grad_shift = torch.empty(splits, channels, dtype=matrix.dtype, device=x.device)
    if splits:
        if not step.inverse:
            step = step._replace(injector=None)
        with _device_of(x):
            launch(
                matrix_gradient_kernel,
                lambda meta: (splits, tiles, tiles),
                **_view("grad", "g", grad),
                **_view("x", "x", x),
                **_maps(x, step),
                grad_matrix_ptr=grad_matrix,
                grad_shift_ptr=grad_shift,
                samples=batch,
                **_sizes(x),
                **_constants(step, channels),
                INVERSE=step.inverse,
                PRECISION=_precision(),
                BLOCK_C=block_c,
            )
    return grad_matrix.sum(0), grad_shift.sum(0)


def _cdiv(a: int, b: int) -> int:
    return -(-a // b)


def _device_of(x: Tensor) -> AbstractContextManager[Any]:
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def _precision() -> str:
    """Return the precision of float32 products: IEEE unless ``torch.set_float32_matmul_precision`` says otherwise."""
    chosen = {"highest": "ieee", "high": "tf32x3", "medium": "tf32"}[torch.get_float32_matmul_precision()]
    return "ieee" if torch.version.hip else chosen


def _empty_gradient(x: Tensor, h: Tensor) -> Tensor:
    """Allocate the gradient of h before samples that share it are summed: then in the dtype of the arithmetic."""
    if h.shape[0] == x.shape[0]:
        return empty_state(h)
    return torch.empty(x.shape[0], *h.shape[1:], dtype=compute_dtype(x.dtype), device=x.device)


def _shared_gradient(grad_h: Tensor, h: Tensor) -> Tensor:
    if grad_h.shape[0] == h.shape[0]:
        return grad_h
    return empty_state(h).copy_(grad_h.view(h.shape[0], _repeat(grad_h, h), *h.shape[1:]).sum(1))


def _repeat(x: Tensor, h: Tensor) -> int:
    return x.shape[0] // h.shape[0] if h.shape[0] else 1


def _view(name: str, short: str, tensor: Tensor | None) -> dict[str, Any]:
    """Return a tensor and its strides of samples, channels and pixels; a copy if rows of pixels do not line up."""
    if tensor is None:
        return {f"{name}_ptr": None, f"{short}_b": 0, f"{short}_c": 0, f"{short}_p": 0}
    tensor, (samples, channels, pixels) = with_pixels_in_line(tensor)
    return {f"{name}_ptr": tensor, f"{short}_b": samples, f"{short}_c": channels, f"{short}_p": pixels}


def _maps(x: Tensor, step: Step) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    for name, short, h in (("coupling", "c", step.coupling), ("injector", "i", step.injector)):
        arguments |= _view(name, short, h) | {f"{name}_repeat": 1 if h is None else _repeat(x, h)}
    return arguments


def _sizes(x: Tensor) -> dict[str, int]:
    pixels = x.shape[2] * x.shape[3]
    return {"pixels": pixels, "size": tuning.size_of(x.shape[0] * pixels)}


def _constants(step: Step, channels: int) -> dict[str, Any]:
    return {
        "C": channels,
        "START": step.start if step.coupling is not None else 0,
        "COUNT": 0 if step.coupling is None else step.coupling.shape[1] // step.coupling_form.outputs,
        "COUPLING": step.coupling_form if step.coupling is not None else _IDENTITY,
        "INJECTOR": step.injector_form if step.injector is not None else _IDENTITY,
    }


def _tiles(channels: int, itemsize: int) -> tuple[int, int]:
    """Return the channels of a tile of the result, of which a thread must hold its share, and the number of tiles."""
    largest = LARGEST_TILE[itemsize]
    block_c = max(16, triton.next_power_of_2(channels))
    if block_c > largest:
        # several tiles: the smaller ones where they compute fewer channels that are not there
        block_c = min((largest, max(16, largest // 2)), key=lambda block: _cdiv(channels, block) * block)
    return block_c, _cdiv(channels, block_c)


def _product(x: Tensor, block_c: int) -> dict[str, Any]:
    return {"PRECISION": _precision(), "BLOCK_C": block_c, "BLOCK_K": tuning.BLOCK_K}


def _grid_of_tiles(x: Tensor, tiles: int) -> Any:
    return lambda meta: (x.shape[0] * _cdiv(x.shape[2] * x.shape[3], meta["BLOCK_P"]), tiles)
