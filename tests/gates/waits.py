"""Launches of a training step and of a sample, and times that Python waits for the device, counted without a GPU.

The layers are told that looking at a value of a CPU tensor would wait (``reads_freely``), and so take the paths that
they take on a GPU. An operator that computes counts as one launch; some are several kernels on a GPU, or none.

    python -m tests.gates.waits
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

import invflow
import sr_models
from invflow.layers import _late
from sr_models.flow.latents import draw_latents
from sr_models.flow.model import SuperResolutionFlow
from sr_models.training.device_step import DeviceStep, fused_adam

__all__ = ["MODELS", "TINY", "Counts", "count", "counts_of", "table"]

MODELS = ("srflow", "srflow-da", "ncsr")

#: Fields of a config that make a model small but for the kinds of its layers.
TINY: dict[str, Any] = {
    "steps": 2,
    "blocks": 2,
    "features": 8,
    "growth": 4,
    "hidden_channels": 8,
    "stacked_blocks": (0, 1),
}

#: Operators that compute nothing on the device, and fills, of which the tests add some.
_FREE = (
    " alias as_strided as_strided_ chunk conj contiguous detach detach_ diagonal dropout empty empty_like"
    " empty_strided expand expand_as flatten is_nonzero item lift_fresh mT matmul movedim narrow new_empty"
    " new_empty_strided new_zeros numpy_T ones ones_like permute pin_memory real reshape resize_"
    " resolve_conj resolve_neg result_type select set_ slice split split_with_sizes squeeze t to transpose"
    " unbind unflatten unfold unsafe_chunk unsafe_split unsqueeze view view_as zeros zeros_like full fill_ _conj"
    " _reshape_alias _to_copy _unsafe_view _nnpack_available"
    " "
)
#: Operators whose own operators do not count: those of the CPU, or a fill that deterministic algorithms ask for.
_WHOLE = ("_foreach_", "_fused_", "convolution", "_convolution", "linalg_lu_", "empty", "new_empty")
#: Operators that wait for the device to tell Python something.
_WAITS = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "_unique2", "tolist")
#: Modules that ask whether a look at a value would wait.
_ASKING = (
    "invflow.layers.actnorm",
    "invflow.layers._derived",
    "invflow.layers._together",
    "sr_models.flow.explosions",
    "sr_models.flow.value_range",
    "sr_models.flow.sampling",
)


class Counts(NamedTuple):
    """Counts of one call.

    Attributes:
        launches: operators that compute.
        waits: reads of a value by Python.
        constants: lists of Python that are copied to the device.
    """

    launches: int
    waits: int
    constants: int


def _never(*given: object) -> bool:
    return False


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Let the models take the paths that they take on a GPU."""
    with ExitStack() as stack:
        for module in _ASKING:
            stack.enter_context(mock.patch(f"{module}.reads_freely", _never))
        # the kernels of 3x3 convolutions are of the CPU
        for operator in ("_conv3x3", "_finished_conv3x3"):
            stack.enter_context(mock.patch(f"invflow.ops.{operator}._runs_kernel", _never))
        stack.enter_context(mock.patch("invflow.layers._layouts._wants_channels_last", _never))  # on a CPU only
        yield


@contextmanager
def _lists_read() -> Iterator[Counter[str]]:
    """Count the tensors that are read as lists; leave out what is done beside the work of the device."""
    read: Counter[str] = Counter()
    tolist = Tensor.tolist

    def counted(tensor: Tensor) -> Any:
        read["tolist"] += 1
        return tolist(tensor)

    with ExitStack() as stack:
        # determinants are looked at when they have come, and latents drawn on the CPU
        stack.enter_context(mock.patch.object(_late.LateCheck, "note", _never))
        stack.enter_context(mock.patch.object(Tensor, "tolist", counted))
        stack.enter_context(mock.patch("sr_models.flow.sampling.draw_latents", _remembered()))
        yield read


def _remembered() -> Callable[..., list[Tensor]]:
    """Return a function that draws the same latents as draw_latents, once."""
    drawn: list[Tensor] = []

    def draw(*given: Any) -> list[Tensor]:
        drawn[:] = drawn or draw_latents(*given)
        return drawn

    return draw


def count(call: Callable[[], object]) -> Counts:
    """Count what a call does, as on a GPU, after two that initialise, and see that everything is."""
    with as_on_a_gpu(), _lists_read() as read:
        call()
        call()
        read.clear()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            call()
        lists = read["tolist"]
    names = Counter(_leaves(profile.events() or []))
    waits = sum(names[f"aten::{name}"] for name in _WAITS)
    return Counts(sum(names.values()) - waits - names["lists"], waits + lists, names["lists"])


def _leaves(events: Sequence[Any]) -> Iterator[str]:
    """Yield the operators that compute, and not those that only call others."""
    counted: dict[int, bool] = {}

    def visit(event: Any) -> bool:
        namespace, _, name = event.name.partition("::")
        # how these do their work depends on the device
        whole = name.startswith(_WHOLE)
        within = [] if whole else [visit(child) for child in event.cpu_children]
        own = not any(within) and namespace in ("aten", "invflow") and f" {name} " not in _FREE
        counted[id(event)] = own
        return own or any(within)

    roots = [event for event in events if event.cpu_parent is None]
    for root in roots:
        visit(root)
    for event in events:
        if counted.get(id(event)):
            yield event.name
        elif event.name == "aten::lift_fresh" and id(event) in counted:
            yield "lists"


def counts_of(name: str, **overrides: Any) -> dict[str, Counts]:
    """Count a training step and a sample of a registered model at scale 4.

    Args:
        name: of the model.
        overrides: fields of its config.
    """
    torch.manual_seed(0)
    model = sr_models.create(name, scale=4, **overrides)
    hr, lr = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 8, 8)
    noise = torch.zeros(1, 1, 1, 1) if model.noise_channels else None
    optimizer = fused_adam([part.values() for part in model.parameters_of_parts()])
    parameters = list(model.parameters())
    average = [parameter.detach().clone() for parameter in parameters]

    def loss(hr: Tensor, lr: Tensor) -> Tensor:
        return model.encode(hr, lr, noise).bits_per_dim.mean()

    model.train()
    step = DeviceStep(loss, optimizer, average=average, averaged=parameters, clip=10.0)
    found = {"training step": count(lambda: step([(hr, lr)], (1e-5, 1e-5), 0.001))}
    model.eval()
    found["sample"] = count(lambda: _sample(model, lr))
    return found


def _sample(model: SuperResolutionFlow, lr: Tensor) -> Tensor:
    return model.sample(lr, 1, on_explode="error")


def table(counts: dict[str, dict[str, Counts]]) -> str:
    """Format counts as Markdown."""
    rows = [
        f"| {model} | {what} | {found.launches:,} | {found.waits} | {found.constants} |"
        for model, calls in counts.items()
        for what, found in calls.items()
    ]
    return "\n".join(["| model | call | launches | waits | lists |", "| --- | --- | ---: | ---: | ---: |", *rows])


if __name__ == "__main__":
    print(f"torch {torch.__version__}, invflow {invflow.__version__}", file=sys.stderr)
    print(table({name: counts_of(name) for name in MODELS}))
