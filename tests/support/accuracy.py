"""The honest tolerance: a kernel may be at most twice as wrong as the plain PyTorch composition in the same dtype."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from invflow import AffineForm

#: Name of the round-trip error that a test records, for the summary at the end of a run.
ROUND_TRIP = "round-trip error"

#: Roundings, of the size of the largest value, that any order of evaluation may differ by: the plain composition can be
#: exact by luck, in which case twice its error would allow no error at all.
FLOOR_ROUNDINGS = 4


def assert_as_accurate(
    actual: Tensor, plain: Tensor, exact: Tensor, what: str = "result", magnitude: float = 0.0
) -> None:
    """Assert that ``actual`` is no further from ``exact`` (float64) than twice what ``plain`` is, plus a floor.

    The floor is a part of the rounded magnitude, which is at least the largest result. A sum of n terms may cancel. Its
    ``magnitude`` is also the Euclidean norm of the terms, because independent roundings add up like a random walk. (A
    systematic error of every term does not, and is caught.) Elements whose ``plain`` is not finite are not compared; in
    all others ``actual`` must be finite.
    """
    assert actual.shape == plain.shape == exact.shape, f"{what}: {actual.shape}, {plain.shape}, {exact.shape}"
    assert actual.dtype == plain.dtype, f"{what}: {actual.dtype} instead of {plain.dtype}"
    finite = plain.isfinite()
    if not finite.any():
        return
    actual, plain, exact = (tensor.detach()[finite].double() for tensor in (actual, plain, exact))
    assert actual.isfinite().all(), f"{what}: {int((~actual.isfinite()).sum())} values not finite, plain PyTorch's are"
    error, plain_error = (actual - exact).abs().max().item(), (plain - exact).abs().max().item()
    magnitude = max(magnitude, exact.abs().max().item())
    floor = FLOOR_ROUNDINGS * torch.finfo(torch.float32).eps * max(1.0, magnitude)
    assert error <= 2 * plain_error + floor, (
        f"{what}: error {error:.3g}, of plain PyTorch {plain_error:.3g}, floor {floor:.3g}"
    )


def assert_all_as_accurate(
    actual: Mapping[str, Tensor],
    plain: Mapping[str, Tensor],
    exact: Mapping[str, Tensor],
    magnitudes: Mapping[str, float] | None = None,
) -> None:
    assert actual.keys() == plain.keys() == exact.keys()
    for name in exact:
        assert_as_accurate(actual[name], plain[name], exact[name], name, (magnitudes or {}).get(name, 0.0))


def assert_kernel_is_accurate(
    backend: str,
    call: Callable[..., dict[str, Tensor]],
    inputs: Sequence[Tensor],
    grads: Sequence[Tensor],
    magnitudes: Mapping[str, float] | None = None,
) -> None:
    """Compare values and gradients of ``call(*inputs, backend=backend)`` with the reference's; ``grads`` are those of
    its results.

    Inputs and gradients keep the layout they come in.
    """
    found = {}
    runs = {"exact": ("reference", torch.float64), "plain": ("reference", torch.float32)}
    for run, (name, dtype) in (runs | {"actual": (backend, torch.float32)}).items():
        leaves = [tensor.to(dtype).detach().requires_grad_() for tensor in inputs]
        results = call(*leaves, backend=name)
        gradients = torch.autograd.grad(
            list(results.values()), leaves, [grad.to(dtype) for grad in grads], materialize_grads=True
        )
        found[run] = results | {f"gradient of input {i}": gradient for i, gradient in enumerate(gradients)}
    assert_all_as_accurate(found["actual"], found["plain"], found["exact"], magnitudes)


def log_det_magnitude(form: AffineForm, h: Tensor) -> float:
    """The Euclidean norm of the terms of the largest log_det."""
    if form.scale == "none":
        return 0.0
    _, log_scale = form.log_scale(form.unpack(h.double())[1])
    return log_scale.flatten(1).norm(dim=1).max().item() if h.numel() else 0.0
