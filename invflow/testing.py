"""Assertions for invertible layers of your own: the properties that the tests demand of every layer here.

>>> import torch, invflow
>>> from invflow.testing import assert_invertible, assert_log_det
>>> layer = invflow.InvertibleConv1x1(4).double()
>>> x = torch.randn(2, 4, 3, 3, dtype=torch.float64)
>>> error = assert_invertible(layer, x)
>>> error = assert_log_det(layer, x)
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from invflow.layers.protocol import InvertibleLayer, num_latents_of, output_shapes_of

__all__ = ["assert_invertible", "assert_log_det", "log_det_by_autograd"]


def assert_invertible(
    layer: nn.Module, x: Tensor, context: Tensor | None = None, *, atol: float | None = None
) -> tuple[float, float]:
    """Assert that ``inverse`` undoes ``forward`` and that their log-determinants cancel.

    It also asserts that the layer states the right number and the right shapes of its latents.

    Args:
        layer: satisfies :class:`invflow.InvertibleLayer`.
        x: (B, C, *).
        context: the context that the layer needs, if any.
        atol: largest absolute round-trip error, and error of the log-determinant relative to max(1, its largest
            absolute value); default 1e-10 for a float64 ``x``, else 1e-4.

    Returns:
        The largest round-trip error and the largest ``|log_det(forward) + log_det(inverse)|``.

    Raises:
        AssertionError: a property that fails; the message names it and says by how much.
    """
    atol = (1e-10 if x.dtype == torch.float64 else 1e-4) if atol is None else atol
    with torch.no_grad():
        z, log_det = layer(x, context)
        back, inverse_log_det = cast(InvertibleLayer, layer).inverse(z, context)
    name = type(layer).__name__
    latents = _latents(z)
    if num_latents_of(layer) != len(latents):
        raise AssertionError(f"{name}: num_latents must be {len(latents)}, got {num_latents_of(layer)}")
    of, shapes = tuple(x.shape[1:]), [tuple(latent.shape[1:]) for latent in latents]
    stated = output_shapes_of(layer, of)
    if shapes != [tuple(shape) for shape in stated]:
        raise AssertionError(f"{name}: output_shapes({of}) must be {shapes}, got {stated}")
    for what, value in (("forward", log_det), ("inverse", inverse_log_det)):
        if not isinstance(value, Tensor) or value.shape != x.shape[:1]:
            given = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise AssertionError(f"{name}: log_det of {what} must have shape {tuple(x.shape[:1])}, got {given}")
    if back.shape != x.shape or back.dtype != x.dtype:
        raise AssertionError(
            f"{name}: inverse must return {x.dtype} of shape {tuple(x.shape)}, got {back.dtype} of {tuple(back.shape)}"
        )
    if x.numel() == 0:
        return 0.0, 0.0
    error = (back - x).abs().max().item()
    log_det_error = (log_det + inverse_log_det).abs().max().item()
    if not error <= atol:
        raise AssertionError(f"{name}: round-trip error {error:.3g} exceeds {atol:.3g}")
    if not log_det_error <= atol * max(1.0, log_det.abs().max().item()):
        raise AssertionError(f"{name}: log-determinants of forward and inverse differ by {log_det_error:.3g}")
    return error, log_det_error


def log_det_by_autograd(layer: nn.Module, x: Tensor, context: Tensor | None = None) -> Tensor:
    """Compute the log-determinant of ``forward`` from the full Jacobian of every sample, by automatic differentiation.

    It costs D^3 operations for samples of D elements, so states should be small. Latents that the layer factors out are
    concatenated.

    Args:
        layer: satisfies :class:`invflow.InvertibleLayer`.
        x: (B, C, *).
        context: the context that the layer needs, if any. Its batch is B or a divisor of it: each of its samples then
            serves successive states.

    Returns:
        (B,), natural logarithm of the absolute determinant.

    Raises:
        ValueError: a context whose batch does not divide B.
    """

    def flat(sample: Tensor, sample_context: Tensor | None) -> Tensor:
        z, _ = layer(sample, sample_context)
        return torch.cat([latent.flatten() for latent in _latents(z)])

    batch, shared = x.shape[0], x.shape[0] if context is None else context.shape[0]
    if shared != batch and (shared == 0 or batch % shared):
        raise ValueError(
            f"context must have a batch of {batch} or a divisor for x of shape {tuple(x.shape)}, got {shared}"
        )
    results = []
    for b in range(batch):
        of_context = b * shared // batch
        sample_context = None if context is None else context[of_context : of_context + 1]
        jacobian = torch.autograd.functional.jacobian(lambda s, c=sample_context: flat(s, c), x[b : b + 1])
        results.append(torch.linalg.slogdet(cast(Tensor, jacobian).flatten(1)).logabsdet)
    return torch.stack(results) if results else x.new_zeros(0)


def _latents(z: Any) -> list[Tensor]:
    return list(z) if isinstance(z, list | tuple) else [z]


def assert_log_det(layer: nn.Module, x: Tensor, context: Tensor | None = None, *, atol: float = 1e-8) -> float:
    """Assert that the layer's log-determinant is that of its Jacobian; use float64 and small states.

    Args:
        layer: satisfies :class:`invflow.InvertibleLayer`.
        x: (B, C, *).
        context: the context that the layer needs, if any, as for :func:`log_det_by_autograd`.
        atol: largest error relative to max(1, largest absolute log-determinant).

    Returns:
        The largest absolute difference.

    Raises:
        AssertionError: a larger difference than ``atol`` allows, or a log-determinant that is not (B,).
        ValueError: a context whose batch does not divide B.
    """
    with torch.no_grad():
        _, log_det = layer(x, context)
    expected = log_det_by_autograd(layer, x, context)
    if not isinstance(log_det, Tensor) or log_det.shape != expected.shape:
        given = tuple(log_det.shape) if isinstance(log_det, Tensor) else type(log_det).__name__
        raise AssertionError(f"{type(layer).__name__}: log_det must have shape {tuple(expected.shape)}, got {given}")
    if not len(expected):
        return 0.0
    error = (log_det - expected).abs().max().item()
    if not error <= atol * max(1.0, expected.abs().max().item()):
        raise AssertionError(f"{type(layer).__name__}: log_det differs from the Jacobian's by {error:.3g}")
    return error
