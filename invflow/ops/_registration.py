"""Registration of the kernels with PyTorch, and the way past its dispatcher."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from invflow.backends import KERNELS
from invflow.ops._settings import COUNT, SCHEMA, flat_settings, settings_of
from invflow.ops._transforms import is_intercepted

__all__ = ["Kernel", "register"]

_LIBRARY = torch.library.Library("invflow", "DEF")
_dispatch_keys: Callable[[Tensor], Any] = torch._C._dispatch_keys
_PLAIN_TYPES = (Tensor, Parameter)
_PLAIN_KEY = re.compile(r"CPU|CUDA|HIP|ADInplaceOrView|Autograd\w+|Autocast\w+")

#: By dispatch keys of a tensor: whether no key but those of device and autograd is among them.
_plain: dict[int, bool] = {}

#: ``kernel(*tensors, settings, backend)``.
Kernel = Callable[..., Any]


def register(name: str, tensors: str, results: str, fake: Callable[..., Any]) -> Kernel:
    """Register the operator ``invflow::<name>``, which a backend's function of that name runs.

    The returned function calls the kernel past the dispatcher where nothing could intercept the call: no compiler,
    tracer, functorch transform, dispatch mode, tensor subclass, batched or negated tensor. The dispatcher's way to a
    kernel in Python and back costs as much as the kernel itself for a small state.

    Args:
        name: of the operator and of the backends' function.
        tensors: declaration of the tensors among the arguments; settings and backend follow them.
        results: declaration of the results; ``None`` among what the kernel returns becomes an empty tensor.
        fake: computes the results' metadata from the tensors.
    """
    _LIBRARY.define(f"{name}({tensors}, {SCHEMA}, str backend) -> {results}")
    count = tensors.count(",") + 1

    def registered(*args: Any) -> Any:
        found = getattr(KERNELS[args[-1]], name)(*args[:count], settings_of(args[count : count + COUNT]))
        return tuple(_empty_like(args[0]) if result is None else result for result in found)

    for key in ("CPU", "CUDA"):
        _LIBRARY.impl(name, registered, key)
    torch.library.register_fake(f"invflow::{name}", lambda *args: fake(*args[:count]), lib=_LIBRARY)
    operator = getattr(torch.ops.invflow, name).default

    def kernel(*args: Any) -> Any:
        *tensors, settings, backend = args
        if is_intercepted() or not all(tensor is None or _is_plain(tensor) for tensor in tensors):
            return operator(*tensors, *flat_settings(settings), backend)
        return getattr(KERNELS[backend], name)(*tensors, settings)

    return kernel


def _is_plain(tensor: Tensor) -> bool:
    if type(tensor) not in _PLAIN_TYPES:
        return False
    keys = _dispatch_keys(tensor)
    number = keys.raw_repr()
    if number not in _plain:
        names = re.findall(r"\w+", str(keys))[1:]
        _plain[number] = all(_PLAIN_KEY.fullmatch(name) for name in names)
    return _plain[number]


def _empty_like(x: Tensor) -> Tensor:
    return x.new_empty(0)
