"""Autocast to half precision: networks hand over rounded raw outputs, and nothing after them is rounded again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from layer_cases import LAYERS, LayerCase, latents_of, weighted_sum
from op_cases import OPS_GIVEN_H, OpCase
from torch import Tensor, nn
from under_test import INTERPRETED, Kernels, each_kernels

import invflow

HALVES = [torch.bfloat16, torch.float16]
each_half = pytest.mark.parametrize("half", HALVES, ids=["bfloat16", "float16"])
each_state = pytest.mark.parametrize("state", [torch.float32, "half"], ids=["float32-state", "half-state"])


def assert_identical(actual: list[Tensor], expected: list[Tensor]) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def results_and_gradients(
    call: Callable[..., tuple[Tensor, ...]],
    inputs: list[Tensor],
    forward: AbstractContextManager[Any] | None = None,
    backward: AbstractContextManager[Any] | None = None,
) -> list[Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    with forward or nullcontext():
        results = call(*leaves)
        with torch.no_grad():
            without_gradients = call(*leaves)
    grads = [torch.arange(result.numel()).view(result.shape).remainder(3).to(result) for result in results]
    with backward or nullcontext():
        return [*results, *torch.autograd.grad(results, leaves, grads), *without_gradients]


@each_kernels
@pytest.mark.parametrize("case", OPS_GIVEN_H, ids=lambda case: case.name)
@each_half
@each_state
def test_operators_are_computed_as_without(case: OpCase, half: torch.dtype, state: object, kernels: Kernels) -> None:
    """Given the same rounded raw outputs: the kernels' result is the exact one, rounded to the dtype of the state."""
    if INTERPRETED and half == torch.bfloat16:
        pytest.skip("Triton's interpreter cuts float32 off to bfloat16 instead of rounding it")
    dtype = half if state == "half" else torch.float32
    x, *others = case.inputs(device=kernels.device)
    # parameters of the channel map stay float32
    inputs = [x.to(dtype), *(tensor.to(half) if tensor.dim() == 4 else tensor for tensor in others)]
    for backend in (kernels.backend, "reference"):
        plain = results_and_gradients(case.on(backend), inputs)
        autocast = torch.autocast(kernels.device, half)
        # PyTorch rounds in its own backward of a product of matrices, which the reference takes on a GPU
        rounds = backend == "reference" and kernels.device != "cpu"
        found = results_and_gradients(case.on(backend), inputs, autocast, None if rounds else autocast)
        assert found[0].dtype == dtype
        assert_identical(found, plain)
        if backend == "reference":  # it sums rounded gradients of an h that samples share
            continue
        exact = results_and_gradients(case.on("reference"), [tensor.double() for tensor in inputs])
        for actual, truth in zip(found, exact, strict=True):
            # half a unit for the rounding; the rest for float32 results on the other side of a tie
            rounding = 0.51 * torch.finfo(half).eps if actual.dtype == half else 5e-6
            torch.testing.assert_close(actual.double(), truth, rtol=rounding, atol=1e-5)


def built(case: LayerCase) -> tuple[nn.Module, list[nn.Module]]:
    """The layer, always with the same parameters, and the networks whose output is the raw output of a map."""
    layer = case.build()
    return layer, [part.net for part in layer.modules() if isinstance(getattr(part, "net", None), nn.Module)]


def in_both_directions(case: LayerCase, layer: nn.Module, dtype: torch.dtype, hs: list[Tensor]) -> list[Tensor]:
    """Results of both directions with and without gradients, which are by state, parameters and raw outputs ``hs``."""
    x, context = case.inputs(dtype=dtype)
    x.requires_grad_()
    z, log_det = layer(x, context)
    back, inverse_log_det = layer.inverse([part.detach() for part in z] if isinstance(z, list) else z.detach(), context)
    assert {tensor.dtype for tensor in (*latents_of(z), back)} == {dtype}
    assert log_det.dtype == inverse_log_det.dtype == torch.float32
    results = [*latents_of(z), log_det, back, inverse_log_det]
    leaves = [x, *layer.parameters(), *hs]
    gradients = torch.autograd.grad(weighted_sum(results), leaves, allow_unused=True, materialize_grads=True)
    with torch.no_grad():
        without_gradients = layer(x, context), layer.inverse(z, context)
    return [*results, *gradients, *(part for z, log_det in without_gradients for part in (*latents_of(z), log_det))]


@pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.name)
@each_half
@each_state
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_layers_are_computed_as_without(
    case: LayerCase, half: torch.dtype, state: object, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given the raw outputs that the networks had under autocast."""
    dtype = half if state == "half" else torch.float32
    said: dict[int, list[Tensor]] = defaultdict(list)
    hs: list[Tensor] = []

    def speaks(position: int, net: nn.Module) -> Callable[..., Tensor]:
        network = net.forward

        def forward(*inputs: Tensor) -> Tensor:
            h = network(*inputs).detach().to(half).requires_grad_()
            said[position].append(h)
            if torch.is_grad_enabled():
                hs.append(h)
            return h

        return forward

    layer, nets = built(case)
    for position, net in enumerate(nets):
        monkeypatch.setattr(net, "forward", speaks(position, net))
    with torch.autocast("cpu", half), invflow.use_backend(backend):
        found = in_both_directions(case, layer, dtype, hs)
    assert bool(hs) == bool(nets)
    layer, nets = built(case)  # one that remembers nothing of autocast
    for position, net in enumerate(nets):
        monkeypatch.setattr(net, "forward", lambda *inputs, spoken=said[position]: spoken.pop(0))
    with invflow.use_backend(backend):
        plain = in_both_directions(case, layer, dtype, hs)
    assert_identical(found, plain)
