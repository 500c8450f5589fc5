"""Our layers as modules of FrEIA, and its modules as layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from invflow.interop._contract import check_layer, missing_library, one_a_sample
from invflow.layers.conditioning import over_pixels
from invflow.layers.protocol import InvertibleLayer, Shape, output_shapes_of

try:
    from FrEIA.framework import GraphINN, SequenceINN
    from FrEIA.modules import InvertibleModule
except ModuleNotFoundError as error:
    raise missing_library(error, "FrEIA") from None

__all__ = ["Block", "ModuleLayer", "layer_of"]


class Block(InvertibleModule):
    """An invflow layer as an invertible module: ``inn.append(Block, layer=...)`` or ``Node(x, Block, {"layer": ...})``.

    A layer with several latents is a module with as many outputs, which ``GraphINN`` takes. Several conditions are one
    context, joined along channels; vectors are expanded to the pixels of images among them.

    Args:
        dims_in: shape of the input, in a list; given by FrEIA.
        dims_c: shapes of the conditions; given by FrEIA.
        layer: satisfies :class:`invflow.InvertibleLayer`, or a function ``layer(channels, condition_channels)`` that
            makes one.

    Raises:
        TypeError: no layer.
        ValueError: several inputs, or a shape that the layer does not take.
    """

    def __init__(
        self,
        dims_in: Sequence[Shape],
        dims_c: Sequence[Shape] | None = None,
        *,
        layer: nn.Module | Callable[[int, int], nn.Module],
    ) -> None:
        super().__init__(dims_in, dims_c)
        if len(self.dims_in) != 1:
            raise ValueError(f"Block: a layer has one input, got {len(self.dims_in)}")
        if not isinstance(layer, nn.Module) and callable(layer):
            layer = layer(self.dims_in[0][0], sum(shape[0] for shape in self.dims_c))
        self.layer = check_layer("Block", layer)

    def forward(
        self, x_or_z: Sequence[Tensor], c: Sequence[Tensor] | None = None, rev: bool = False, jac: bool = True
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return the outputs, or the input if ``rev``, and log_det (B,) of the map that is called."""
        state = x_or_z[0] if len(x_or_z) == 1 else list(x_or_z)
        context = _joined(c) if c else None
        function = cast(InvertibleLayer, self.layer).inverse if rev else self.layer
        y, log_det = function(state, context)
        return tuple(y) if isinstance(y, list | tuple) else (y,), log_det

    def output_dims(self, input_dims: Sequence[Shape]) -> list[Shape]:
        """Return the shapes of the outputs."""
        return output_shapes_of(self.layer, tuple(input_dims[0]))


def layer_of(module: nn.Module) -> nn.Module:
    """Return a layer that computes a module of FrEIA, a ``SequenceINN`` or a ``GraphINN``.

    Args:
        module: has one input, and at most one condition, which the layer takes as context. Several outputs are
            latents, of which a flow goes on with the last.

    Raises:
        TypeError: not a module of FrEIA.
        ValueError: a module with several inputs or conditions.
    """
    if not isinstance(module, InvertibleModule):
        raise TypeError(f"layer_of: module must be one of FrEIA, got {type(module).__name__}")
    return ModuleLayer(module)


class ModuleLayer(nn.Module):
    """A module of FrEIA as a layer; made by :func:`layer_of`."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        source: Any = module
        conditions = len(source.dims_c)
        if isinstance(module, SequenceINN):
            conditions = max((index + 1 for index in source.conditions if index is not None), default=0)
        if len(source.dims_in) != 1 or conditions > 1:
            raise ValueError(
                f"layer_of: {type(module).__name__} must have one input and at most one condition, got "
                f"{len(source.dims_in)} and {conditions}"
            )
        self.module, self.conditional = module, bool(conditions)
        self.num_latents = len(self.output_shapes(tuple(source.dims_in[0])))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Any, Tensor]:
        z, log_det = self._run((x,), context, rev=False)
        return list(z) if self.num_latents > 1 else z[0], one_a_sample(log_det, x)

    def inverse(self, z: Any, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        latents = tuple(z) if self.num_latents > 1 else (z,)
        (x,), log_det = self._run(latents, context, rev=True)
        return x, one_a_sample(log_det, x)

    def output_shapes(self, shape: Shape) -> list[Shape]:
        module: Any = self.module
        if isinstance(module, SequenceINN):
            return [tuple(module.shapes[-1])]
        shapes = module.global_out_shapes if isinstance(module, GraphINN) else module.output_dims([tuple(shape)])
        return [tuple(int(size) for size in one) for one in shapes]

    def _run(self, state: tuple[Tensor, ...], context: Tensor | None, *, rev: bool) -> tuple[tuple[Tensor, ...], Any]:
        if self.conditional and context is None:
            raise ValueError(f"{type(self.module).__name__} has a condition: context must not be None")
        conditions = {"c": [context]} if self.conditional else {}
        y, log_det = self.module(state, rev=rev, **conditions)
        return (y,) if isinstance(y, Tensor) else tuple(y), log_det


def _joined(conditions: Sequence[Tensor]) -> Tensor:
    """Return conditions as one context: (B, K), or (B, K, *) if one of them has pixels."""
    largest = max(conditions, key=lambda condition: condition.dim())
    return torch.cat([over_pixels(condition, largest) for condition in conditions], 1)
