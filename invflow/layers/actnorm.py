"""Actnorm: a learned shift and scale of each channel, initialised from the first batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from invflow._numerics import compute_dtype
from invflow.layers._checks import check_channels, check_input, check_shape
from invflow.layers.conditioning import without_context
from invflow.layers.folded import FoldedMap
from invflow.layers.folding import folding
from invflow.layers.protocol import ConditionedInverse, Shape, SharedContext

__all__ = ["ActNorm"]


class ActNorm(nn.Module):
    r"""Activation normalisation: :math:`y = (x + b) \, e^{s}` per channel, :math:`\log\det = HW \sum_c s_c`
    (Kingma & Dhariwal, Glow, 2018, section 3.1).

    The first non-empty batch that it sees in training mode sets :math:`b = -\operatorname{mean}(x)` and
    :math:`s = -\log(\operatorname{std}(x + b) + 10^{-6})`, with the biased standard deviation over batch and pixels.
    The output then has zero mean and unit variance; a constant channel stays finite. In evaluation mode and in the
    inverse it never initialises: a fresh layer is the identity. The state_dict contains the flag ``initialized``.

    Pass one batch through before wrapping the layer in DistributedDataParallel. Otherwise every process initialises
    from its own batch.

    Args:
        channels: number C of channels.

    Shape:
        x (B, C, H, W) -> y (B, C, H, W), log_det (B,).
    """

    num_latents = 1
    bias: Tensor
    log_scale: Tensor
    initialized: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = check_channels(self, channels)
        self.bias = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.register_buffer("initialized", torch.tensor(False))
        # The flag's copy on the host: reading the buffer in every call would wait for the device.
        self._needs_initialization = True

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Set bias and scale from ``x`` (B, C, H, W), in any mode.

        Raises:
            ValueError: an empty batch, or a wrong shape.
            TypeError: a dtype that is not floating-point.
        """
        check_input(self, x, self.channels)
        if x.numel() == 0:
            raise ValueError(f"ActNorm: cannot be initialised from an empty batch, got shape {tuple(x.shape)}")
        x = x.to(compute_dtype(x.dtype))
        mean = x.mean((0, 2, 3))
        std = (x - mean[:, None, None]).square().mean((0, 2, 3)).sqrt()
        self.bias.copy_(-mean)
        self.log_scale.copy_(-torch.log(std + 1e-6))
        self.mark_initialized()

    def mark_initialized(self) -> None:
        """Declare the present bias and scale to be final, so that no batch replaces them."""
        self.initialized.fill_(True)
        self._needs_initialization = False

    def initializes_from(self, x: Tensor) -> bool:
        """Return whether ``forward(x)`` initialises: in training mode, the first time, unless the batch is empty."""
        return self._needs_initialization and self.training and x.numel() > 0

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_input(self, x, self.channels)
        if self.initializes_from(x):
            self.initialize(x)
        dtype = compute_dtype(x.dtype)
        bias, log_scale = self._parameters_as(dtype)
        y = (x.to(dtype) + bias[:, None, None]) * log_scale.exp()[:, None, None]
        return y.to(x.dtype), self.log_det(x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_input(self, z, self.channels, "z")
        dtype = compute_dtype(z.dtype)
        bias, log_scale = self._parameters_as(dtype)
        x = z.to(dtype) * (-log_scale).exp()[:, None, None] - bias[:, None, None]
        return x.to(z.dtype), -self.log_det(z)

    def output_shapes(self, shape: Shape) -> list[Shape]:
        return [check_shape(self, shape, self.channels)]

    def conditioned_inverse(self, context: SharedContext) -> ConditionedInverse:
        return without_context(self)

    @folding
    def folded(self) -> FoldedMap:
        """Return a copy for inference and export: see :class:`~invflow.layers.Foldable`."""
        return FoldedMap.of(self, None)

    def log_det(self, x: Tensor) -> Tensor:
        """Return the log-determinant (B,) of ``forward`` for a state of the shape and dtype of ``x``."""
        pixels = x.shape[2] * x.shape[3]
        return (pixels * self.log_scale.double().sum()).to(compute_dtype(x.dtype)).repeat(x.shape[0])

    def _parameters_as(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return self.bias.to(dtype), self.log_scale.to(dtype)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        flag = state_dict.get(f"{prefix}initialized")
        if flag is not None:
            self._needs_initialization = not bool(flag)

    def extra_repr(self) -> str:
        return f"channels={self.channels}"
