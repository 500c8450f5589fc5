"""Checks and conversions that all adapters share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from invflow._numerics import compute_dtype
from invflow.layers.protocol import num_latents_of

__all__ = ["check_layer", "check_one_latent", "missing_library", "one_a_sample"]


def missing_library(error: ModuleNotFoundError, package: str, distribution: str | None = None) -> ModuleNotFoundError:
    """Return the error to raise where an adapter cannot import its library.

    Args:
        error: what the import raised. If another package is missing, it is returned as it is.
        package: name that is imported.
        distribution: name by which it is installed; default the same.
    """
    if (error.name or "").split(".")[0] != package:
        return error
    command = f"pip install {distribution or package}"
    return ModuleNotFoundError(f"{package} is not installed, and this adapter needs it: {command}", name=package)


def check_layer(name: str, layer: nn.Module) -> nn.Module:
    """Return the layer.

    Args:
        name: of the adapter, for messages.
        layer: to be checked.

    Raises:
        TypeError: not a module with an inverse.
    """
    if not isinstance(layer, nn.Module) or not callable(getattr(layer, "inverse", None)):
        hint = ": give its layers, flow.transform" if isinstance(getattr(layer, "transform", None), nn.Module) else ""
        raise TypeError(f"{name}: layer must be a torch.nn.Module with an inverse, got {type(layer).__name__}{hint}")
    return layer


def check_one_latent(name: str, layer: nn.Module) -> nn.Module:
    """Return the layer.

    Raises:
        TypeError: as :func:`check_layer`.
        ValueError: a layer of several latents.
    """
    count = num_latents_of(check_layer(name, layer))
    if count > 1:
        raise ValueError(
            f"{name}: layer must have one latent, got {type(layer).__name__} with {count}: join them by "
            "invflow.interop.Flat(layer, event_shape)"
        )
    return layer


def one_a_sample(log_det: Any, x: Tensor) -> Tensor:
    """Return the log-determinants (B,) of a map of ``x`` (B, ...).

    Args:
        log_det: a number for all samples, or a tensor: (), (1,), (B,), or (B, ...) with a term of every element.
        x: the state.
    """
    if not isinstance(log_det, Tensor):
        return torch.full((len(x),), float(log_det), dtype=compute_dtype(x.dtype), device=x.device)
    return log_det.flatten(1).sum(1) if log_det.dim() > 1 else log_det.expand(len(x))
