"""Folding: copies of layers for inference and export, in plain PyTorch operations with constants.

``layer.folded()`` serves ``torch.export``, ``torch.onnx.export`` and ``torch.jit.trace``. A program made of its result
holds matrices instead of factorisations, and no operator of ``invflow``.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn

from invflow.layers.protocol import Foldable, supports

if TYPE_CHECKING:
    from invflow.layers.actnorm import ActNorm

__all__ = ["check_initialized", "copy_folded", "fold", "folding", "naming", "plain_conv"]

L = TypeVar("L", bound=nn.Module)
M = TypeVar("M", bound=nn.Module)


def fold(module: nn.Module) -> nn.Module:
    """Return the folded copy of a layer, a network, or any module that contains some.

    A module with a method ``folded`` makes its own copy. Any other one is copied, with its submodules folded. The copy
    is in evaluation mode, and nothing in it requires a gradient. The module itself is left as it is.

    Args:
        module: the module to copy.

    Raises:
        TypeError: a subclass that overrides ``forward`` or ``inverse`` and inherits ``folded``; forward hooks, which
            the copy would leave out; or a method ``folded`` that returns no module.
        RuntimeError: an actnorm that is not initialised.
        ValueError: a 1x1 convolution that has no inverse.
    """
    if callable(getattr(module, "folded", None)):
        return _checked(module, cast(Foldable, module).folded)
    return copy_folded(module)


def copy_folded(module: M) -> M:
    """Return a copy of a module with its submodules folded, whether or not it has a method ``folded``.

    Args:
        module: its own ``forward`` and other methods must be plain PyTorch operations around those of its submodules.

    Raises:
        RuntimeError, TypeError, ValueError: as :func:`fold`. The message begins with the submodule's name.
    """
    copies: dict[int, Any] = {}
    for name, child in module.named_children():
        with naming(name):
            copies[id(child)] = fold(child)
    # deepcopy takes the submodules' copies from its memo
    return copy.deepcopy(module, copies).eval().requires_grad_(False)


def folding(method: Callable[[L], M]) -> Callable[[L], M]:
    """Decorate a method ``folded``: it is refused as :func:`fold` does, and its copy is frozen, in evaluation mode."""

    @functools.wraps(method)
    def folded(self: L) -> M:
        return _checked(self, functools.partial(method, self))

    return folded


def _checked(module: nn.Module, make: Callable[[], M]) -> M:
    name = type(module).__name__
    if not supports(module, "folded"):
        raise TypeError(f"{name} overrides forward or inverse and needs a method folded() of its own, which it lacks")
    if module._forward_hooks or module._forward_pre_hooks:
        raise TypeError(f"{name} has forward hooks, which its folded copy would leave out: remove them before folding")
    with torch.no_grad():
        copied = make()
    if not isinstance(copied, nn.Module):
        raise TypeError(f"{name}: folded() must return a torch.nn.Module, got {type(copied).__name__}")
    return copied.eval().requires_grad_(False)


@contextmanager
def naming(place: str) -> Iterator[None]:
    """Put the place in front of the message of an error that :func:`fold` raises."""
    try:
        yield
    except (RuntimeError, TypeError, ValueError) as error:
        raise type(error)(f"{place}: {error}") from error


def check_initialized(actnorm: ActNorm) -> None:
    """Raise ``RuntimeError`` if the actnorm waits for its first batch: its present values mean nothing."""
    if not bool(actnorm.initialized):
        raise RuntimeError(
            f"ActNorm with {actnorm.channels} channels is not initialised and cannot be folded: pass a batch in "
            "training mode, load a state_dict, or call mark_initialized() to keep its present values"
        )


def plain_conv(conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """Return a convolution with the settings of ``conv``, and this weight and bias."""
    names = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    settings: dict[str, Any] = {name: getattr(conv, name) for name in names}
    # on the meta device no random numbers are drawn
    plain = nn.Conv2d(conv.in_channels, conv.out_channels, **settings, device="meta")
    plain.weight, plain.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
    return plain
