"""Compiled extensions as backends: ``cpu`` calls ``invflow._C`` and ``cuda`` calls ``invflow._CUDA``.

Tensors of any floating dtype are described by address, dtype and strides. NCHW and channels_last memory, slices of
channels and expanded batches are used where they are; any other layout is copied once. Results are allocated here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from invflow._numerics import KERNEL_DTYPES, compute_dtype, empty_state
from invflow.backends.protocol import Call, Form, Gradients

__all__ = ["NO_VIEW", "Native", "Step", "View", "form_of_words", "with_memory", "with_pixels_in_line", "words"]

_SCALES = {
    "sigmoid": 0,
    "exp": 1,
    "bounded_exp": 2,
    "tanh_exp": 3,
    "bounded_atan_exp": 4,
    "atan_exp": 5,
    "none": 6,
}
_ORDERS = {"shift_then_scale": 0, "scale_then_shift": 1}
_PACKINGS = {"cross": 0, "split": 1}

#: Address, dtype and strides of samples, channels and pixels.
View = tuple[int, int, int, int, int]
NO_VIEW: View = (0, 0, 0, 0, 0)

#: A call as ``csrc/include/invflow/tuples.h`` reads it.
Step = tuple[Any, ...]


class Native:
    """A backend made of the two kernels of a compiled extension.

    Args:
        name: name of the extension inside the package.
        device: type of the device that the states must be on.
        launch: ``launch(extension, kernel, device, step, *results)`` runs the kernel of that name.
        facts: ``facts(extension)``, for ``python -m invflow.info``.
        unusable: why the extension cannot be used here although it was imported; empty if it can.
        refusal: ``refusal(extension, op, x)``: why a state of the right device and dtype is refused; empty if it isn't.

    Attributes:
        extension: the imported module, ``None`` if it could not be imported.
        import_error: why it could not.
    """

    def __init__(
        self,
        name: str,
        *,
        device: str,
        launch: Callable[..., None],
        facts: Callable[[Any], dict[str, str]],
        unusable: Callable[[], str] | None = None,
        refusal: Callable[[Any, str, Tensor], str] | None = None,
    ) -> None:
        self.name = name
        self.device = device
        self._launch, self._facts, self._unusable, self._refusal = launch, facts, unusable, refusal
        self.extension: Any = None
        self.import_error = ""
        try:
            self.extension = importlib.import_module(f"invflow.{name}")
        except ImportError as error:
            self.import_error = str(error)

    def _not_usable(self) -> str:
        if self.extension is None:
            return f"the extension invflow.{self.name} could not be imported ({self.import_error})"
        return "" if self._unusable is None else self._unusable()

    def unavailable(self) -> str:
        """Return why the backend cannot run here at all; empty if it can. Initialises CUDA for a CUDA extension."""
        if reason := self._not_usable():
            return reason
        return "torch finds no CUDA device" if self.device == "cuda" and not torch.cuda.is_available() else ""

    def why_not(self, op: str, x: Tensor) -> str:
        """Return why the backend cannot run ``op`` on states like ``x``; empty if it can."""
        if (self.extension is None or self._unusable is not None) and (reason := self._not_usable()):
            return reason
        # a third of the time of comparing device.type
        if not (x.is_cpu if self.device == "cpu" else x.is_cuda):
            where = "the CPU" if self.device == "cpu" else "a CUDA device"
            return f"it needs tensors on {where}, got {x.device}"
        if x.dtype not in KERNEL_DTYPES:
            return f"it needs float32, float64, bfloat16 or float16, got {x.dtype}"
        return "" if self._refusal is None else self._refusal(self.extension, op, x)

    def build_facts(self) -> dict[str, str]:
        """Return what the extension was built with and runs on."""
        return self._facts(self.extension)

    def flow_step(self, call: Call) -> tuple[Tensor, Tensor]:
        """Return y and log_det (see :class:`invflow.backends.protocol.Backend`)."""
        kept: list[Tensor] = []
        x, step = call.x, _step(kept, call, None, None)
        y = empty_state(x)
        log_det = torch.empty(x.shape[0], dtype=compute_dtype(x.dtype), device=x.device)
        self._launch(self.extension, "flow_step", x.device, step, _view(kept, y), log_det.data_ptr())
        return y, log_det

    def flow_step_backward(self, grad_y: Tensor, grad_log_det: Tensor, call: Call) -> Gradients:
        """Return the gradients (see :class:`invflow.backends.protocol.Backend`)."""
        kept: list[Tensor] = []
        x, matrix, shift, coupling, injector, _ = call
        grad_coupling, grad_injector = _empty_gradient(x, coupling), _empty_gradient(x, injector)
        step = _step(kept, call, grad_coupling, grad_injector)
        grad_x, grad_log_det = empty_state(x), grad_log_det.contiguous()
        grad_matrix = None if matrix is None else torch.empty(matrix.shape, dtype=matrix.dtype, device=x.device)
        grad_shift = None if shift is None else torch.empty(shift.shape, dtype=shift.dtype, device=x.device)
        self._launch(
            self.extension,
            "flow_step_backward",
            x.device,
            step,
            _view(kept, grad_y),
            grad_log_det.data_ptr(),
            _view(kept, grad_x),
            0 if grad_matrix is None else grad_matrix.data_ptr(),
            0 if grad_shift is None else grad_shift.data_ptr(),
        )
        return grad_x, grad_matrix, grad_shift, grad_coupling, grad_injector


def _step(kept: list[Tensor], call: Call, grad_coupling: Tensor | None, grad_injector: Tensor | None) -> Step:
    """Describe a call by addresses.

    Tensors that it names by address and that nobody else holds are added to ``kept``.
    """
    x, matrix, shift, coupling, injector, settings = call
    batch, channels, height, width = x.shape
    before: list[Any] = []
    after: list[Any] = []
    if coupling is not None:
        before.append(_map(kept, batch, coupling, grad_coupling, settings.start, settings.coupling, settings.inverse))
    if injector is not None:
        place = before if settings.inverse else after
        place.append(_map(kept, batch, injector, grad_injector, 0, settings.injector, settings.inverse))
    matrix_address = 0 if matrix is None else _address(kept, matrix)
    shift_address = 0 if shift is None else _address(kept, shift)
    return batch, channels, height * width, _view(kept, x), matrix_address, shift_address, before, after


def _address(kept: list[Tensor], tensor: Tensor) -> int:
    """Return where the numbers of a tensor lie, one after the other."""
    used = tensor.contiguous()
    address = used.data_ptr()
    if not address and used.numel():
        used = with_memory(used)
        address = used.data_ptr()
    if used is not tensor:
        kept.append(used)
    return address


def _map(
    kept: list[Tensor], batch: int, h: Tensor, grad_h: Tensor | None, start: int, form: Form, inverse: bool
) -> tuple[Any, ...]:
    """Describe the elementwise map that ``h`` makes, of the channels from ``start`` on."""
    samples, channels = h.shape[:2]
    repeat = max(1, batch // samples) if samples else 1
    grad_view = NO_VIEW if grad_h is None else _view(kept, grad_h)
    return _view(kept, h), grad_view, start, channels // form.outputs, repeat, *words(form), inverse


def words(form: Form) -> tuple[int, float, int, int]:
    """Return a form as the kernels know it: scale, parameter, order, packing."""
    return _SCALES[form.scale], form.parameter, _ORDERS[form.order], _PACKINGS[form.packing]


def form_of_words(given: tuple[int, float, int, int]) -> Form:
    """Return the form that the kernels know by these words."""
    scale, parameter, order, packing = given
    return Form(list(_SCALES)[scale], parameter, list(_ORDERS)[order], list(_PACKINGS)[packing])


def _view(kept: list[Tensor], tensor: Tensor) -> View:
    samples, channels, rows, columns = tensor.stride()
    _, _, height, width = tensor.shape
    address = tensor.data_ptr()
    if address and width != 1 and (height == 1 or rows == width * columns):
        return address, KERNEL_DTYPES[tensor.dtype], samples, channels, columns
    used, strides = with_pixels_in_line(tensor)
    address = used.data_ptr()
    if not address and used.numel():
        used = with_memory(used)
        address, (samples, channels, _, pixels) = used.data_ptr(), used.stride()
        strides = samples, channels, pixels
    if used is not tensor:
        kept.append(used)
    return address, KERNEL_DTYPES[used.dtype], *strides


def with_memory(tensor: Tensor) -> Tensor:
    """Return the zeros that PyTorch did not write down; raise ``ValueError`` if the memory was freed."""
    if tensor._is_zerotensor():
        return torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    raise ValueError(
        f"every tensor must have memory, got one of shape {tuple(tensor.shape)} and {tensor.dtype} whose storage is "
        f"empty: restore it before the call, or pass a copy made while it was there"
    )


def with_pixels_in_line(tensor: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """Return the tensor and its strides of samples, channels and pixels. It is a copy if rows do not line up."""
    samples, channels, rows, columns = tensor.stride()
    _, _, height, width = tensor.shape
    if width == 1:
        columns = rows
    elif height != 1 and rows != width * columns:
        tensor = tensor.contiguous()
        samples, channels, _, columns = tensor.stride()
    return tensor, (samples, channels, columns)


def _empty_gradient(x: Tensor, h: Tensor | None) -> Tensor | None:
    """Allocate the gradient of ``h``: zero where no sample of ``x`` contributes to it, else of any content."""
    if h is None:
        return None
    return empty_state(h) if x.shape[0] else empty_state(h).zero_()
