"""Gradients of a layer that is evaluated again in the backward pass, stage by stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from invflow.layers._traces import differentiate, sources

__all__ = ["GradientSums", "LayerGraph"]


class LayerGraph(NamedTuple):
    """The graph that a layer has built in the forward pass.

    Attributes:
        leaves: parameters and other leaves that it starts from.
        contexts: positions of the context's tensors that it uses, among those that need a gradient.
        problem: why it cannot be built again later; ``None`` if it can.
        cuts: no gradient of the state passes through the layer.
    """

    leaves: list[Tensor]
    contexts: list[int]
    problem: str | None
    cuts: bool


class GradientSums:
    """Gradients of the context and the leaves of a layer, summed over its stages."""

    def __init__(self, name: str, graph: LayerGraph, context: Any, context_leaves: list[Tensor]) -> None:
        self.context = context
        self._name, self._graph = name, graph
        self._context_leaves = context_leaves
        self._contexts: set[int] = set()
        self._sums: dict[int, Tensor] = {}
        self._used: set[int] = set()

    def add(
        self, results: Sequence[Any], grads: Sequence[Tensor | None], leaves: list[Tensor], since: int
    ) -> list[Tensor | None]:
        """Differentiate a stage, and return the gradients of its state.

        Args:
            results: latents and log_det.
            grads: their gradients.
            leaves: the state, in one or more pieces.
            since: number of the first node of its graph.
        """
        pairs = [
            (result, grad)
            for result, grad in zip(results, grads, strict=True)
            if isinstance(result, Tensor) and result.requires_grad
        ]
        graph = sources([result for result, _ in pairs], self._context_leaves, since)
        own = set(map(id, leaves))
        used = {key: leaf for key, leaf in graph.leaves.items() if key not in own}
        self._used |= used.keys()
        self._contexts |= graph.reached
        inputs = [*(self._context_leaves[i] for i in graph.reached), *used.values()]
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        known = [(result, grad.sum_to_size(result.shape)) for result, grad in pairs if grad is not None]
        if not known or not (wanted or inputs):
            return [None] * len(leaves)
        found = differentiate([result for result, _ in known], [*wanted, *inputs], [grad for _, grad in known])
        for tensor, part in zip(inputs, found[len(wanted) :], strict=True):
            if part is not None:
                key = id(tensor)
                self._sums[key] = self._sums[key] + part if key in self._sums else part
        of_state = dict(zip(map(id, wanted), found, strict=False))
        return [of_state.get(id(leaf)) for leaf in leaves]

    def found(self) -> list[Tensor | None]:
        """Return the gradients, in the order of the inputs.

        Raises:
            RuntimeError: the layer has used other tensors than in the forward pass.
        """
        graph = self._graph
        if self._used != set(map(id, graph.leaves)) or self._contexts != set(graph.contexts):
            raise RuntimeError(
                f"FlowSequential: {self._name}: its parameters are not those of the forward pass, which "
                "memory='invert' needs"
            )
        inputs = [*(self._context_leaves[i] for i in graph.contexts), *graph.leaves]
        return [self._sums.get(id(tensor)) for tensor in inputs]
