"""Channel maps of all flow steps of a flow, derived together: one factorisation and one derivative for a size.

On a GPU a step's own matrices cost some fifty launches forward and backward, however small they are. Together they cost
those of one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextvars import ContextVar, Token
from copy import copy
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from invflow._numerics import reads_freely
from invflow.layers._derived import ChannelMap, FactorCache
from invflow.layers._group import Group, Sources
from invflow.layers._late import LateCheck, is_captured
from invflow.ops._transforms import is_watched, saving_is_watched

__all__ = ["Derivation", "Maps", "Resumed", "Together", "factors_of", "map_of", "present_maps"]


class Derivation:
    """Memory of a flow that derives its channel maps together. A copy has nothing.

    Attributes:
        caches: of the factors, by kind of weight; on the CPU.
        late: determinants that are still to be looked at; on other devices.
    """

    def __init__(self) -> None:
        self.caches: dict[Any, FactorCache] = {}
        self.late = LateCheck()

    def __reduce__(self) -> tuple[type[Derivation], tuple[()]]:
        return Derivation, ()


class Maps:
    """The channel maps of a flow's steps, for one call and its backward pass. They are derived when one is asked for.

    Args:
        flow: a FlowSequential.
        derivation: what it keeps.
        whole: derive whole maps with their gradients together, not only factors of the weights.
    """

    def __init__(self, flow: Any, derivation: Derivation, *, whole: bool) -> None:
        self._whole = whole
        self._derived = _Derived(flow, derivation)

    def derive(self) -> None:
        """Derive the maps now, if they are not yet."""
        self._derived.find()

    def covers(self, flow: nn.Module) -> bool:
        """Return whether the maps of a flow are among these."""
        return self._derived.covers(flow)

    def factors_only(self) -> Maps:
        """Return these maps without those that have a graph."""
        if not self._whole:
            return self
        maps = copy(self)
        maps._whole = False
        return maps

    def map_of(self, step: object, dtype: torch.dtype, *, inverse: bool) -> ChannelMap | None:
        """Return the map of a step, or its inverse, with matrix and shift of a dtype; ``None`` if it is not known.

        It is not known any more once a parameter has changed, such as those of an actnorm that initialises.
        """
        place = self._derived.find().places.get(id(step))
        if place is None:
            return None
        group, index = place
        if not group.holds(index):
            return None
        trained = torch.is_grad_enabled() and group.trained
        return None if trained and not self._whole else group.maps(dtype, inverse, trained)[index]

    def factors_of(self, weight: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return the inverse of a weight and ``log |det|``, in float64; ``None`` if they are not known."""
        place = self._derived.find().factors.get(id(weight))
        if place is None:
            return None
        group, index, pair = place
        return pair if group.holds_weight(index) else None


class _Found(NamedTuple):
    """Places of what was derived together.

    Attributes:
        places: group of a step, and its index there, by the id of the step.
        factors: group and index of a weight, and its factors, by the id of the weight.
    """

    places: dict[int, tuple[Group, int]]
    factors: dict[int, tuple[Group, int, tuple[Tensor, Tensor]]]


class _Derived:
    """The groups of a flow's steps, which are found at the first question."""

    def __init__(self, flow: Any, derivation: Derivation) -> None:
        self._flow, self._derivation = flow, derivation
        self._found: _Found | None = None
        self._flows: set[int] | None = None

    def covers(self, flow: nn.Module) -> bool:
        """Return whether a flow is this one or in it."""
        if flow is self._flow:
            return True
        if self._flows is None:
            self._flows = set(_flows_in(self._flow))
        return id(flow) in self._flows

    def find(self) -> _Found:
        """Return the groups."""
        found = self._found
        if found is None:
            with torch.inference_mode(False), torch.no_grad():
                found = self._found = self._derive()
        return found

    def _derive(self) -> _Found:
        found = _Found({}, {})
        kinds: dict[Any, list[tuple[str, nn.Module, Sources]]] = {}
        steps: set[int] = set()
        for name, step, sources in _steps_in(self._flow, ""):
            if id(step) not in steps:
                steps.add(id(step))
                tensors = sources[1:]
                kind = (tuple(sources.weight.shape), *((tensor.dtype, tensor.device) for tensor in tensors))
                kinds.setdefault(kind, []).append((name, step, sources))
        dets, owners = [], []
        for kind, members in kinds.items():
            if len(members) < 2:
                continue
            cache = self._derivation.caches.setdefault((*kind, len(members)), FactorCache())
            group = Group([each[2] for each in members], cache)
            usable = [True] * len(members)
            if reads_freely(group.log_abs_det):
                if not bool(group.log_abs_det.isfinite().all()):
                    # these are derived where they are needed, and raise there
                    usable = group.log_abs_det.isfinite().tolist()
            else:
                dets.append(group.log_abs_det)
                owners += [(name, each.owner, each.weight) for name, _, each in members]
            factors = zip(group.weight_inverse.unbind(), group.log_abs_det.unbind(), strict=True)
            for index, ((_, step, each), pair) in enumerate(zip(members, factors, strict=True)):
                if usable[index]:
                    found.places[id(step)] = group, index
                    found.factors[id(each.weight)] = group, index, pair
                    group.hand_over(index, each, pair)
        if dets:
            self._derivation.late.note(torch.cat(dets), owners)
        return found


def _flows_in(flow: Any) -> Iterator[int]:
    """Yield the ids of a flow and of flows in it."""
    yield id(flow)
    for layer in flow._modules["layers"]:
        if _is_flow(layer, flow):
            yield from _flows_in(layer)


def _is_flow(layer: nn.Module, flow: Any) -> bool:
    return getattr(type(layer), "deriving", None) is type(flow).deriving and "forward" not in layer.__dict__


def _steps_in(flow: Any, prefix: str) -> Iterator[tuple[str, nn.Module, Sources]]:
    """Yield the steps of a flow, and of flows in it, that may be derived together, with their names in messages."""
    for position, layer in enumerate(flow._modules["layers"]):
        name, own = f"{prefix}layer {position}: ", getattr(type(layer), "map_sources", None)
        if own is not None:
            sources, actnorm = own(layer), layer._modules["actnorm"]
            # a first batch would change what the derivative of all maps has kept
            if sources is not None and not cast(Any, actnorm).may_initialize():
                yield name, layer, sources
        elif _is_flow(layer, flow):
            yield from _steps_in(layer, name)


_PRESENT: ContextVar[Maps | None] = ContextVar("invflow_maps", default=None)


class Together:
    """While it is entered, the steps of a flow derive their maps together.

    Nothing is derived together within a flow that does so already, while somebody looks on, or on the CPU without
    gradients, where every step remembers its map.

    Args:
        flow: a FlowSequential.
        derivation: what it keeps.
        like: a state.
        whole: as :class:`Maps` takes it.
    """

    __slots__ = ("_arguments", "_token")

    def __init__(self, flow: Any, derivation: Derivation, like: Tensor, *, whole: bool = True) -> None:
        self._arguments = flow, derivation, like, whole

    def __enter__(self) -> None:
        self._token: Token[Maps | None] | None = None
        if torch.compiler.is_compiling():
            return
        flow, derivation, like, whole = self._arguments
        if (reads_freely(like) and not torch.is_grad_enabled()) or is_watched():
            return
        # Activation checkpointing counts what a first pass and a second one save. They must not differ, though in the
        # first one actnorms may initialise, whose maps cannot be derived before.
        whole = whole and not saving_is_watched()
        present = _PRESENT.get()
        if present is not None and present.covers(flow):
            if not whole:
                self._token = _PRESENT.set(present.factors_only())
            return
        if not (reads_freely(like) or is_captured(like)):
            derivation.late.look()
        maps = Maps(flow, derivation, whole=whole)
        if not reads_freely(like):
            maps.derive()
        self._token = _PRESENT.set(maps)

    def __exit__(self, *error: object) -> None:
        if self._token is not None:
            _PRESENT.reset(self._token)


class Resumed:
    """While it is entered, the maps of an earlier call are present: in its backward pass.

    Args:
        maps: as :func:`present_maps` returned them.
    """

    def __init__(self, maps: Maps | None) -> None:
        self._maps = maps

    def __enter__(self) -> None:
        self._token = _PRESENT.set(self._maps)

    def __exit__(self, *error: object) -> None:
        _PRESENT.reset(self._token)


def present_maps() -> Maps | None:
    """Return the maps that have been derived together for the flow that runs, if any."""
    return None if torch.compiler.is_compiling() else _PRESENT.get()


def map_of(step: object, dtype: torch.dtype, *, inverse: bool) -> ChannelMap | None:
    """Return the map of a step, as :meth:`Maps.map_of`, if the flow that runs has derived it."""
    maps = present_maps()
    return None if maps is None else maps.map_of(step, dtype, inverse=inverse)


def factors_of(weight: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the factors of a weight, as :meth:`Maps.factors_of`, if the flow that runs has derived them."""
    maps = present_maps()
    return None if maps is None else maps.factors_of(weight)
