"""Registration of kernels with PyTorch, and the way past its dispatcher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from invflow.backends import KERNELS
from invflow.ops._transforms import is_intercepted

_LIBRARY = torch.library.Library("invflow", "DEF")
_PLAIN = frozenset({Tensor, type(None), str, float, int, bool})


def register(name: str, schema: str, fake: Callable[..., Any]) -> torch._ops.OpOverload:
    """Register operator ``invflow::<name>``, run by the function of that name in the backend module that its last
    argument names, and return it.

    Args:
        name: the operator's name, and that of the function in every backend module.
        schema: arguments and results, without the trailing ``str backend``: ``"(Tensor x) -> Tensor"``.
        fake: computes the results' metadata from the arguments, ``backend`` excluded.
    """
    arguments, results = schema.split(" -> ")
    _LIBRARY.define(f"{name}{arguments[:-1]}, str backend) -> {results}")

    def kernel(*args: Any) -> Any:
        return getattr(KERNELS[args[-1]], name)(*args[:-1])

    for key in ("CPU", "CUDA"):
        _LIBRARY.impl(name, kernel, key)
    torch.library.register_fake(f"invflow::{name}", lambda *args: fake(*args[:-1]), lib=_LIBRARY)
    return getattr(torch.ops.invflow, name).default


def past_dispatcher(operator: torch._ops.OpOverload) -> Callable[..., Any]:
    """A function that calls the kernel past the dispatcher where nothing could intercept the call: no compiler,
    tracer, functorch transform, dispatch mode or tensor subclass.

    The dispatcher's way to a kernel in Python and back costs as much as the kernel itself for a small state. Not for
    backward operators, whose gradients may be batched without a sign of it.
    """
    name = operator._schema.name.removeprefix("invflow::")

    def call(*args: Any) -> Any:
        if is_intercepted():
            return operator(*args)
        if not _PLAIN.issuperset(map(type, args)):
            return operator(*args)
        return getattr(KERNELS[args[-1]], name)(*args[:-1])

    return call
