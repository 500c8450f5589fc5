"""Backpropagation that reconstructs states instead of keeping them: ``FlowSequential(memory="invert")``."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from invflow.layers.protocol import Rerun, Reversible, Stage, num_latents_of, supports
from invflow.ops._transforms import needs_reference

__all__ = ["KeptStates", "StoreDistance", "builds_graph", "encode_reversibly", "stages_of"]

#: The largest difference between a reconstructed and the true state, relative to the largest element, that is accepted.
DRIFT_TOLERANCE = 1e-3


def stages_of(layer: nn.Module) -> list[Stage]:
    """Return a layer's own stages, or the layer as one stage, reconstructed by its inverse and forward pass."""
    if supports(layer, "reverse_stages"):
        return cast(Reversible, layer).reverse_stages()
    return [Stage(partial(_rerun_any, layer), list(layer.parameters()), num_latents_of(layer))]


def _rerun_any(layer: Any, z: Tensor | list[Tensor], context: Tensor | None) -> Rerun:
    x = layer.inverse(z, context)[0].detach().requires_grad_()
    with torch.enable_grad():
        # not the leaf itself, which a layer may return as it is
        return Rerun(x.detach(), [x], *layer(x.view_as(x), context))


class StoreDistance:
    """Number of layers between two stored states: all layers, until the reconstruction is found to drift.

    Attributes:
        layers: the present number.
    """

    def __init__(self, layers: int) -> None:
        self.layers = layers

    def note_drift(self, drift: float) -> None:
        """Store more states, with a warning, if a reconstructed state differs too much from the one that was kept.

        Args:
            drift: largest difference, relative to the largest element.
        """
        if drift <= DRIFT_TOLERANCE or self.layers == 1:
            return
        self.layers = max(1, self.layers // 2)
        warnings.warn(
            f"FlowSequential(memory='invert'): a reconstructed state differed from the true one by {drift:.1e} of its "
            f"largest element; from now on the state is stored after every {self.layers} layers",
            stacklevel=2,
        )


class KeptStates:
    """The states that one forward pass keeps besides its outputs, by the position of the layer that they enter.

    They are one sample of the input, by which the drift is measured, and every n-th state.
    """

    def __init__(self, distance: int) -> None:
        self.by_position: dict[int, Tensor] = {}
        self._distance = distance

    def wants(self, position: int) -> bool:
        """Return whether the state that enters the layer of this position is to be kept."""
        return position % self._distance == 0

    def keep(self, position: int, x: Tensor) -> None:
        """Keep the state ``x`` (B, C, H, W)."""
        self.by_position[position] = x.detach() if position else x[:1].detach().clone()


class Flow(Protocol):
    """The flow that is encoded reversibly: a :class:`FlowSequential`."""

    layers: nn.ModuleList
    store_distance: StoreDistance

    def encode(self, x: Tensor, context: Tensor | None, kept: KeptStates | None = None) -> tuple[list[Tensor], Tensor]:
        """Return all latents and log_det, and keep the states that ``kept`` wants."""


def builds_graph(flow: nn.Module, x: Tensor, context: Tensor | None) -> bool:
    """Return whether a call would build a graph, with neither a compiler nor a transform looking on."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or needs_reference():
        return False
    tensors = [x, *([] if context is None else [context]), *flow.parameters()]
    return any(tensor.requires_grad for tensor in tensors)


def encode_reversibly(flow: Flow, x: Tensor, context: Tensor | None) -> tuple[list[Tensor], Tensor]:
    """Return all latents and log_det of a flow; the backward pass reconstructs the states in between.

    Raises:
        RuntimeError: parameters that have changed before the backward pass, or a second derivative.
    """
    stages = [stages_of(layer) for layer in flow.layers]
    first_stages = [0, *itertools.accumulate(map(len, stages))]
    parameters = _trained(itertools.chain.from_iterable(stages))
    *latents, log_det = _Inverted.apply(flow, first_stages, x, context, *parameters)
    return latents, log_det


def _trained(stages: Iterable[Stage]) -> list[Tensor]:
    """List the parameters that need a gradient, each once."""
    found = {id(parameter): parameter for stage in stages for parameter in stage.parameters if parameter.requires_grad}
    return list(found.values())


class _Inverted(torch.autograd.Function):
    """``flow(x, context)`` without a graph; its backward pass goes through the stages from the last to the first."""

    @staticmethod
    def forward(
        ctx: Any, flow: Flow, first_stages: list[int], x: Tensor, context: Tensor | None, *parameters: Tensor
    ) -> tuple[Tensor, ...]:
        kept = KeptStates(flow.store_distance.layers)
        latents, log_det = flow.encode(x, context, kept)
        ctx.flow, ctx.kept_at = flow, [first_stages[position] for position in kept.by_position]
        # parameters too: that they have not changed since is then checked as for every other operation
        ctx.save_for_backward(context, *latents, *kept.by_position.values(), *parameters)
        ctx.autocast = _autocast_of(x.device.type)
        return *latents, log_det

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("FlowSequential: memory='invert' has no second derivative; use memory='store'")
        context, *saved = ctx.saved_tensors
        latents, saved = saved[: len(grads) - 1], saved[len(grads) - 1 :]
        kept = dict(zip(ctx.kept_at, saved, strict=False))
        parameters = saved[len(kept) :]
        stages = [stage for layer in ctx.flow.layers for stage in stages_of(layer)]
        if list(map(id, _trained(stages))) != list(map(id, parameters)):
            raise RuntimeError(
                "FlowSequential: its parameters are not those of the forward pass, which memory='invert' needs"
            )
        sums: dict[int, Tensor] = {}
        with ctx.autocast():
            leaf_context = None if context is None else (context, ctx.needs_input_grad[3])
            grad_x = _backward(
                ctx.flow, stages, latents, list(grads[:-1]), grads[-1], leaf_context, kept, parameters, sums
            )
        return None, None, grad_x, sums.get(id(context)), *(sums.get(id(parameter)) for parameter in parameters)


def _backward(
    flow: Flow,
    stages: Sequence[Stage],
    latents: list[Tensor],
    grads: list[Tensor],
    grad_log_det: Tensor,
    context: tuple[Tensor, bool] | None,
    kept: dict[int, Tensor],
    parameters: Sequence[Tensor],
    sums: dict[int, Tensor],
) -> Tensor:
    """Return the gradient of the flow's input; add those of parameters and context to ``sums`` under the tensor's id.

    ``context`` comes with whether it needs a gradient.
    """
    z, grad = latents.pop(), grads.pop()
    trained = set(map(id, parameters))
    for position, stage in reversed(list(enumerate(stages))):
        extra = stage.num_latents - 1
        output: Any = z
        output_grads = [grad]
        if extra:
            output, output_grads = [*latents[-extra:], z], [*grads[-extra:], grad]
            del latents[-extra:], grads[-extra:]
        inputs = {id(parameter): parameter for parameter in stage.parameters if id(parameter) in trained}
        leaf: Tensor | None = None
        if context is not None:
            leaf = context[0].detach().requires_grad_(context[1])
            if context[1]:
                inputs[id(context[0])] = leaf
        with torch.no_grad():
            again = stage.rerun(output, leaf)
        results = [*(again.z if isinstance(again.z, list) else [again.z]), again.log_det]
        pairs = zip(results, [*output_grads, grad_log_det], strict=True)
        # a log_det that is a constant has no graph
        differentiable = [(result, result_grad) for result, result_grad in pairs if result.requires_grad]
        found = torch.autograd.grad(
            [result for result, _ in differentiable],
            [*again.leaves, *inputs.values()],
            [result_grad for _, result_grad in differentiable],
            allow_unused=True,
        )
        pieces = [
            torch.zeros_like(leaf) if part is None else part for leaf, part in zip(again.leaves, found, strict=False)
        ]
        grad = pieces[0] if len(pieces) == 1 else torch.cat(pieces, 1)
        for key, part in zip(inputs, found[len(pieces) :], strict=True):
            if part is not None:
                sums[key] = sums[key] + part if key in sums else part
        z = again.x
        if position in kept:
            flow.store_distance.note_drift(_relative_difference(z[: len(kept[position])], kept[position]))
            z = kept[position] if len(kept[position]) == len(z) else z
    return grad


def _relative_difference(actual: Tensor, expected: Tensor) -> float:
    if not expected.numel():
        return 0.0
    largest = expected.abs().max().clamp(min=torch.finfo(expected.dtype).tiny)
    return float((actual - expected).abs().max() / largest)


def _autocast_of(device: str) -> Callable[[], AbstractContextManager[Any]]:
    """Return the present autocast state of a device type, to be entered again."""
    if not torch.amp.is_autocast_available(device):
        return nullcontext
    enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    return lambda: torch.autocast(device, dtype=dtype, enabled=enabled)
