"""Backpropagation that reconstructs states instead of keeping them: ``FlowSequential(memory="invert")``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

__all__ = ["DRIFT_TOLERANCE", "Inverted", "Rerun", "Stage", "stages_of", "trained_parameters", "warn_of_drift"]

#: The largest difference between a reconstructed and the true state, relative to the largest element, that is accepted.
DRIFT_TOLERANCE = 1e-3


class Rerun(NamedTuple):
    """A layer's input reconstructed from its output, and the layer applied to it once more with a graph.

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
        parameters: that it uses.
        num_latents: how many tensors its output consists of.
    """

    rerun: Callable[..., Rerun]
    parameters: Sequence[Tensor]
    num_latents: int = 1


def stages_of(layer: nn.Module) -> list[Stage]:
    """A layer's own ``stages()``, or the layer as one stage, reconstructed by its own ``rerun``, which evaluates its
    network once, or by its inverse and forward pass."""
    own: Callable[[], list[Stage]] | None = getattr(layer, "stages", None)
    if own is not None:
        return own()
    again = getattr(layer, "rerun", None) or partial(_rerun_any, layer)
    return [Stage(again, list(layer.parameters()), getattr(layer, "num_latents", 1))]


def _rerun_any(layer: Any, z: Tensor | list[Tensor], context: Tensor | None) -> Rerun:
    x = layer.inverse(z, context)[0].detach().requires_grad_()
    with torch.enable_grad():
        # not the leaf itself, which a layer may return as it is
        return Rerun(x.detach(), [x], *layer(x.view_as(x), context))


def trained_parameters(stages: Sequence[Stage]) -> list[Tensor]:
    """The parameters that need a gradient, each once."""
    found = {id(parameter): parameter for stage in stages for parameter in stage.parameters if parameter.requires_grad}
    return list(found.values())


class Flow(Protocol):
    """What :class:`Inverted` differentiates."""

    def stages(self) -> list[Stage]:
        """In the order of ``forward``."""

    def encode_and_keep(self, x: Tensor, context: Tensor | None) -> tuple[list[Tensor], Tensor, dict[int, Tensor]]:
        """Latents, log_det and the states to keep (or their first samples), by the number of the stage they enter."""

    def note_drift(self, drift: float) -> None:
        """Take note of the difference to a kept state, relative to its largest element."""


class Inverted(torch.autograd.Function):
    """``flow(x, context)`` without a graph; its backward pass goes through the stages from the last to the first."""

    @staticmethod
    def forward(ctx: Any, flow: Flow, x: Tensor, context: Tensor | None, *parameters: Tensor) -> tuple[Tensor, ...]:
        latents, log_det, kept = flow.encode_and_keep(x, context)
        ctx.flow, ctx.kept_at = flow, list(kept)
        # parameters too: that they have not changed since is then checked as for every other operation
        ctx.save_for_backward(context, *latents, *kept.values(), *parameters)
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
        stages = ctx.flow.stages()
        present = trained_parameters(stages)
        if list(map(id, present)) != list(map(id, parameters)):
            raise RuntimeError(
                "FlowSequential: its parameters are not those of the forward pass, which memory='invert' needs"
            )
        sums: dict[int, Tensor] = {}
        with ctx.autocast():
            leaf_context = None if context is None else (context, ctx.needs_input_grad[2])
            grad_x = _backward(
                ctx.flow, stages, latents, list(grads[:-1]), grads[-1], leaf_context, kept, parameters, sums
            )
        return None, grad_x, sums.get(id(context)), *(sums.get(id(parameter)) for parameter in parameters)


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
    """Gradient of the flow's input; those of parameters and context are added to ``sums`` under the tensor's id.

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
            flow.note_drift(_relative_difference(z[: len(kept[position])], kept[position]))
            z = kept[position] if len(kept[position]) == len(z) else z
    return grad


def _relative_difference(actual: Tensor, expected: Tensor) -> float:
    if not expected.numel():
        return 0.0
    largest = expected.abs().max().clamp(min=torch.finfo(expected.dtype).tiny)
    return float((actual - expected).abs().max() / largest)


def _autocast_of(device: str) -> Callable[[], AbstractContextManager[Any]]:
    """The present autocast state of a device type, to be entered again."""
    if not torch.amp.is_autocast_available(device):
        return nullcontext
    enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    return lambda: torch.autocast(device, dtype=dtype, enabled=enabled)


def warn_of_drift(drift: float, distance: int) -> None:
    """Say that reconstruction was inaccurate, and what is done about it from now on."""
    warnings.warn(
        f"FlowSequential(memory='invert'): a reconstructed state differed from the true one by {drift:.1e} of its "
        f"largest element; from now on the state is stored after every {distance} layers",
        stacklevel=2,
    )
