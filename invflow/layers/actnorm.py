"""Actnorm: a learned shift and scale of each channel, initialised from the first batch."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from invflow._numerics import compute_dtype, pixels_of, reads_freely
from invflow.layers._checks import check_channels, check_input, check_shape, per_channel
from invflow.layers._current import current
from invflow.layers._first_batch import (
    KnownSet,
    data_parallel_group,
    first_batch,
    first_values,
    is_sharded,
    total_over,
)
from invflow.layers.conditioning import without_context
from invflow.layers.folded import FoldedMap
from invflow.layers.folding import folding
from invflow.layers.protocol import ConditionedInverse, Shape, SharedContext
from invflow.ops._transforms import has_values, needs_reference, unwrapped

__all__ = ["ActNorm"]


class ActNorm(nn.Module):
    r"""Activation normalisation: :math:`y = (x + b) \, e^{s}` per channel, :math:`\log\det = N \sum_c s_c` for N
    pixels (Kingma & Dhariwal, Glow, 2018, section 3.1).

    The first non-empty batch that it sees in training mode sets :math:`b = -\operatorname{mean}(x)` and
    :math:`s = -\log(\operatorname{std}(x + b) + 10^{-6})`, with the biased standard deviation over batch and pixels.
    The output then has zero mean and unit variance. A constant channel gets :math:`s = 0`: one whose standard deviation
    is at most 1e-6, or no more than the rounding of its mean. In evaluation mode and in the inverse it never
    initialises: a fresh layer is the identity.

    The buffer ``initialized`` (uint8, in the state_dict) decides. A layer is fresh if it is 0 and all of bias and scale
    are zero. If it is 0 beside other values, which were loaded, averaged or trained through the inverse, the first
    training batch keeps them, sets ``initialized`` and gives a warning.

    :meth:`initialize` sets both from any batch, whatever the flag says. Where reading the flag would wait for a GPU, a
    flag that was found set is read again only if ``load_state_dict``, an in-place operation or another tensor has
    changed it. Writing through ``initialized.data`` leaves no trace.

    Inside DistributedDataParallel the first batch is that of all processes together. Before ``fully_shard`` or
    FullyShardedDataParallel pass one batch through, since they drop what is written to parameters. In any other way of
    parallel training each process initialises from its own batch: initialise one and copy its state.

    Args:
        channels: number C of channels.

    Raises:
        ValueError: a first batch that is not finite. The layer then stays as it was.
        RuntimeError: a first batch under ``torch.func``, ``fully_shard``, or with parameters that are computed.

    Shape:
        x (B, C, *) -> y (B, C, *), log_det (B,). A vector is one pixel.
    """

    num_latents = 1
    takes_shared_context = True
    bias: Tensor
    log_scale: Tensor
    initialized: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = check_channels(self, channels)
        self.bias = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.register_buffer("initialized", torch.tensor(0, dtype=torch.uint8))
        self._remember_own()
        self._known_set = KnownSet()
        # What compiled code is guarded by. It may say "not set" of a flag that is. The reverse happens only where a
        # fresh state is written in place, past load_state_dict.
        self._known_to_compiler = False

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Set bias and scale from ``x`` (B, C, *), in any mode.

        Raises:
            ValueError: an empty batch, one that is not finite, or a wrong shape.
            TypeError: a dtype that is not floating-point.
            RuntimeError: parameters that are sharded or computed from others.
        """
        check_input(self, x, self.channels)
        if torch.compiler.is_compiling():
            self._look()
            if not self._known_to_compiler:
                self._write(*first_batch(x, self.bias, self.log_scale, self.initialized))
                return
        group = None if torch.compiler.is_compiling() else data_parallel_group(self)
        if group is None and x.numel() == 0:
            raise ValueError(f"ActNorm: cannot be initialised from an empty batch, got shape {tuple(x.shape)}")
        if not torch.compiler.is_compiling():
            self._check_writable()
        self._write(*first_values(x, group))

    def mark_initialized(self) -> None:
        """Declare the present bias and scale to be final, so that no batch replaces them."""
        self.initialized.fill_(1)
        self._known_to_compiler = True

    def initializes_from(self, x: Tensor) -> bool:
        """Return whether ``forward(x)`` initialises: in training mode, the first time, unless the batch is empty.

        Raises:
            RuntimeError: a fresh layer under a ``torch.func`` transform.
        """
        if not self.training:
            return False
        if torch.compiler.is_compiling():
            self._look()
            return not self._known_to_compiler and x.numel() > 0
        flag = self._buffers["initialized"]
        assert flag is not None
        return not self._is_seen_set(flag) and self._finds_itself_fresh(flag, x)

    def may_initialize(self) -> bool:
        """Return whether a batch may still set bias and scale, as far as no device must be waited for."""
        flag = self._buffers["initialized"]
        return self.training and flag is not None and not self._is_seen_set(flag)

    def _is_seen_set(self, flag: Tensor) -> bool:
        """Return whether the flag is seen to be set, without waiting for a device."""
        if not reads_freely(flag):
            return self._known_set.holds(flag)
        try:
            return bool(flag.item())
        except RuntimeError:  # a transform or a fake mode looks on
            return False

    def _finds_itself_fresh(self, flag: Tensor, x: Tensor) -> bool:
        """The rare part of :meth:`initializes_from`: the flag was not seen to be set."""
        if needs_reference():
            if x.numel() and not bool(unwrapped(flag).all()):
                raise RuntimeError(
                    "ActNorm: a first training batch under a torch.func transform or forward-mode differentiation "
                    "cannot initialise; run one batch without it before, or call mark_initialized()"
                )
            return False
        if not (has_values(flag) and has_values(x)):
            return False
        if bool(flag):
            self._known_set.note(flag)
            return False
        if self._keeps_its_values():
            return False
        group = data_parallel_group(self)
        if group is None:
            return x.numel() > 0
        return bool(total_over(group, torch.tensor([x.numel()], device=x.device)))

    def _keeps_its_values(self) -> bool:
        """Declare values that no first batch gave to be final, with a warning; return whether there are any."""
        if not (bool(current(self, "bias").any()) or bool(current(self, "log_scale").any())):
            return False
        if self._lends_its_flag():
            return True
        warnings.warn(
            "ActNorm: bias and log_scale are not zero, but `initialized` is not set: they were loaded without it, "
            "averaged, or trained through the inverse. They are kept; mark_initialized() says so beforehand.",
            stacklevel=2,
        )
        self.mark_initialized()
        return True

    def _look(self) -> bool:
        """Read the flag while a call is being compiled, so that a guard can stand for it."""
        flag = self.initialized
        if flag.is_meta:
            return False
        if has_values(flag):
            self._known_to_compiler = bool(flag) or self._keeps_its_values()
            if not self._known_to_compiler:
                self._check_writable()
        elif not self._known_to_compiler:
            raise RuntimeError(
                "ActNorm: cannot be exported in training mode, not known to be initialised; call eval(), or run one "
                "batch and call mark_initialized()"
            )
        return False

    # torch.compiler.assume_constant_result sets this, but imports the compiler for it, which takes more than a second
    _look._dynamo_marked_constant = True  # type: ignore[attr-defined]

    def _check_writable(self) -> None:
        if is_sharded(self):
            raise RuntimeError(
                "ActNorm: FSDP drops what a first batch writes; run one batch before fully_shard is applied, or before "
                "FullyShardedDataParallel wraps the layer"
            )
        for name in ("bias", "log_scale"):
            if name not in self._parameters:
                raise RuntimeError(
                    f"ActNorm: {name} is computed by a parametrization, hook or replica, so no batch can set it; run "
                    "one batch without it before, or call mark_initialized()"
                )

    def _write(self, bias: Tensor, log_scale: Tensor) -> None:
        self.bias.copy_(bias)
        self.log_scale.copy_(log_scale)
        if not self._lends_its_flag():
            self.mark_initialized()

    def _lends_its_flag(self) -> bool:
        """Return whether ``functional_call`` has put values, but no flag, in the place of the layer's own."""
        flag, bias = self._own
        return self._buffers["initialized"] is flag and self.bias is not bias and not is_sharded(self)

    def _remember_own(self) -> None:
        self._own = self._buffers.get("initialized"), self._parameters.get("bias")

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        super().register_parameter(name, param)
        self._remember_own()

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_input(self, x, self.channels)
        if self.initializes_from(x):
            self.initialize(x)
        dtype = compute_dtype(x.dtype)
        bias, log_scale = self._parameters_as(dtype)
        y = (x.to(dtype) + per_channel(bias, x)) * per_channel(log_scale.exp(), x)
        return y.to(x.dtype), self.log_det(x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_input(self, z, self.channels, "z")
        dtype = compute_dtype(z.dtype)
        bias, log_scale = self._parameters_as(dtype)
        x = z.to(dtype) * per_channel((-log_scale).exp(), z) - per_channel(bias, z)
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
        log_abs_det = pixels_of(x) * current(self, "log_scale").double().sum()
        return log_abs_det.to(compute_dtype(x.dtype)).repeat(x.shape[0])

    def _parameters_as(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return current(self, "bias").to(dtype), current(self, "log_scale").to(dtype)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        name = f"{prefix}initialized"
        flag = state_dict.get(name)
        if flag is not None and flag.dtype is torch.bool:
            # as files of version 0.1 have it; load_state_dict passes a dict of its own
            state_dict[name] = flag.to(torch.uint8)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._remember_own()
        self._known_set = KnownSet()
        self._known_to_compiler = has_values(self.initialized) and bool(self.initialized)

    def _apply(self, *args: Any, **kwargs: Any) -> ActNorm:
        super()._apply(*args, **kwargs)
        self._remember_own()
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_own" not in state:  # a module that version 0.1 pickled
            self.initialized = self.initialized.to(torch.uint8)
            self._known_set, self._known_to_compiler = KnownSet(), False
            self._remember_own()

    def extra_repr(self) -> str:
        return f"channels={self.channels}"
