"""The contract of layers, and the optional capabilities of a layer, which save memory or time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeGuard, runtime_checkable

from torch import Tensor, nn
from torch.nn.modules import module as _torch_modules

from invflow.ops import AffineForm, affine_coupling

__all__ = [
    "Conditionable",
    "ConditionedInverse",
    "Context",
    "Foldable",
    "Fusable",
    "InvertibleLayer",
    "PendingCoupling",
    "Rerun",
    "Reversible",
    "Shape",
    "SharedContext",
    "Stage",
    "checked_latents",
    "is_fusable",
    "is_shared",
    "is_watched",
    "num_latents_of",
    "output_shapes_of",
    "supports",
    "watches_all",
]
#: (C, *) of one sample of a state or latent: (C,) of a vector, (C, H, W) of an image.
Shape = tuple[int, ...]


class InvertibleLayer(Protocol):
    """A layer that composes in :class:`FlowSequential`: any ``nn.Module`` with ``forward`` and ``inverse``.

    ``log_det`` (B,) is the natural logarithm of the absolute Jacobian determinant of the map that was called.

    A layer that factors variables out states ``num_latents`` > 1. Its ``z`` is then the list of that many latents in
    encode order, and the composition goes on with the last of them. A layer without the attribute has one.

    ``output_shapes(shape)`` returns the shape (C, *) of every latent for an input of this shape. It raises
    ``ValueError`` for a shape that the layer does not take. A layer of one latent without the method counts as one that
    keeps the shape. A layer of several latents needs the method.
    """

    @property
    def num_latents(self) -> int: ...

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Any, Tensor]: ...

    def inverse(self, z: Any, context: Tensor | None = None) -> tuple[Tensor, Tensor]: ...

    def output_shapes(self, shape: Shape) -> list[Shape]: ...


class Rerun(NamedTuple):
    """A stage's input reconstructed from its output, and the stage applied to it once more with a graph.

    Attributes:
        x: the input, without a graph.
        leaves: the input in one piece or, along channels, two, from which the graph starts.
        z: what ``forward`` returns for them.
        log_det: (B,).
    """

    x: Tensor
    leaves: list[Tensor]
    z: Tensor | list[Tensor]
    log_det: Tensor


class Stage(NamedTuple):
    """A part of a flow that is reconstructed at once.

    Attributes:
        rerun: ``rerun(z, context)``.
        num_latents: number of tensors that its output consists of.
    """

    rerun: Callable[..., Rerun]
    num_latents: int = 1


@runtime_checkable
class Reversible(Protocol):
    """A layer that reconstructs its input cheaply while it is differentiated: ``FlowSequential(memory="invert")``.

    A coupling's network, say, is evaluated once for the inverse and for the graph. Any other layer is reconstructed by
    ``inverse`` and then evaluated again by ``forward``.
    """

    def reverse_stages(self) -> list[Stage]:
        """Return the stages that are reconstructed one after the other, in the order of ``forward``."""


class PendingCoupling(NamedTuple):
    """An affine coupling that has evaluated its network and waits to be applied in one pass with the next layer.

    Attributes:
        h: the network's raw output (B, 2C', *).
        form: rule by which ``h`` becomes shift and scale.
        start: the first of the C' channels that it transforms.
    """

    h: Tensor
    form: AffineForm
    start: int

    def apply(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the coupling by itself, and return y and log_det."""
        return affine_coupling(x, self.h, self.form, start=self.start)


@runtime_checkable
class Fusable(Protocol):
    """A layer that joins its neighbours' passes over the state.

    It applies the coupling of the layer before, and may leave its own to the layer after.
    """

    def forward_fused(
        self, x: Tensor, context: Tensor | None, pending: PendingCoupling | None
    ) -> tuple[Tensor, Tensor, PendingCoupling | None]:
        """Compute ``forward`` with the coupling of the layer before and without the last coupling of its own.

        Args:
            x: (B, C, *), the state before ``pending``.
            context: as in ``forward``.
            pending: the coupling of the layer before; ``None`` if there is none.

        Returns:
            The state before this layer's pending coupling, log_det (B,) of what was applied, and that coupling.
        """


#: ``inverse(z, part)``: a layer's inverse, without log_det, for states that belong to this part of a context's samples,
#: equally many successive ones each. ``z`` is as in the layer's ``inverse``.
ConditionedInverse = Callable[[Any, slice], Tensor]


class SharedContext(Protocol):
    """A context of B samples, each of which serves many states. It does context-only work for the layers.

    ``forward`` and ``inverse`` of a layer with ``takes_shared_context = True`` take it in the place of a tensor. Any
    other layer is given the joined context. Registered as a pytree (``torch.utils._pytree.register_pytree_node``), it
    has gradients under ``memory="invert"`` as well.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (B, context channels, *) of the joined context, with the spatial dimensions of the states."""

    def joined(self) -> Tensor:
        """Return the context (B, context channels, *) in one tensor."""

    def network(self, net: nn.Module) -> Callable[[Tensor | None, slice], Tensor]:
        """Evaluate what depends on the context only, and return the rest of the network.

        Args:
            net: a network that is called ``net(passed, context)`` or, inside an injector, ``net(context)``.

        Returns:
            ``output(passed, part)``: the network's output for the passed channels of states that belong to this part
            of the samples, equally many successive ones each. ``passed`` is ``None`` inside an injector.
        """


#: What a layer of this library takes as context.
Context = Tensor | SharedContext | None


@runtime_checkable
class Conditionable(Protocol):
    """A layer that does its context-only work once for many samples. Any other layer is given the joined context."""

    def conditioned_inverse(self, context: SharedContext) -> ConditionedInverse:
        """Return the inverse with everything computed that depends on the context only."""


@runtime_checkable
class Foldable(Protocol):
    """A layer, or a part of a network, that makes a copy for inference and export of itself.

    Anything else is copied as it is, with its submodules folded.
    """

    def folded(self) -> nn.Module:
        """Return a copy with the same methods, in plain PyTorch operations, whose derived values are constants."""


def supports(module: object, method: str, instead_of: tuple[str, ...] = ("forward", "inverse")) -> bool:
    """Return whether a method that stands for others, ``forward`` and ``inverse`` by default, still does so.

    It must come from the class that defines them, or from a subclass of it. A subclass that overrides one of them, or
    an instance on which one was replaced, is not bypassed. Neither is a subclass with a ``__call__`` of its own.
    """
    replaced = module.__dict__
    for name in instead_of:
        if name in replaced:
            return False
    for cls in type(module).__mro__:
        own = cls.__dict__
        if method in own:
            return True
        if "__call__" in own:
            return False
        for name in instead_of:
            if name in own:
                return False
    return False


def is_shared(context: Any) -> TypeGuard[SharedContext]:
    """Return whether a context is a :class:`SharedContext`, and not a tensor or what a layer of others takes."""
    return not (isinstance(context, Tensor) or context is None) and hasattr(type(context), "joined")


def watches_all() -> bool:
    """Return whether global hooks watch the calls of all modules."""
    return bool(
        _torch_modules._global_forward_hooks
        or _torch_modules._global_forward_pre_hooks
        or _torch_modules._global_backward_hooks
        or _torch_modules._global_backward_pre_hooks
    )


def is_watched(module: nn.Module) -> bool:
    """Return whether a call of the module does more than its ``forward``: it has hooks, or was compiled."""
    # not as attributes, which a module finds slowly
    own = module.__dict__
    return bool(
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or own.get("_compiled_call_impl")
    )


def is_fusable(layer: nn.Module) -> bool:
    """Return whether the layer is :class:`~invflow.layers.Fusable` and nobody watches its call."""
    return not (is_watched(layer) or watches_all()) and supports(layer, "forward_fused")


def checked_latents(z: Any, layer: nn.Module, name: str) -> list[Tensor]:
    """Return the latents that a layer's ``forward`` returned, as a list or a tuple, in a list.

    Raises:
        ValueError: not as many as the layer's ``num_latents``.
    """
    count, several = num_latents_of(layer), isinstance(z, list | tuple)
    if count == 1 and not several:
        return [z]
    if several and len(z) == count:
        return list(z)
    given = f"{len(z)}" if several else "a tensor" if isinstance(z, Tensor) else type(z).__name__
    raise ValueError(f"{name}: {type(layer).__name__} must return a list of {count} latents, got {given}")


def num_latents_of(layer: nn.Module) -> int:
    """Return the layer's ``num_latents``, 1 without it."""
    return getattr(layer, "num_latents", 1)


def output_shapes_of(layer: nn.Module, shape: Shape) -> list[Shape]:
    """Return the layer's ``output_shapes(shape)``; the shape itself for a layer of one latent without the method.

    Raises:
        TypeError: a layer of several latents without the method.
        ValueError: a shape that the layer does not take, or shapes that cannot be those of its latents.
    """
    own: Callable[[Shape], Sequence[Shape]] | None = getattr(layer, "output_shapes", None)
    count, kind = num_latents_of(layer), type(layer).__name__
    if own is None:
        if count > 1:
            raise TypeError(f"{kind} has {count} latents and needs a method output_shapes(shape), which it lacks")
        return [shape]
    shapes = list(own(shape))
    if len(shapes) != count:
        raise ValueError(f"{kind}: output_shapes must return {count} shapes, one a latent, got {len(shapes)}")
    if sum(map(math.prod, shapes)) != math.prod(shape):
        raise ValueError(f"{kind}: output_shapes must keep the number of elements, got {shapes} for {shape}")
    return shapes
