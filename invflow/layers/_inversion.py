"""The backward pass of ``FlowSequential(memory="invert")``: reconstructed states, handed on from layer to layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from invflow.layers._drift import DRIFT_TOLERANCE, StoreDistance, relative_difference
from invflow.layers._gradient_sums import GradientSums, LayerGraph
from invflow.layers._together import Resumed, present_maps
from invflow.layers._traces import Contents, check_version, next_node, version_of
from invflow.layers.conditioning import context_for
from invflow.layers.protocol import Rerun, Reversible, Stage, num_latents_of, supports

__all__ = ["Chain", "stages_of"]

_keeps_graph: Callable[[], bool] = torch._C._autograd._get_current_graph_task_keep_graph


def stages_of(layer: nn.Module) -> list[Stage]:
    """Return a layer's own stages, or the layer as one stage, reconstructed by its inverse and forward pass."""
    if supports(layer, "reverse_stages"):
        return cast(Reversible, layer).reverse_stages()
    return [Stage(partial(_rerun_any, layer), num_latents_of(layer))]


def _rerun_any(layer: Any, z: Tensor | list[Tensor], context: Any) -> Rerun:
    with torch.enable_grad():
        context = context_for(layer, context)
    x = layer.inverse(z, context)[0].detach().requires_grad_()
    with torch.enable_grad():
        # not the leaf itself, which a layer may return as it is
        return Rerun(x.detach(), [x], *layer(x.view_as(x), context))


class _State(NamedTuple):
    """A state on its way from layer to layer in a backward pass.

    Attributes:
        z: the state.
        exact: it was stored, not reconstructed.
        bound: largest magnitude in the state with which the reconstruction began.
    """

    z: Tensor
    exact: bool
    bound: Tensor


class Chain:
    """Layers in a row that one forward pass inverts. The backward pass hands the state from the last to the first."""

    def __init__(self, distance: StoreDistance, context: Any, autocast: Callable[[], AbstractContextManager[Any]]):
        self.distance, self.autocast = distance, autocast
        self.length = 0
        self.maps = present_maps()
        leaves, self._structure = _pytree.tree_flatten(context)
        # not the tensors themselves, whose graph would be kept after its backward pass
        self._context = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self._trained = [isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves]
        self._versions = [version_of(leaf) for leaf in self._context]
        self._inputs = [leaf for leaf, trained in zip(leaves, self._trained, strict=True) if trained]
        self._output: tuple[Tensor, int] | None = None
        # by the number of the backward pass: several may go on at a time
        self._states: dict[int, _State | None] = {}

    def append(
        self,
        name: str,
        layer: nn.Module,
        contents: Contents,
        x: Tensor,
        results: list[Any],
        graph: LayerGraph,
        last: bool,
    ) -> list[Any]:
        """Return the results of a layer with a graph that reconstructs.

        Args:
            name: of the layer, for messages.
            layer: the layer.
            contents: its parameters and buffers.
            x: its input.
            results: its latents and log_det, with their graph.
            graph: what was found out about this graph.
            last: whether no layer comes after.
        """
        with torch.no_grad():
            link = _Link(self, name, layer, contents, graph, results)
            results = [*link.results]
        link.stores_output = last
        self.length += 1
        outputs = _Inverted.apply(link, x, *(self._inputs[i] for i in graph.contexts), *graph.leaves)
        for position, output in zip(link.of_results, outputs, strict=True):
            results[position] = output
        return results

    def end(self, z: Tensor) -> None:
        """Note the output of the last layer so far, after which a layer comes that is not inverted."""
        self._output = z.detach(), version_of(z)

    def state_after(self, position: int, stored: Tensor | None) -> _State:
        """Return the output of the layer at a position.

        Args:
            position: of the layer.
            stored: the output, if it was stored.
        """
        z = stored
        if z is None and position == self.length - 1 and self._output is not None:
            z, version = self._output
            check_version("a state", z, version)
        if z is not None:
            return _State(z, True, torch.linalg.vector_norm(z.detach(), math.inf) if z.numel() else z.new_zeros(()))
        task = torch._C._current_graph_task_id()
        state = self._states.get(task)
        if state is None:
            raise RuntimeError(
                "FlowSequential: memory='invert' needs a gradient through all layers; use memory='store'"
            )
        self._states[task] = None
        return state

    def context(self) -> tuple[Any, list[Tensor]]:
        """Return the context with new leaves in the place of tensors that need a gradient, and these leaves."""
        for leaf, version in zip(self._context, self._versions, strict=True):
            check_version("the context", leaf, version)
        leaves = [
            leaf.detach().requires_grad_() if trained else leaf
            for leaf, trained in zip(self._context, self._trained, strict=True)
        ]
        trained = [leaf for leaf, trained in zip(leaves, self._trained, strict=True) if trained]
        return _pytree.tree_unflatten(leaves, self._structure), trained

    def hand_on(self, state: _State) -> None:
        """Keep a state for the layer before, in this backward pass."""
        task = torch._C._current_graph_task_id()
        if task not in self._states:
            # a pass that needs no gradient of the layers before leaves the state behind
            engine: Any = torch.autograd.Variable._execution_engine
            engine.queue_callback(lambda: self._states.pop(task, None))
        self._states[task] = state

    def release(self) -> None:
        """Let go of tensors that no further backward pass may use, as the graph does that a loss keeps alive."""
        self._context, self._inputs, self._output, self.maps = [], [], None, None


class _Link:
    """One layer of a chain in one forward pass.

    Attributes:
        chain: the chain.
        name: of the layer, for messages.
        layer: the layer.
        contents: its parameters and buffers.
        position: in the chain.
        graph: the graph that it built.
        stores_input: whether its input is stored.
        stores_output: whether its output is stored; otherwise the layer after hands it on.
        of_results: positions, among its latents and log_det, of those that have a gradient.
        results: latents and log_det, until the function has returned them.
    """

    def __init__(
        self, chain: Chain, name: str, layer: nn.Module, contents: Contents, graph: LayerGraph, results: list[Any]
    ) -> None:
        self.chain, self.name, self.layer, self.contents, self.graph = chain, name, layer, contents, graph
        self.versions = list(map(version_of, graph.leaves))
        self.position = chain.length
        stored = chain.distance.layers
        self.stores_input = self.position % stored == 0 if stored else self.position == 0
        self.stores_output = False
        self.of_results = [i for i, result in enumerate(results) if isinstance(result, Tensor) and result.requires_grad]
        self.results = [result.detach() if isinstance(result, Tensor) else result for result in results]

    def check(self) -> None:
        """Check that the layer is still that of the forward pass.

        Raises:
            RuntimeError: something has changed.
        """
        changed = self.contents.changed()
        if changed is not None:
            raise RuntimeError(f"FlowSequential: {self.name}: {changed}")
        for leaf, version in zip(self.graph.leaves, self.versions, strict=True):
            check_version(f"{self.name}: a tensor that it uses", leaf, version)


class _Inverted(torch.autograd.Function):
    """A layer without a graph. Its backward pass reconstructs its input and builds the graph again.

    Inputs are the state, the tensors of the context and the leaves that the layer's graph starts from.
    """

    @staticmethod
    def forward(ctx: Any, link: _Link, x: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        *leaving, z, _ = link.results
        ctx.link = link
        ctx.save_for_backward(x if link.stores_input else None, *leaving, z if link.stores_output else None)
        outputs = tuple(link.results[i] for i in link.of_results)
        link.results = []
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        link: _Link = ctx.link
        if torch.is_grad_enabled():
            raise RuntimeError("FlowSequential: memory='invert' has no second derivative; use memory='store'")
        x, *leaving, z = ctx.saved_tensors
        link.check()
        chain = link.chain
        state = chain.state_after(link.position, z)
        output_grads: list[Tensor | None] = [None] * (len(leaving) + 2)
        for position, grad in zip(link.of_results, grads, strict=True):
            output_grads[position] = grad
        context, leaves = chain.context()
        gradients = GradientSums(link.name, link.graph, context, leaves)
        bound = state.bound
        with link.contents.modes(), Resumed(chain.maps):
            if x is None:
                latents = [*leaving, state.z]
                del leaving, z, state  # _reconstruct frees each when it has been used
                before, grad_x = _reconstruct(link, gradients, latents, output_grads)
            else:
                grad_x = _evaluate_again(link, gradients, x, ctx.needs_input_grad[1], state, leaving, output_grads)
                before = x
        if link.position:
            chain.hand_on(_State(before.detach(), x is not None, bound))
        elif not _keeps_graph():
            chain.release()
        return None, grad_x, *gradients.found()


def _reconstruct(
    link: _Link, gradients: GradientSums, latents: list[Tensor], grads: list[Tensor | None]
) -> tuple[Tensor, Tensor | None]:
    """Return the input of a layer, reconstructed stage by stage, and its gradient.

    Args:
        link: the layer.
        gradients: sums up all other gradients.
        latents: what the layer returned. They are taken off the list.
        grads: gradients of latents and log_det.
    """
    z = latents.pop()
    leaving = latents
    *leaving_grads, grad, grad_log_det = grads
    for stage in reversed(stages_of(link.layer)):
        extra = stage.num_latents - 1
        output: Any = z
        output_grads = [grad]
        if extra:
            output, output_grads = [*leaving[-extra:], z], [*leaving_grads[-extra:], grad]
            del leaving[-extra:], leaving_grads[-extra:]
        since = next_node()
        # autocast ends before the backward pass, which would else round the float32 parts of a network
        with torch.no_grad(), link.chain.autocast():
            again = stage.rerun(output, gradients.context)
        results = [*(again.z if isinstance(again.z, list | tuple) else [again.z]), again.log_det]
        parts = gradients.add(results, [*output_grads, grad_log_det], again.leaves, since)
        grad = _joined(parts, again.leaves)
        z = again.x
    return z, grad


def _joined(parts: list[Tensor | None], leaves: list[Tensor]) -> Tensor | None:
    if all(part is None for part in parts):
        return None
    pieces = [torch.zeros_like(leaf) if part is None else part for part, leaf in zip(parts, leaves, strict=True)]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, 1)


def _evaluate_again(
    link: _Link,
    gradients: GradientSums,
    x: Tensor,
    needs_x: bool,
    state: _State,
    leaving: list[Tensor],
    grads: list[Tensor | None],
) -> Tensor | None:
    """Return the gradient of a stored state, and check what was reconstructed of the state after the layer.

    Args:
        link: the layer.
        gradients: sums up all other gradients.
        x: the stored state.
        needs_x: whether its gradient is wanted.
        state: the state after the layer.
        leaving: latents that left.
        grads: gradients of latents and log_det.
    """
    leaf = x.detach().requires_grad_(needs_x)
    since = next_node()
    with torch.enable_grad(), link.chain.autocast():
        # not the leaf itself, which a layer may return as it is
        z, log_det = link.layer(leaf.view_as(leaf), context_for(link.layer, gradients.context))
    latents = list(z) if isinstance(z, list | tuple) else [z]
    _check_reconstruction(link, state, [*leaving, state.z], [latent.detach() for latent in latents])
    return gradients.add([*latents, log_det], grads, [leaf], since)[0]


def _check_reconstruction(link: _Link, state: _State, actual: list[Tensor], expected: list[Tensor]) -> None:
    """Compare the latents of a layer with those that a second evaluation returns.

    Raises:
        RuntimeError: a reconstruction that is not finite, or a layer that does not compute the same again.
    """
    drift = relative_difference(actual, expected)
    if drift <= DRIFT_TOLERANCE:
        return
    # a forward pass that is not finite somewhere has gradients as bad with memory="store"
    drift = relative_difference(actual, expected, only_finite=True)
    if drift <= DRIFT_TOLERANCE or not (math.isfinite(drift) or bool(state.bound.isfinite())):
        return
    if state.exact:
        raise RuntimeError(
            f"FlowSequential: {link.name}: its second evaluation differs from the first by {drift:.1e} of the largest "
            "element, which memory='invert' does not allow; use memory='store'"
        )
    distance = link.chain.distance
    if math.isfinite(drift):
        distance.note_drift(drift, link.chain.length)
        return
    distance.store_more(link.chain.length)
    raise RuntimeError(
        f"FlowSequential: {link.name}: its output could not be reconstructed from that of the layers after it, it is "
        "not finite. The gradients of this backward pass are wrong; use memory='store'"
    )
