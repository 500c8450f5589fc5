"""Backpropagation that reconstructs states instead of keeping them: ``FlowSequential(memory="invert")``.

The forward pass evaluates layer by layer and drops the graph of each. The backward pass goes from the last layer to the
first: each reconstructs its input from its output and builds its graph again (:mod:`invflow.layers._inversion`).

A layer whose second evaluation would differ from the first keeps its graph, as with ``memory="store"``.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake
from torch.utils import _pytree

from invflow.layers._derived import LayerError
from invflow.layers._drift import StoreDistance
from invflow.layers._gradient_sums import LayerGraph
from invflow.layers._inversion import Chain
from invflow.layers._traces import SideEffects, next_node, sources
from invflow.layers.conditioning import context_for
from invflow.layers.protocol import checked_latents, watches_all
from invflow.ops._transforms import needs_reference

__all__ = ["builds_graph", "encode_reversibly"]


def _has_hooks(layer: nn.Module) -> bool:
    """Return whether somebody watches the calls of a layer, or of a layer inside it, by hooks."""
    return watches_all() or any(
        (part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks)
        and callable(getattr(part, "inverse", None))
        for part in layer.modules()
    )


def builds_graph(flow: nn.Module, x: Tensor, context: Any) -> bool:
    """Return whether a call would build a graph of values, which no compiler, transform or tracer looks on at."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or needs_reference():
        return False
    if torch.jit.is_tracing() or is_fake(x):
        return False
    # a tensor that a network holds besides its parameters is not looked for
    return any(tensor.requires_grad for tensor in itertools.chain([x], _tensors_in(context), flow.parameters()))


def encode_reversibly(
    layers: Iterable[tuple[str, nn.Module]], distance: StoreDistance, x: Tensor, context: Any
) -> tuple[list[Tensor], Any]:
    """Return all latents and log_det of a flow; the backward pass reconstructs the states in between.

    Args:
        layers: the layers in order, each with its name in messages.
        distance: says which states are stored.
        x: (B, C, *).
        context: argument of every layer: a tensor, a shared context, or a structure that holds tensors.

    Raises:
        RuntimeError: in the backward pass, if a parameter has changed, a state cannot be reconstructed, or a second
            derivative is asked for.
    """
    latents: list[Tensor] = []
    total: Any = None
    chain: Chain | None = None
    inverted, stored = 0, []
    layers = list(layers)
    autocast = _autocast_of(x.device.type)
    with autocast():
        for position, (name, layer) in enumerate(layers):
            effects, since = SideEffects(layer, x.device), next_node()
            try:
                z, log_det = layer(x, context_for(layer, context))
            except LayerError as error:
                raise type(error)(f"{name}: {error}") from None
            results = [*checked_latents(z, layer, name), log_det]
            graph = _graph_of(results, x, context, since)
            problem = None if graph is None else _problem_of(layer, effects, graph)
            if graph is None or problem or graph.cuts:
                if chain is not None:
                    chain.end(x)
                chain = None
            else:
                chain = chain or Chain(distance, context, autocast)
                last = position == len(layers) - 1
                results = chain.append(name, layer, effects.contents(), x, results, graph, last)
                inverted += 1
            if problem:
                stored.append(f"{name}: {problem}")
            *leaving, x, log_det = results
            latents += leaving
            total = log_det if total is None else total + log_det
    if stored:
        warnings.warn(
            f"FlowSequential(memory='invert') stores what the backward pass needs of {len(stored)} of its "
            f"{len(layers)} layers. {stored[0]}",
            stacklevel=2,
        )
    if inverted and len(layers) > 1:
        *latents, total = _after_last_layer(x, [*latents, total])
    return [*latents, x], total


def _graph_of(results: Sequence[Any], x: Tensor, context: Any, since: int) -> LayerGraph | None:
    """Return the graph of a layer's results, ``None`` if they have none."""
    differentiable = _trained(results)
    if not differentiable:
        return None
    contexts = _trained(_tensors_in(context))
    found = sources(differentiable, [*contexts, *_trained([x])], since)
    cuts = not results[-2].requires_grad or (x.requires_grad and len(contexts) not in found.reached)
    used = sorted(position for position in found.reached if position < len(contexts))
    return LayerGraph(list(found.leaves.values()), used, found.problem, cuts)


def _problem_of(layer: nn.Module, effects: SideEffects, graph: LayerGraph) -> str | None:
    return "it has hooks" if _has_hooks(layer) else graph.problem or effects.problem()


class _LastLayerFirst(torch.autograd.Function):
    """Hands tensors on. Their backward pass goes through the last layer, with which all reconstruction begins."""

    @staticmethod
    def forward(ctx: Any, last: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        # log_det is few numbers, and often changed in place, which a view would forbid
        return *(other.view_as(other) for other in others[:-1]), others[-1].clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, *grads


def _after_last_layer(last: Tensor, others: list[Any]) -> list[Any]:
    """Return latents and log_det whose backward pass goes through the layer that made ``last``."""
    if not last.requires_grad:
        return others
    *latents, log_det = others
    trained = _trained(latents)
    if isinstance(log_det, Tensor) and log_det.requires_grad:
        *found, log_det = _LastLayerFirst.apply(last, *trained, log_det)
    elif trained:
        *found, _ = _LastLayerFirst.apply(last, *trained, last.new_zeros(()))
    replaced = dict(zip(map(id, trained), found, strict=True)) if trained else {}
    return [*(replaced.get(id(latent), latent) for latent in latents), log_det]


def _tensors_in(context: Any) -> list[Tensor]:
    return [leaf for leaf in _pytree.tree_leaves(context) if isinstance(leaf, Tensor)]


def _trained(values: Iterable[Any]) -> list[Tensor]:
    return [value for value in values if isinstance(value, Tensor) and value.requires_grad]


def _autocast_of(device: str) -> Callable[[], AbstractContextManager[Any]]:
    """Return the present autocast state of a device type, to be entered again.

    It caches no weights. A cached one belongs to the graph in which it was cast first, which is dropped.
    """
    if not torch.amp.is_autocast_available(device):
        return nullcontext
    enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)

    def enter() -> AbstractContextManager[Any]:
        if not enabled and not torch.is_autocast_enabled(device):
            return nullcontext()
        return torch.autocast(device, dtype=dtype, enabled=enabled, cache_enabled=False)

    return enter
