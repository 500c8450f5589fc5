"""Traces of the evaluation of a layer: where its graph starts, and what it changed besides its results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from invflow.layers.actnorm import ActNorm
from invflow.layers.conv1x1 import InvertibleConv1x1

__all__ = [
    "Contents",
    "SideEffects",
    "Sources",
    "check_version",
    "differentiate",
    "next_node",
    "sources",
    "version_of",
]

_Edge = tuple[Any, int]
_Leaf = type(get_gradient_edge(torch.zeros((), requires_grad=True)).node)

#: Number of the graph's node that this thread makes next.
next_node: Any = torch._C._autograd._get_sequence_nr


class Sources(NamedTuple):
    """The tensors that a graph starts from.

    Attributes:
        leaves: parameters and other leaves by their id, without the known tensors.
        reached: positions of the known tensors that it uses.
        problem: why the graph cannot be made again at another time; ``None`` if it can.
    """

    leaves: dict[int, Tensor]
    reached: set[int]
    problem: str | None


def sources(results: Iterable[Tensor], known: Sequence[Tensor], since: int) -> Sources:
    """Walk from tensors back to those that their graph starts from.

    Args:
        results: tensors with a graph.
        known: tensors that need a gradient and at which the walk ends.
        since: ``next_node()`` before the graph was made. What is older was computed by somebody else.
    """
    # an edge keeps its node's Python object alive, by whose identity nodes are told apart
    ends: dict[_Edge, list[int]] = {}
    for position, tensor in enumerate(known):
        end = get_gradient_edge(tensor)
        ends.setdefault((end.node, end.output_nr), []).append(position)
    leaves: dict[int, Tensor] = {}
    reached: set[int] = set()
    problem: str | None = None
    seen: set[Any] = set()
    stack: list[_Edge] = [(start.node, start.output_nr) for start in map(get_gradient_edge, results)]
    while stack:
        edge = stack.pop()
        node = edge[0]
        if edge in ends:
            reached.update(ends[edge])
        elif node is None or node in seen:
            continue
        elif type(node) is _Leaf:
            seen.add(node)
            variable: Tensor = node.variable  # type: ignore[attr-defined]
            leaves[id(variable)] = variable
        elif node._sequence_nr() < since:
            seen.add(node)
            problem = f"it uses a tensor that was computed before, by {node.name()}"
        else:
            seen.add(node)
            if node.name() == "CheckpointFunctionBackward":
                problem = "it uses torch.utils.checkpoint with use_reentrant=True"
            stack += node.next_functions
    return Sources(leaves, reached, problem)


class _Outside:
    """A hook on a tensor that sleeps while a layer is differentiated: it waits for the whole gradient."""

    def __init__(self, hook: Any) -> None:
        self.hook = hook

    def __call__(self, grad: Tensor) -> Any:
        return None if torch._C._current_graph_task_id() in _inside else self.hook(grad)


#: Numbers of the backward passes that differentiate one layer. A hook may run in any thread, so no thread has them.
_inside: set[int] = set()


def differentiate(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], grads: Sequence[Tensor]
) -> Sequence[Tensor | None]:
    """Return the gradients of leaves ``inputs`` without a run of the hooks that are registered on them."""
    hooked = False
    for tensor in inputs:
        hooks = tensor._backward_hooks
        for key, hook in (hooks or {}).items():
            hooked = True
            if not isinstance(hook, _Outside):
                hooks[key] = _Outside(hook)  # type: ignore[index]
    if not hooked:
        return torch.autograd.grad(outputs, inputs, grads, allow_unused=True)
    tasks: set[int] = set()

    def enter(grad: Tensor) -> None:
        tasks.add(torch._C._current_graph_task_id())
        _inside.update(tasks)

    outputs[0].register_hook(enter)
    try:
        return torch.autograd.grad(outputs, inputs, grads, allow_unused=True)
    finally:
        _inside.difference_update(tasks)


class _Content(NamedTuple):
    owner: Mapping[str, Tensor | None]
    key: str
    tensor: Tensor
    version: tuple[int, int]
    #: of a buffer whose change through ``.data`` would otherwise go unnoticed
    copy: Tensor | None
    watched: bool

    def is_as_it_was(self) -> bool:
        return self.owner.get(self.key) is self.tensor and _version(self.tensor) == self.version


def _version(tensor: Tensor) -> tuple[int, int]:
    plain = type(tensor) in (Tensor, nn.Parameter)
    return version_of(tensor), tensor.data_ptr() if plain else 0


class Contents:
    """Parameters and buffers of a layer, and the mode of each of its modules, at one time."""

    def __init__(self, layer: nn.Module, *, copies: bool = False) -> None:
        self._layer = layer
        self._all: list[_Content] = []
        self._modes: list[tuple[nn.Module, bool]] = []
        for module in layer.modules():
            self._modes.append((module, module.training))
            # an actnorm that initialises computes the same ever after
            watched = not isinstance(module, ActNorm | InvertibleConv1x1)
            for owner in (module._parameters, module._buffers):
                for key, tensor in owner.items():
                    if tensor is not None:
                        copied = copies and watched and owner is module._buffers
                        copy = tensor.clone() if copied else None
                        self._all.append(_Content(owner, key, tensor, _version(tensor), copy, watched))

    @contextmanager
    def modes(self) -> Iterator[None]:
        """Put every module into the mode, training or evaluation, in which it was, for as long as the block lasts."""
        others = [(module, training) for module, training in self._modes if module.training is not training]
        for module, training in others:
            module.training = training
        try:
            yield
        finally:
            for module, training in others:
                module.training = not training

    def changed(self) -> str | None:
        """Return what is another tensor now or has been written to, in a message, if anything is."""
        for content in self._all:
            if content.owner.get(content.key) is not content.tensor:
                return "its parameters are not those of the forward pass, which memory='invert' needs"
            if not content.is_as_it_was():
                return _modified(self._name(content), version_of(content.tensor), content.version[0])
        return None

    def changed_by_evaluation(self) -> str | None:
        """Return the name of a parameter or buffer that a network has changed, if there is one."""
        for content in self._all:
            if content.watched and not (
                content.is_as_it_was() and (content.copy is None or torch.equal(content.tensor, content.copy))
            ):
                return self._name(content)
        return None

    def _name(self, content: _Content) -> str:
        for prefix, module in self._layer.named_modules():
            if content.owner is module._parameters or content.owner is module._buffers:
                return f"{prefix}.{content.key}" if prefix else content.key
        return content.key


class SideEffects:
    """Notices what the evaluation of a layer changes, so that a second evaluation would differ or change it again."""

    def __init__(self, layer: nn.Module, device: torch.device) -> None:
        self._layer, self._device = layer, device
        self._contents = Contents(layer, copies=True)
        self._random = _random_states(device)

    def contents(self) -> Contents:
        """Return parameters and buffers as they are after the evaluation."""
        return self._contents if self._contents.changed() is None else Contents(self._layer)

    def problem(self) -> str | None:
        """Return what happened since this object was made, if it matters."""
        changed = self._contents.changed_by_evaluation()
        if changed is not None:
            return f"an evaluation changes its {changed}"
        if not all(map(torch.equal, self._random, _random_states(self._device))):
            return "it draws random numbers"
        return None


def _random_states(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    if device.type not in ("cpu", "meta"):
        states.append(torch.get_device_module(device).get_rng_state(device))
    return states


def version_of(value: Any) -> int:
    """Return how often a tensor was written in place; 0 for anything else."""
    return value._version if isinstance(value, Tensor) and not value.is_inference() else 0


def check_version(name: str, value: Any, version: int) -> None:
    """Raise unless a value is still at the version at which a forward pass has seen it.

    Args:
        name: the value's name in the message.
        value: a tensor; anything else passes.
        version: what :func:`version_of` returned then.

    Raises:
        RuntimeError: it was written in place since.
    """
    if version_of(value) != version:
        raise RuntimeError(f"FlowSequential: {_modified(name, version_of(value), version)}")


def _modified(name: str, found: int, expected: int) -> str:
    return (
        f"{name}, needed for gradient computation, has been modified by an inplace operation: it is at version "
        f"{found}; expected version {expected} instead"
    )
