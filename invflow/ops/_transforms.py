"""Detection of transforms, compilers, tracers and dispatch modes that look on at a call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake
from torch.autograd import forward_ad

_functorch_active: Callable[[], bool] = torch._C._are_functorch_transforms_active
_dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
_tracing: Callable[[], Any] = torch._C._get_tracing_state
# not in every version of torch
_saving_hooks: Callable[[bool], Any] = getattr(
    torch._C._autograd, "_top_saved_tensors_default_hooks", lambda ignored: None
)


def needs_reference() -> bool:
    """Return whether a functorch transform or forward-mode differentiation is active; kernels would ignore either."""
    return _functorch_active() or forward_ad._current_level >= 0


def is_watched() -> bool:
    """Return whether a transform, compiler or dispatch mode looks on. Its tensors must not be remembered."""
    return needs_reference() or torch.compiler.is_compiling() or _dispatch_modes() > 0


def is_intercepted() -> bool:
    """Return whether a compiler, tracer, functorch transform or dispatch mode would see a call of an operator."""
    return bool(torch.compiler.is_compiling() or _functorch_active() or _dispatch_modes() or _tracing())


def is_exported() -> bool:
    """Return whether an exporter or tracer records the call, for programs that may run without this library.

    The flag is looked at because compilers of older versions of torch, of 2.11 for one, take
    ``torch.compiler.is_exporting`` for true in everything that they compile.
    """
    exporting = torch.compiler.is_exporting() and getattr(torch.compiler, "_is_exporting_flag", True)
    return bool(exporting or torch.jit.is_tracing())


def saving_is_watched() -> bool:
    """Return whether somebody's hooks see what is saved for backward passes, as activation checkpointing does."""
    return _saving_hooks(False) is not None


def unwrapped(tensor: Tensor) -> Tensor:
    """Return the tensor inside the wrappers of functorch transforms; of all samples that ``vmap`` runs over."""
    functorch: Any = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    return tensor


def has_values(tensor: Tensor) -> bool:
    """Return whether the tensor's elements can be read: it is neither on the meta device nor fake."""
    return not (tensor.is_meta or is_fake(tensor))


def reference_backward(
    reference: Callable[..., Any],
    inputs: Sequence[Tensor],
    grads: Sequence[Tensor],
    needs: Sequence[bool],
    *,
    differentiable: bool = True,
) -> list[Tensor | None]:
    """Compute gradients of ``reference(*inputs)``, for a backward pass that is differentiated itself.

    Views replace the inputs. An input computed from another one (h from x in a coupling) then does not contribute its
    own derivative.

    Args:
        reference: function of the inputs, in plain PyTorch.
        inputs: its tensors.
        grads: gradients of its results.
        needs: for every input, whether its gradient is wanted.
        differentiable: give the gradients a graph of their own.

    Returns:
        A gradient for every input, ``None`` for those that are not wanted.
    """
    with torch.enable_grad():
        if differentiable:
            views = [tensor.view_as(tensor) for tensor in inputs]
        else:
            views = [tensor.detach().requires_grad_(need) for tensor, need in zip(inputs, needs, strict=True)]
        results = reference(*views)
        wanted = [view for view, need in zip(views, needs, strict=True) if need]
        pairs = zip([results] if isinstance(results, Tensor) else results, grads, strict=True)
        # a log-determinant of nothing is a constant
        outputs, output_grads = zip(*(pair for pair in pairs if pair[0].requires_grad), strict=True)
        found = iter(torch.autograd.grad(outputs, wanted, output_grads, create_graph=differentiable))
    return [next(found) if need else None for need in needs]
