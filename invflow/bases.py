"""Base distributions: the distribution of the latent that passes through all layers of a flow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from invflow._numerics import compute_dtype, reads_freely
from invflow.likelihood import standard_normal_log_prob
from invflow.ops._transforms import has_values, is_watched

__all__ = ["Base", "ClassNormal", "DiagonalNormal", "StandardNormal"]


class Base(Protocol):
    """A base distribution of :class:`invflow.Flow`: any ``nn.Module`` with these two methods.

    It is the distribution of the last latent z (B, ...). Latents that left the flow before are standard normal: the
    layer that lets them leave, such as :class:`invflow.Split`, standardises them.
    """

    def log_prob(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the log-density (B,) of latents (B, ...).

        Args:
            z: the latents.
            y: (B,), labels of the samples, or whatever else the distribution depends on; ``None`` for nothing.
        """

    def sample(self, noise: Tensor, y: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Return latents (B, ...) made of noise.

        Args:
            noise: (B, ...) from N(0, I), times the temperature.
            y: as in :meth:`log_prob`.
            generator: source of further random numbers, if they are needed; default torch's own.
        """


class StandardNormal(nn.Module):
    """The standard normal distribution N(0, I), of latents of any shape. It ignores labels."""

    def log_prob(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the log-density (B,) of latents (B, ...)."""
        return standard_normal_log_prob(z)

    def sample(self, noise: Tensor, y: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Return the noise itself."""
        return noise


class DiagonalNormal(nn.Module):
    r"""A normal distribution with a learned mean and log standard deviation of every element,
    :math:`N(\mu, \operatorname{diag}(e^{2 s}))`. It ignores labels.

    Args:
        shape: shape of mean and log standard deviation, which begin at 0. It is that of one latent, or broadcasts to
            it: (C, 1, 1) has one of each a channel, for images of any size.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        _check_shape(self, shape)
        self.mean = nn.Parameter(torch.zeros(*shape))
        self.log_std = nn.Parameter(torch.zeros(*shape))

    def log_prob(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the log-density (B,) of latents (B, ...)."""
        _check_latents(self, z, self.mean.shape)
        return _log_prob(z, self.mean, self.log_std)

    def sample(self, noise: Tensor, y: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Return :math:`\\mu + e^s` times the noise."""
        _check_latents(self, noise, self.mean.shape)
        return self.mean + self.log_std.exp() * noise

    def extra_repr(self) -> str:
        return f"shape={tuple(self.mean.shape)}"


class ClassNormal(nn.Module):
    r"""A learned normal distribution of every class, :math:`N(\mu_y, \operatorname{diag}(e^{2 s_y}))`; without labels
    the mixture of all, with equal weights.

    A flow with it is a generative classifier: the class of x is the y with the largest ``flow.log_prob(x, y=y)``.

    Args:
        classes: number K of classes.
        shape: as of :class:`DiagonalNormal`, for one class. Means begin at random, with a standard deviation of 0.1.
    """

    def __init__(self, classes: int, shape: Sequence[int]) -> None:
        super().__init__()
        if classes < 1:
            raise ValueError(f"ClassNormal: classes must be at least 1, got {classes}")
        _check_shape(self, shape)
        self.classes = classes
        self.mean = nn.Parameter(0.1 * torch.randn(classes, *shape))
        self.log_std = nn.Parameter(torch.zeros(classes, *shape))

    def log_prob(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the log-density (B,) of latents (B, ...).

        Args:
            z: the latents.
            y: labels (B,) from 0 to K - 1, of an integer dtype; ``None`` for the mixture.

        Raises:
            TypeError: labels that are not integers.
            ValueError: labels of another shape, or out of range.
        """
        _check_latents(self, z, self.mean.shape[1:])
        if y is not None:
            y = self._labels(y, len(z))
            return _log_prob(z, self.mean[y], self.log_std[y])
        pairs = zip(self.mean, self.log_std, strict=True)
        of_classes = torch.stack([_log_prob(z, mean, log_std) for mean, log_std in pairs])
        return of_classes.logsumexp(0) - math.log(self.classes)

    def sample(self, noise: Tensor, y: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Return :math:`\\mu_y + e^{s_y}` times the noise.

        Args:
            noise: (B, ...).
            y: as in :meth:`log_prob`. Without them, labels are drawn.
            generator: source of the labels; default torch's own.
        """
        _check_latents(self, noise, self.mean.shape[1:])
        if y is None:
            device = noise.device if generator is None else generator.device
            y = torch.randint(self.classes, (len(noise),), generator=generator, device=device)
        y = self._labels(y, len(noise))
        return self.mean[y] + self.log_std[y].exp() * noise

    def _labels(self, y: Tensor, batch: int) -> Tensor:
        if not isinstance(y, Tensor) or y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
            given = y.dtype if isinstance(y, Tensor) else type(y).__name__
            raise TypeError(f"ClassNormal: y must be a tensor of integer labels, got {given}")
        if y.shape != (batch,):
            raise ValueError(f"ClassNormal: y must have shape ({batch},), got {tuple(y.shape)}")
        if not is_watched() and reads_freely(y) and has_values(y) and y.numel():
            least, largest = (int(value) for value in torch.aminmax(y))
            if least < 0 or largest >= self.classes:
                raise ValueError(f"ClassNormal: y must be 0 to {self.classes - 1}, got {least} to {largest}")
        return y.long().to(self.mean.device)

    def extra_repr(self) -> str:
        return f"classes={self.classes}, shape={tuple(self.mean.shape[1:])}"


def _log_prob(z: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Return the log-density (B,) of latents under a normal distribution whose parameters broadcast to them."""
    log_std = log_std.expand_as(z)
    log_std = log_std if log_std.dtype == torch.float64 else log_std.float()
    z = z.to(compute_dtype(z.dtype))
    return standard_normal_log_prob((z - mean) * (-log_std).exp()) - log_std.flatten(1).sum(1)


def _check_shape(base: nn.Module, shape: object) -> None:
    if not isinstance(shape, Sequence) or isinstance(shape, str):
        raise TypeError(f"{type(base).__name__}: shape must be that of one latent, such as (2,), got {shape!r}")


def _check_latents(base: nn.Module, z: Tensor, shape: Sequence[int]) -> None:
    given = z.shape[1:]
    if len(given) != len(shape) or any(own not in (1, other) for own, other in zip(shape, given, strict=True)):
        raise ValueError(
            f"{type(base).__name__}: latents must have shape (B, *{tuple(shape)}) or broadcast to it, got "
            f"{tuple(z.shape)}"
        )
