"""What every operator file shares: registration of kernels, when to use the reference, argument checks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from invflow.backends import KERNELS
from invflow.backends._states import compute_dtype

_LIBRARY = torch.library.Library("invflow", "DEF")
_functorch_active: Callable[[], bool] = torch._C._are_functorch_transforms_active
_dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
_tracing: Callable[[], Any] = torch._C._get_tracing_state
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
        if torch.compiler.is_compiling() or _functorch_active() or _dispatch_modes() or _tracing():
            return operator(*args)
        if not _PLAIN.issuperset(map(type, args)):
            return operator(*args)
        return getattr(KERNELS[args[-1]], name)(*args[:-1])

    return call


def needs_reference() -> bool:
    """Whether a functorch transform or forward-mode differentiation is active, which kernels would silently ignore."""
    return _functorch_active() or forward_ad._current_level >= 0


def is_watched() -> bool:
    """Whether a transform, compiler or dispatch mode looks on, whose tensors must not be remembered."""
    return needs_reference() or torch.compiler.is_compiling() or _dispatch_modes() > 0


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


def check_state(x: Tensor, name: str = "x") -> None:
    """Raise ``TypeError`` or ``ValueError`` unless ``x`` is a floating-point tensor (B, C, H, W)."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if x.dim() != 4:
        raise ValueError(f"{name} must have 4 dimensions (batch, channels, height, width), got shape {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"{name} must have a floating-point dtype, got {x.dtype}")


def check_raw_output(x: Tensor, h: Tensor, name: str = "h") -> int:
    """Raise unless ``h`` (B', 2C', H, W) can be the output of a network for C' channels of ``x`` (B, C, H, W), where
    B' divides B; return C'."""
    check_state(h, name)
    batch, channels, height, width = x.shape
    count = h.shape[1] // 2
    shared = h.shape[0] == batch or (h.shape[0] > 0 and batch % h.shape[0] == 0)
    if h.shape[1] % 2 or h.shape[2:] != x.shape[2:] or not shared:
        raise ValueError(
            f"{name} must have shape ({batch} or a divisor, an even number, {height}, {width}) for x of shape "
            f"{tuple(x.shape)}, got {tuple(h.shape)}"
        )
    if count > channels:
        raise ValueError(
            f"{name} must have at most {2 * channels} channels for x with {channels} channels, got {2 * count}"
        )
    return count


def check_start(x: Tensor, start: int, count: int) -> None:
    """Raise ``ValueError`` unless ``x`` has channels ``start`` to ``start + count``."""
    if not 0 <= start <= x.shape[1] - count:
        raise ValueError(
            f"start must be in 0..{x.shape[1] - count} for x with {x.shape[1]} channels and h with {2 * count}, "
            f"got {start}"
        )


def check_affine(x: Tensor, matrix: Tensor, shift: Tensor) -> None:
    """Raise ``TypeError`` or ``ValueError`` unless matrix and shift act on the channels of ``x``."""
    channels, dtype = x.shape[1], compute_dtype(x.dtype)
    for name, tensor, expected in (("matrix", matrix, (channels, channels)), ("shift", shift, (channels,))):
        if tensor.shape != expected:
            raise ValueError(
                f"{name} must have shape {expected} for x with {channels} channels, got {tuple(tensor.shape)}"
            )
    if matrix.dtype != dtype or shift.dtype != dtype:
        raise TypeError(f"matrix and shift must be {dtype} for x of {x.dtype}, got {matrix.dtype} and {shift.dtype}")


def check_same_device(x: Tensor, **others: Tensor) -> None:
    """Raise ``ValueError`` unless every tensor is on the device of ``x``."""
    for name, other in others.items():
        if other.device != x.device:
            raise ValueError(f"{name} must be on the device of x, {x.device}, got {other.device}")
