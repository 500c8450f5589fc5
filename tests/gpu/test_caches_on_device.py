"""Nothing that layers derive from weights is stale, however the weights change.

On a GPU a fused optimizer, an edit through ``.data`` and the replay of a graph change a tensor without a sign, and
comparing its values would wait for the device. The CPU runs all but the graphs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from invflow import FlowSequential, FlowStep, InvertibleConv1x1, InvertibleConv1x1LU, Squeeze
from invflow.layers import FactorStore

each_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "convolution": lambda: InvertibleConv1x1(12),
    "lu": lambda: InvertibleConv1x1LU(12),
    "step": lambda: FlowStep(12),
    "steps together": lambda: FlowSequential([FlowStep(12), FlowStep(12), FlowStep(12)]),
    "levels": lambda: FlowSequential([Squeeze(), FlowStep(48), FlowStep(48)]),
}
each_layer = pytest.mark.parametrize("name", LAYERS)


def made(name: str, device: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    layer, x = LAYERS[name]().to(device), torch.randn(2, 12, 8, 8, device=device)
    with torch.no_grad():
        layer(x)  # initialises the actnorms
    return layer.eval(), x


def results(layer: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        z, log_det = layer(x)
        return [z, log_det, layer.inverse(x.reshape(z.shape))]


def edit_through_data(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        parameter.data.mul_(1.01)


def fused_optimizer(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.Adam(layer.parameters(), lr=1e-2, fused=True).step()


def average_swapped_in(layer: nn.Module) -> None:
    average = {name: 1.02 * parameter.detach() for name, parameter in layer.named_parameters()}
    for name, parameter in layer.named_parameters():
        parameter.data.copy_(average[name])


CHANGES = [edit_through_data, fused_optimizer, average_swapped_in]


@each_device
@each_layer
@pytest.mark.parametrize("change", CHANGES)
def test_a_layer_follows_its_weights(name: str, change: Callable[[nn.Module], None], device: str) -> None:
    layer, x = made(name, device)
    before = results(layer, x)
    for _ in range(2):
        change(layer)
        after = results(layer, x)
        torch.testing.assert_close(after, results(copy.deepcopy(layer), x))
        assert not torch.allclose(before[0], after[0], atol=1e-4)


@each_device
@each_layer
def test_gradients_follow_the_weights(name: str, device: str) -> None:
    layer, x = made(name, device)

    def gradients(layer: nn.Module) -> list[Tensor]:
        z, log_det = layer(x)
        return list(torch.autograd.grad(z.square().sum() - log_det.sum(), list(layer.parameters())))

    gradients(layer)
    edit_through_data(layer)
    torch.testing.assert_close(gradients(layer), gradients(copy.deepcopy(layer)))


@pytest.mark.gpu
@pytest.mark.parametrize("name", [name for name in LAYERS if FactorStore.serves(LAYERS[name]())])
@pytest.mark.parametrize("change", CHANGES)
def test_a_graph_made_with_warm_caches_follows_the_weights(name: str, change: Callable[[nn.Module], None]) -> None:
    layer, x = made(name, "cuda")
    results(layer, x)
    store, graph = FactorStore(), torch.cuda.CUDAGraph()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), store:
        results(layer, x)
    torch.cuda.current_stream().wait_stream(side)
    with store, torch.cuda.graph(graph):
        found = results(layer, x)
    change(layer)
    store.refresh()
    graph.replay()
    torch.testing.assert_close(found, results(copy.deepcopy(layer), x))


@pytest.mark.gpu
@each_layer
def test_a_layer_follows_weights_that_a_graph_changes(name: str) -> None:
    layer, x = made(name, "cuda")
    results(layer, x)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        for parameter in layer.parameters():
            parameter.mul_(1.01)
    for _ in range(2):
        before = results(layer, x)
        graph.replay()
        after = results(layer, x)
        torch.testing.assert_close(after, results(copy.deepcopy(layer), x))
        assert not torch.allclose(before[0], after[0], atol=1e-4)
