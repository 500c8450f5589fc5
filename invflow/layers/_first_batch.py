"""Values that an actnorm takes from its first training batch: in one process or several, eager or compiled."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from invflow._numerics import compute_dtype
from invflow.layers._checks import per_channel
from invflow.layers._derived import LayerError

__all__ = ["KnownSet", "data_parallel_group", "first_values", "is_sharded", "total_over"]

#: A smaller standard deviation is that of a constant: below it, the formula's own 1e-6 decides the scale.
_SMALLEST_STD = 1e-6
#: So is one that the rounding of the mean explains: this many units in the last place of it.
_ROUNDING = 8


class KnownSet:
    """A flag on a device, found set once, so that not every call waits for the device to read it again.

    It knows nothing of a copy, of a tensor that took the flag's place, or of a flag that was written since. Writes
    through ``.data`` and replayed graphs leave no trace. An asynchronous copy of the flag would show them one call
    late: that call would have run without values, and an optimizer made some that no batch may replace.
    """

    def __init__(self) -> None:
        self._found: tuple[Tensor, int, int | None] | None = None

    def __reduce__(self) -> tuple[type[KnownSet], tuple[()]]:
        return KnownSet, ()

    def note(self, flag: Tensor) -> None:
        """Remember that ``flag`` is set."""
        self._found = flag, flag.data_ptr(), _state_of(flag)

    def holds(self, flag: Tensor) -> bool:
        """Return whether ``flag`` is known to be set still; otherwise it must be read."""
        found = self._found
        if found is None or found[0] is not flag or found[2] is None:
            return False
        return found[1] == flag.data_ptr() and found[2] == _state_of(flag)


def _state_of(flag: Tensor) -> int | None:
    wrapper = DistributedDataParallel._get_active_ddp_module()
    if wrapper is not None:
        # It copies all buffers from its first process before every call, which changes versions but no flag: all
        # processes were initialised together.
        return id(wrapper)
    return None if flag.is_inference() else flag._version


def data_parallel_group(layer: nn.Module | None) -> Any:
    """Return the process group of the DistributedDataParallel whose forward pass is running, ``None`` without one.

    Args:
        layer: must be part of the wrapped module; ``None`` if that is known.
    """
    wrapper = DistributedDataParallel._get_active_ddp_module() if distributed.is_available() else None
    if wrapper is None or (layer is not None and all(part is not layer for part in wrapper.modules())):
        return None
    return wrapper.process_group


def total_over(group: Any, values: Tensor) -> Tensor:
    """Return the sum of ``values`` over the processes of a group; ``values`` itself if there is no group."""
    if group is not None:
        distributed.all_reduce(values, group=group)
    return values


def is_sharded(layer: nn.Module) -> bool:
    """Return whether FSDP, of either kind, manages the layer's parameters: what is written in forward is lost."""
    if hasattr(layer, "_fsdp_use_orig_params"):
        return True  # the mark of FullyShardedDataParallel
    # torch keeps its states of modules here; there is no public way from a parameter's module to the one that shards it
    composable = sys.modules.get("torch.distributed._composable_state")
    states = [] if composable is None else [state() for state in composable._module_state_mapping.values()]
    return any(layer in modules for state in states for modules in _sharded_modules(state))


def _sharded_modules(state: Any) -> Iterator[list[nn.Module]]:
    groups = getattr(state, "_fsdp_param_groups", None) or [getattr(state, "_fsdp_param_group", None)]
    for group in filter(None, groups):
        for parameter in group.fsdp_params:
            info = parameter._module_info
            yield [info.module, *info.shared_modules]


def first_values(x: Tensor, group: Any) -> tuple[Tensor, Tensor]:
    """Return bias and log_scale (C,) that give a batch zero mean and, where it is not constant, unit variance.

    Args:
        x: (B, C, *); may be empty if another process of the group has samples.
        group: process group over whose batches the statistics are taken; ``None`` for this batch alone.

    Raises:
        LayerError: statistics that are not finite.
    """
    x = x.to(compute_dtype(x.dtype))
    channels = x.shape[1]
    pixels = x.new_full((1,), x.numel() // channels, dtype=torch.float64)
    others = [0, *range(2, x.dim())]
    count, sums = total_over(group, torch.cat([pixels, x.sum(others).double()])).split([1, channels])
    mean = (sums / count).to(x.dtype)
    squares = (x - per_channel(mean, x)).square().sum(others).double()
    std = (total_over(group, squares) / count).sqrt().to(x.dtype)
    broken = ~(mean.isfinite() & std.isfinite())
    if bool(broken.any()):
        first = int(broken.nonzero()[0])
        raise LayerError(
            f"ActNorm with {channels} channels: cannot be initialised from a batch that is not finite: channel {first} "
            f"has mean {mean[first].item():g} and standard deviation {std[first].item():g}"
        )
    smallest = (_ROUNDING * torch.finfo(x.dtype).eps * mean.abs()).clamp(min=_SMALLEST_STD)
    log_scale = torch.where(std > smallest, -torch.log(std + 1e-6), torch.zeros_like(std))
    return -mean, log_scale


@torch.library.custom_op("invflow::actnorm_first_batch", mutates_args=())
def first_batch(x: Tensor, bias: Tensor, log_scale: Tensor, initialized: Tensor) -> tuple[Tensor, Tensor]:
    """Return what bias and log_scale become in a compiled call, which cannot know whether they are still to be set.

    Copies, written by the caller: an operator that changes its arguments is compiled wrongly by inductor, which then
    takes their memory for gradients.
    """
    if bool(initialized) or bool(bias.any()) or bool(log_scale.any()):
        return bias.clone(), log_scale.clone()
    found = first_values(x, data_parallel_group(None))
    return found[0].to(bias.dtype), found[1].to(log_scale.dtype)


@first_batch.register_fake
def _(x: Tensor, bias: Tensor, log_scale: Tensor, initialized: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(bias), torch.empty_like(log_scale)
