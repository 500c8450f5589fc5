"""Launches that the report compiles: those of the operators, recorded instead of run.

Operators are called on tensors without memory (device ``meta``), with the launcher replaced. A kernel is thus compiled
with the very arguments that it is launched with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

from invflow.backends.triton import operators
from invflow.ops._affine_form import AffineForm

#: Channels with the height and width of their state: of the benchmarks, and those that fill each size of tile.
SIZES = ((12, 80), (24, 80), (48, 40), (96, 40), (192, 20))
BATCH = 16
#: One form for each kind of scale; the first is that of the published models.
FORMS = (
    AffineForm(),
    AffineForm("exp", order="scale_then_shift", packing="split"),
    AffineForm("bounded_exp", order="scale_then_shift", packing="split"),
)


class Instance(NamedTuple):
    """A kernel with arguments.

    Attributes:
        kernel: a key of :data:`invflow.backends.triton.tuning.CONFIGS`.
        name: the operator, direction, channels and dtype that it is launched for.
        arguments: all but the configuration's; tensors have no memory.
        grid: numbers of programs, from the arguments with the configuration's.
        every_configuration: whether each of its configurations is compiled, or the first only.
        contiguous_float32: whether its loads must be 128 bits wide.
    """

    kernel: Any
    name: str
    arguments: dict[str, Any]
    grid: Callable[[dict[str, Any]], tuple[int, ...]]
    every_configuration: bool = True
    contiguous_float32: bool = True


def recorded(name: str, call: Callable[[], Any]) -> list[Instance]:
    """Return the launches of a call of an operator, in order."""
    launched: list[Instance] = []

    def record(kernel: Any, grid: Callable[[dict[str, Any]], tuple[int, ...]], **arguments: Any) -> None:
        launched.append(Instance(kernel, name, arguments, grid))

    with mock.patch.object(operators, "launch", record):
        call()
    return launched


def instances() -> list[Instance]:
    """All that is compiled: kernels with all of their configurations for the sizes, and with their first configuration
    for the other forms and dtypes."""
    found: list[Instance] = []
    for channels, side in SIZES:
        shape = (BATCH, channels, side, side)
        found += flow_step(shape, False) + flow_step_backward(shape, False)
        # without tiles a thread has the same numbers in all configurations: one of them shows whether those fit
        for instance in flow_step(shape, True) + flow_step_backward(shape, True):
            found.append(instance._replace(every_configuration="BLOCK_C" in instance.arguments))
    for channels, side in (SIZES[0], SIZES[-1]):
        found += channel_affine((BATCH, channels, side, side))
    for inverse in (False, True):
        found += affine_coupling((BATCH, 12, 80, 80), inverse)
    others = [instance for form in FORMS[1:] for instance in _each_kernel(torch.float32, form)]
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        others += [instance._replace(contiguous_float32=False) for instance in _each_kernel(dtype, FORMS[0])]
    return found + [instance._replace(every_configuration=False) for instance in others]


def flow_step(
    shape: tuple[int, int, int, int],
    inverse: bool,
    dtype: torch.dtype = torch.float32,
    form: AffineForm = FORMS[0],
    injector: bool = True,
) -> list[Instance]:
    """Coupling of half of the channels, channel map, and injector if wanted."""
    x, matrix, shift, _ = _state(shape, dtype)
    step = _step(x, inverse, form, injector)
    name = _name("flow_step", shape, dtype, form, inverse)
    return recorded(name, lambda: operators.flow_step(x, matrix, shift, step))


def flow_step_backward(
    shape: tuple[int, int, int, int],
    inverse: bool,
    dtype: torch.dtype = torch.float32,
    form: AffineForm = FORMS[0],
    injector: bool = True,
) -> list[Instance]:
    """The gradients of :func:`flow_step`."""
    x, matrix, shift, grad_log_det = _state(shape, dtype)
    step = _step(x, inverse, form, injector)
    name = _name("flow_step", shape, dtype, form, inverse, backward=True)
    return recorded(name, lambda: operators.flow_step_backward(x, grad_log_det, x, matrix, shift, step))


def channel_affine(shape: tuple[int, int, int, int], dtype: torch.dtype = torch.float32) -> list[Instance]:
    """The channel map alone, and its gradients."""
    x, matrix, shift, grad_log_det = _state(shape, dtype)
    forward, backward = (
        _name("channel_affine", shape, dtype, FORMS[0], backward=backward) for backward in (False, True)
    )
    return [
        *recorded(forward, lambda: operators.flow_step(x, matrix, shift, operators.Step())),
        *recorded(backward, lambda: operators.flow_step_backward(x, grad_log_det, x, matrix, shift, operators.Step())),
    ]


def affine_coupling(
    shape: tuple[int, int, int, int], inverse: bool, dtype: torch.dtype = torch.float32, form: AffineForm = FORMS[0]
) -> list[Instance]:
    """The coupling alone, of half of the channels, and its gradients."""
    x, _, _, grad_log_det = _state(shape, dtype)
    start, h = shape[1] // 2, _maps(x, shape[1] - shape[1] // 2)
    forward, backward = (
        _name("affine_coupling", shape, dtype, form, inverse, backward=backward) for backward in (False, True)
    )
    flat = form.for_kernels()
    return [
        *recorded(forward, lambda: operators.affine_coupling(x, h, start, flat, inverse)),
        *recorded(backward, lambda: operators.affine_coupling_backward(x, grad_log_det, x, h, start, flat, inverse)),
    ]


def _each_kernel(dtype: torch.dtype, form: AffineForm) -> Iterator[Instance]:
    # float64 takes twice the registers
    few, many = (6, 192) if dtype == torch.float64 else (12, 48)
    for shape in ((BATCH, few, 80, 80), (BATCH, many, 20, 20)):
        yield from flow_step(shape, False, dtype, form)
        yield from flow_step_backward(shape, False, dtype, form)
    yield from affine_coupling((BATCH, few, 80, 80), True, dtype, form)


def _state(shape: tuple[int, int, int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, matrix, shift and the gradient of log_det."""
    arithmetic = torch.float64 if dtype == torch.float64 else torch.float32
    batch, channels, _, _ = shape
    sizes = ((channels, channels), (channels,), (batch,))
    matrix, shift, grad_log_det = (torch.empty(size, dtype=arithmetic, device="meta") for size in sizes)
    return torch.empty(shape, dtype=dtype, device="meta"), matrix, shift, grad_log_det


def _maps(x: Tensor, count: int) -> Tensor:
    """The h of ``count`` transformed channels."""
    return x.new_empty(x.shape[0], 2 * count, x.shape[2], x.shape[3])


def _step(x: Tensor, inverse: bool, form: AffineForm, injector: bool) -> operators.Step:
    channels = x.shape[1]
    return operators.Step(
        coupling=_maps(x, channels - channels // 2),
        injector=_maps(x, channels) if injector else None,
        start=channels // 2,
        coupling_form=form.for_kernels(),
        injector_form=form.for_kernels(),
        inverse=inverse,
    )


def _name(
    operator: str,
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    form: AffineForm,
    inverse: bool = False,
    backward: bool = False,
) -> str:
    direction = " inverse" if inverse else ""
    scale = "" if form == FORMS[0] else f", {form.scale}"
    kind = str(dtype).removeprefix("torch.")
    return f"{operator}{direction}{' backward' if backward else ''}, C = {shape[1]}, {kind}{scale}"
