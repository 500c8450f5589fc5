"""What every operator file shares: registration of kernels, when to use the reference, argument checks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from invflow.backends import KERNELS

_LIBRARY = torch.library.Library("invflow", "DEF")
_functorch_active: Callable[[], bool] = torch._C._are_functorch_transforms_active


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


def needs_reference() -> bool:
    """Whether a functorch transform or forward-mode differentiation is active, which kernels would silently ignore."""
    return _functorch_active() or forward_ad._current_level >= 0


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which an operator calculates and returns log-determinants: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def reference_backward(
    reference: Callable[..., Any], inputs: Sequence[Tensor], grads: Sequence[Tensor], needs: Sequence[bool]
) -> list[Tensor | None]:
    """Differentiable gradients of ``reference(*inputs)``, for a backward pass that will itself be differentiated.

    The inputs are replaced by views of themselves, so that an input computed from another one (h from x in a coupling)
    does not contribute its own derivative.
    """
    with torch.enable_grad():
        views = [tensor.view_as(tensor) for tensor in inputs]
        results = reference(*views)
        wanted = [view for view, need in zip(views, needs, strict=True) if need]
        found = iter(torch.autograd.grad(results, wanted, grads, create_graph=True))
    return [next(found) if need else None for need in needs]


def check_state(x: Tensor, name: str = "x") -> None:
    """Raise ``TypeError`` or ``ValueError`` unless ``x`` is a floating-point tensor (B, C, H, W)."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if x.dim() != 4:
        raise ValueError(f"{name} must have 4 dimensions (batch, channels, height, width), got shape {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"{name} must have a floating-point dtype, got {x.dtype}")


def check_same_device(x: Tensor, **others: Tensor) -> None:
    """Raise ``ValueError`` unless every tensor is on the device of ``x``."""
    for name, other in others.items():
        if other.device != x.device:
            raise ValueError(f"{name} must be on the device of x, {x.device}, got {other.device}")
