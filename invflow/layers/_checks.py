"""Argument checks that every layer makes, so that an error names the layer that a wrong shape enters."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from invflow.layers.protocol import Context, Shape, SharedContext, is_shared
from invflow.ops._checks import check_same_device, check_state


def check_channels(layer: object, channels: int) -> int:
    """Return ``channels`` itself, if it is a positive integer."""
    if channels < 1:
        raise ValueError(f"{type(layer).__name__}: channels must be at least 1, got {channels}")
    return channels


def check_input(layer: object, x: Tensor, channels: int, name: str = "x") -> None:
    """Raise unless ``x`` is a floating-point (B, channels, *)."""
    check_state(x, name)
    if x.shape[1] != channels:
        raise ValueError(f"{type(layer).__name__}: {name} must have {channels} channels, got shape {tuple(x.shape)}")


def check_context(layer: object, x: Tensor, context: Context, channels: int) -> None:
    """Raise unless ``context`` fits ``x`` and has the layer's context channels; with 0 of them, anything is ignored.

    It has the spatial dimensions of ``x`` or, as a tensor, none: it then is the same at every pixel. Its batch may be a
    divisor of that of ``x``: each of its samples then serves successive states.
    """
    if not channels:
        return
    if context is None:
        raise ValueError(f"{type(layer).__name__}: context with {channels} channels is required, got None")
    is_tensor = isinstance(context, Tensor)
    if is_tensor or not is_shared(context):
        check_state(context, "context")
    shape, given = x.shape, context.shape
    batch, samples = shape[0], given[0]
    fits = samples == batch or (samples > 0 and batch % samples == 0)
    if len(shape) == 4 == len(given):  # faster than slices
        same = given[2] == shape[2] and given[3] == shape[3]
    else:
        same = given[2:] == shape[2:] or (len(given) == 2 and is_tensor)
    if not fits or given[1] != channels or not same:
        allowed = [", ".join(map(str, (f"{batch} or a divisor", channels, *shape[2:])))]
        if len(shape) > 2 and is_tensor:
            allowed.append(f"{batch} or a divisor, {channels}")
        raise ValueError(
            f"{type(layer).__name__}: context must have shape {' or '.join(f'({each})' for each in allowed)} for x of "
            f"shape {tuple(shape)}, got {tuple(given)}"
        )
    if isinstance(context, Tensor) and not (x.is_cpu and context.is_cpu):
        check_same_device(x, context=context)


def check_shared_channels(layer: object, context: SharedContext, channels: int) -> None:
    """Raise ``ValueError`` unless a shared context has the layer's context channels."""
    if context.shape[1] != channels:
        raise ValueError(
            f"{type(layer).__name__}: context must have {channels} channels, got shape {tuple(context.shape)}"
        )


def check_output_channels(layer: object, h: Tensor, channels: int, detail: str = "") -> Tensor:
    """Return the output ``h`` of a layer's network, if it has so many channels.

    Raises:
        ValueError: another number, with a ``detail`` that says where the right one comes from.
    """
    if h.shape[1] != channels:
        raise ValueError(
            f"{type(layer).__name__}: net must return {channels} channels{detail}, got shape {tuple(h.shape)}"
        )
    return h


def check_shape(layer: object, shape: Shape, channels: int) -> Shape:
    """Return ``shape`` (C, *) itself, if C is ``channels``."""
    if shape[0] != channels:
        raise ValueError(f"{type(layer).__name__}: x must have {channels} channels, got shape {tuple(shape)}")
    return shape


def check_split_latents(z: Sequence[Tensor], kept: int, factored: int) -> tuple[Tensor, Tensor]:
    """Return epsilon and z, if they are the latents of a split with so many channels."""
    if isinstance(z, Tensor) or len(z) != 2:
        given = "a tensor" if isinstance(z, Tensor) else f"{len(z)}"
        raise ValueError(f"Split: the inverse takes the 2 latents [epsilon, z], got {given}")
    epsilon, rest = z
    check_state(rest, "z")
    check_state(epsilon, "epsilon")
    if rest.shape[1] != kept:
        raise ValueError(f"Split: z must have {kept} channels, got shape {tuple(rest.shape)}")
    expected = (rest.shape[0], factored, *rest.shape[2:])
    if epsilon.shape != expected:
        raise ValueError(f"Split: epsilon must have shape {expected}, got {tuple(epsilon.shape)}")
    return epsilon, rest


def per_channel(values: Tensor, x: Tensor) -> Tensor:
    """Return values (C,) so that they broadcast against a state (B, C, *)."""
    return values.reshape(-1, *(1,) * (x.dim() - 2))
