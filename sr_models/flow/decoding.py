"""Decoding of latents to images, flow by flow and layer by layer: one layer's conditions exist at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor

from invflow import FlowSequential
from invflow._numerics import state_format
from invflow.layers import condition
from invflow.layers.conditioning import without_context
from sr_models.flow.condition_sharing import LevelContext
from sr_models.flow.explosions import Watch

__all__ = ["Inversion", "Place", "decode_flow", "sample_blocks", "single_states", "state_chunks"]

#: States that go through a layer together have about this many pixels, so that the memory for the hidden channels of a
#: network does not depend on the number of states. On a CPU they then fit a cache. Accelerators need more work at once.
_CHUNK_PIXELS, _CHUNK_PIXELS_OF_ACCELERATORS = 2**14, 2**21
#: Pixels of high resolution that are decoded together. Samples of a block take some hundred megabytes on a CPU. On an
#: accelerator they take some gigabytes at most, and keep it busy.
_BLOCK_PIXELS, _BLOCK_PIXELS_OF_ACCELERATORS = 2**21, 2**22
#: Samples that a CPU decodes together at least: what they share is computed once a block, and takes it long.
_FEWEST = 32
_SINGLE_STATES = ContextVar("_SINGLE_STATES", default=False)


class Place(NamedTuple):
    """Place of a flow in a model.

    Attributes:
        level: number of its level, from 1, the finest.
        before: number of layers of the level that come before it, in encode order.
    """

    level: int
    before: int = 0


#: ``invert(flow, latents, context, place)``: the states (B M, C, H, W) that go into a flow. Its latents, (B M, ...)
#: each, are taken off the end of the list: those of M successive states of every image of the context. The context is
#: ``None`` for a flow that sees none.
Inversion = Callable[[FlowSequential, list[Tensor], LevelContext | None, Place], Tensor]


def decode_flow(
    flow: FlowSequential,
    latents: list[Tensor],
    context: LevelContext | None,
    place: Place,
    watch: Watch | None = None,
) -> Tensor:
    """Invert a flow layer by layer, and every layer for as many states at once as fit a cache: an :data:`Inversion`.

    Args:
        flow, latents, context, place: as of :data:`Inversion`.
        watch: looks at every layer's result.
    """
    with flow.deriving(latents[-1]):
        return _decode(flow, latents, context, place, watch)


def _decode(
    flow: FlowSequential, latents: list[Tensor], context: LevelContext | None, place: Place, watch: Watch | None
) -> Tensor:
    x = latents.pop()
    count = len(x)
    own = x if context is None else context.features.own
    # on a GPU that of the features: a state in another layout would be copied for every convolution. Those of a CPU
    # read any layout, and flow steps are faster in this one.
    layout = torch.contiguous_format if own.is_cpu else state_format(own)
    chunks = list(state_chunks(len(own), count, own))
    states = [x[part].contiguous(memory_format=layout) for _, part in chunks]
    del x
    result: Tensor | None = None
    for step in flow.walk_inverse(latents):
        step = step._replace(leaving=[latent.contiguous(memory_format=layout) for latent in step.leaving])
        inverse = without_context(step.layer) if context is None else condition(step.layer, context)
        for number, (images, part) in enumerate(chunks):
            state = inverse(step.input(states[number], part), images)
            if watch is not None:
                state = watch(state, part.start, place.level, place.before + step.position)
            if step.position > 0:
                states[number] = state
                continue
            # not collected and joined, which would take the memory of all states twice
            if result is None:
                shape = (count, *state.shape[1:])
                result = torch.empty(shape, dtype=state.dtype, device=state.device, memory_format=layout)
            result[part] = state
            states[number] = state[:0]
    assert result is not None
    return result


def sample_blocks(samples: int, pixels: int, *, on_cpu: bool = False) -> list[range]:
    """Divide samples into blocks that are decoded one after the other, on a GPU of one size if possible.

    Args:
        samples: number of samples, at least 1.
        pixels: pixels of high resolution that one sample takes.
        on_cpu: a CPU decodes them.
    """
    limit, fewest = (_BLOCK_PIXELS, _FEWEST) if on_cpu else (_BLOCK_PIXELS_OF_ACCELERATORS, 1)
    least = -(-samples // max(limit // max(pixels, 1), fewest))
    # a last block of another size could not use the graph of the others
    counts = range(least, least + 1 if on_cpu else 2 * least)
    count = next((count for count in counts if samples % count == 0), least)
    size = -(-samples // count)
    return [range(start, min(start + size, samples)) for start in range(0, samples, size)]


@contextmanager
def single_states() -> Iterator[None]:
    """Let layers take one state at a time within the ``with`` block, as they do where a state is large.

    The memory for a small image is then that for a part of a large one.
    """
    token = _SINGLE_STATES.set(True)
    try:
        yield
    finally:
        _SINGLE_STATES.reset(token)


def state_chunks(images: int, states: int, like: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yield images, and states of them, to process together: several images with all their states, or states of one.

    Args:
        images: number of images.
        states: number of states of all images together, equally many of each.
        like: (B, C, H, W), a state or a context: tells pixels and device.
    """
    limit = _CHUNK_PIXELS if like.is_cpu else _CHUNK_PIXELS_OF_ACCELERATORS
    limit = 1 if _SINGLE_STATES.get() else limit
    return _chunks(images, states // max(images, 1), like.shape[2] * like.shape[3], limit)


def _chunks(images: int, states: int, pixels: int, limit: int) -> Iterator[tuple[slice, slice]]:
    """Yield images, and states of them, to process together: several images with all their states, or states of one.

    Args:
        images: number of images.
        states: number of states of each image.
        pixels: number of pixels of a state.
        limit: number of pixels of the states that are processed together, if one state has not more.
    """
    together = max(limit // max(pixels, 1), 1)
    if together >= states:
        step = together // max(states, 1)
        for image in range(0, max(images, 1), step):
            stop = min(image + step, images)
            yield slice(image, stop), slice(image * states, stop * states)
        return
    for image in range(images):
        for start in range(0, states, together):
            stop = min(start + together, states)
            yield slice(image, image + 1), slice(image * states + start, image * states + stop)
