"""Who else looks on at a call: transforms, compilers, tracers, dispatch modes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

_functorch_active: Callable[[], bool] = torch._C._are_functorch_transforms_active
_dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
_tracing: Callable[[], Any] = torch._C._get_tracing_state


def needs_reference() -> bool:
    """Whether a functorch transform or forward-mode differentiation is active, which kernels would silently ignore."""
    return _functorch_active() or forward_ad._current_level >= 0


def is_watched() -> bool:
    """Whether a transform, compiler or dispatch mode looks on, whose tensors must not be remembered."""
    return needs_reference() or torch.compiler.is_compiling() or _dispatch_modes() > 0


def is_intercepted() -> bool:
    """Return whether a compiler, tracer, functorch transform or dispatch mode would see a call of an operator."""
    return bool(torch.compiler.is_compiling() or _functorch_active() or _dispatch_modes() or _tracing())


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
        pairs = zip([results] if isinstance(results, Tensor) else results, grads, strict=True)
        # a log-determinant of nothing is a constant
        outputs, output_grads = zip(*(pair for pair in pairs if pair[0].requires_grad), strict=True)
        found = iter(torch.autograd.grad(outputs, wanted, output_grads, create_graph=True))
    return [next(found) if need else None for need in needs]
