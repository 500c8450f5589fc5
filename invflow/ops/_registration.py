"""Registration of the kernels with PyTorch, and the way past its dispatcher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from invflow.backends import KERNELS
from invflow.backends.protocol import Call
from invflow.ops._settings import COUNT, SCHEMA, flat_settings, settings_of

__all__ = ["Kernel", "register"]

_LIBRARY = torch.library.Library("invflow", "DEF")
_dispatch_keys: Callable[[Tensor], Any] = torch._C._dispatch_keys
_PLAIN_TYPES = (Tensor, Parameter)
#: ``kernel(*grads, call, backend, intercepted)``: gradients of the results come first, in a backward kernel.
Kernel = Callable[..., Any]

_TENSORS = "Tensor x, Tensor? matrix, Tensor? shift, Tensor? coupling, Tensor? injector"


def register(name: str, grads: tuple[str, ...], results: int, fake: Callable[..., Any]) -> Kernel:
    """Register the operator ``invflow::<name>``, which a backend's function of that name runs.

    The returned function bypasses the dispatcher if nothing could intercept the call. Compilers, tracers, functorch
    transforms, dispatch modes, tensor subclasses, and batched or negated tensors could. The dispatcher's way to a
    kernel in Python and back costs as much as the kernel itself for a small state. Its last argument says whether
    :func:`is_intercepted` holds.

    Args:
        name: name of the operator and of the backends' function.
        grads: names of tensors that come before those of the call.
        results: number of tensors that it returns; ``None`` among what the kernel returns becomes an empty tensor.
        fake: computes the results' metadata from the tensors.
    """
    declared = "".join(f"Tensor {grad}, " for grad in grads) + _TENSORS
    _LIBRARY.define(f"{name}({declared}, {SCHEMA}, str backend) -> ({', '.join(['Tensor'] * results)})")
    first, count = len(grads), declared.count(",") + 1
    are_plain = _are_plain_unbatched if grads else _are_plain

    def registered(*args: Any) -> Any:
        call = Call._make([*args[first:count], settings_of(args[count : count + COUNT])])
        found = getattr(KERNELS[args[-1]], name)(*args[:first], call)
        return tuple(call.x.new_empty(0) if result is None else result for result in found)

    for key in ("CPU", "CUDA"):
        _LIBRARY.impl(name, registered, key)
    torch.library.register_fake(f"invflow::{name}", lambda *args: fake(*args[:count]), lib=_LIBRARY)
    operator = getattr(torch.ops.invflow, name).default

    def kernel(*args: Any) -> Any:
        call, backend, intercepted = args[first:]
        tensors = (*args[:first], *call[:-1])
        if intercepted or not are_plain(tensors):
            return operator(*tensors, *flat_settings(call.settings), backend)
        return getattr(KERNELS[backend], name)(*args[:first], call)

    return kernel


def _are_plain(tensors: tuple[Tensor | None, ...]) -> bool:
    """Tell whether all are ordinary tensors in memory, none of a subclass and none a negated view of another."""
    for tensor in tensors:  # noqa: SIM110 (a generator takes three times as long)
        if tensor is not None and (type(tensor) not in _PLAIN_TYPES or tensor.is_neg()):
            return False
    return True


def _are_plain_unbatched(tensors: tuple[Any, ...]) -> bool:
    """Tell the same of two gradients and the tensors after them, of which the first is the state.

    Gradients may be batched by ``torch.autograd.grad(..., is_grads_batched=True)`` without any other sign of it.
    """
    if not _are_plain(tensors):
        return False
    grad_y, grad_log_det, x = (_dispatch_keys(tensor).raw_repr() for tensor in tensors[:3])
    return grad_y == x == grad_log_det
