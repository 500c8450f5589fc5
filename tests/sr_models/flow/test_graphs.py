"""Samples from CUDA graphs: when one is made, what it computes, and that it never holds old values."""

from __future__ import annotations

import contextlib
import copy
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import sr_models
from invflow.layers import _derived, _factors, _late, _together
from sr_models.flow import decoding, graphs
from sr_models.flow.decoding import sample_blocks
from sr_models.flow.model import SuperResolutionFlow
from tests.gates.waits import TINY, as_on_a_gpu


def made(name: str = "srflow", device: str = "cpu") -> SuperResolutionFlow:
    torch.manual_seed(0)
    overrides = {**TINY, **({"noise_steps": (0, 1, 1)} if name == "ncsr" else {})}
    model = sr_models.create(name, scale=4, **overrides).eval()
    with torch.no_grad():
        for parameter in model.levels.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model.to(device)


class FakeGraph:
    """A graph of the CPU: its replay computes again what was captured, with what its inputs hold now."""

    captured: ClassVar[list[FakeGraph]] = []

    def __init__(self) -> None:
        FakeGraph.captured.append(self)

    def replay(self) -> None:
        images, largest = self.again()
        self.images.copy_(images)
        self.largest.copy_(largest)


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the CPU make graphs, in which Python must not look at a value and nothing is factorised."""
    state = {"capturing": False}

    @contextlib.contextmanager
    def capture(graph: FakeGraph, **settings: object) -> Iterator[None]:
        state["capturing"] = True
        try:
            yield
        finally:
            state["capturing"] = False

    def guarded(function: Any) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            assert not state["capturing"], function
            return function(*given, **named)

        return call

    for name in ("item", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(Tensor, name, guarded(getattr(Tensor, name)))
    for name in ("lu_factor_ex", "lu_solve", "inv", "slogdet"):
        monkeypatch.setattr(torch.linalg, name, guarded(getattr(torch.linalg, name)))
    for module in (_derived, _factors, _late, _together):
        monkeypatch.setattr(module, "is_captured", lambda tensor: state["capturing"])
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(graphs, "is_on_gpu", lambda tensor: True)
    monkeypatch.setattr(graphs, "check_graph", lambda graph, device: None)
    monkeypatch.setattr("sr_models.flow.sampling.check_graph", lambda graph, device: None)
    monkeypatch.setattr(graphs, "has_room", lambda device: True)
    original = graphs._Graph.__init__

    def kept(self: Any, key: Any, decode: Any, latents: Any, lr: Any, clamp: bool, store: Any) -> None:
        original(self, key, decode, latents, lr, clamp, store)

        def again() -> tuple[Tensor, Tensor]:
            watch = graphs.Watch(clamp=clamp)
            with capture(self._graph), store:
                images = decode(list(self._latents), self._lr, watch)
            return images, torch.cat([each.largest for each in watch.seen])

        self._graph.again, self._graph.images, self._graph.largest = again, self._images, self._largest

    monkeypatch.setattr(graphs._Graph, "__init__", kept)
    FakeGraph.captured.clear()
    with as_on_a_gpu():
        yield


LR = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", ["srflow", "srflow-da", "ncsr"])
def test_a_graph_is_made_when_a_size_comes_again(name: str, fake_cuda: None) -> None:
    model = made(name)
    expected = [model.sample(LR, 2, seed=seed, graph=False) for seed in range(3)]
    assert not FakeGraph.captured
    found = []
    for seed, count in enumerate((0, 1, 1)):
        found.append(model.sample(LR, 2, seed=seed))
        assert len(FakeGraph.captured) == count
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    model.sample(LR, 1)
    model.sample(LR[:1], 2)
    assert len(FakeGraph.captured) == 1


def test_a_graph_is_made_at_once_if_asked_for(fake_cuda: None) -> None:
    model = made()
    torch.testing.assert_close(model.sample(LR, 1, graph=True), model.sample(LR, 1, graph=False))
    assert len(FakeGraph.captured) == 1


def change_in_place(model: SuperResolutionFlow) -> None:
    for parameter in model.parameters():
        parameter.data.mul_(1.01)


def fused_optimizer(model: SuperResolutionFlow) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.Adam(model.parameters(), lr=1e-3, fused=True).step()
    model.zero_grad()


def other_weights(model: SuperResolutionFlow) -> None:
    torch.manual_seed(5)
    state = {name: value + 0.01 if value.is_floating_point() else value for name, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def other_parameter(model: SuperResolutionFlow) -> None:
    conv = model.levels[0][1].conv1x1
    conv.weight = nn.Parameter(1.1 * conv.weight.detach())


CHANGES = [change_in_place, fused_optimizer, other_weights, other_parameter]


@pytest.mark.parametrize("change", CHANGES)
def test_a_graph_follows_the_weights(change: Any, fake_cuda: None) -> None:
    model = made()
    before = model.sample(LR, 1, graph=True)
    change(model)
    after = model.sample(LR, 1, graph=True)
    torch.testing.assert_close(after, model.sample(LR, 1, graph=False), rtol=0, atol=1e-6)
    assert not torch.allclose(before, after, atol=1e-4)


def test_what_cannot_be_captured_is_not_tried(fake_cuda: None) -> None:
    model = made()
    handle = model.encoder.register_forward_hook(lambda *given: None)
    for _ in range(3):
        model.sample(LR, 1)
    with pytest.raises(RuntimeError, match="graph must be None or False while hooks"):
        model.sample(LR, 1, graph=True)
    handle.remove()
    torch.nn.utils.parametrizations.orthogonal(model.levels[0][1].conv1x1, "weight")
    for _ in range(3):
        model.sample(LR, 1)
    assert not FakeGraph.captured


def test_explosions_are_found_after_a_graph(fake_cuda: None) -> None:
    model = made()
    with torch.no_grad():
        model.levels[1][1].actnorm.bias.fill_(-1e7)
    for _ in range(3):
        with pytest.raises(FloatingPointError, match="exploded at level 2, layer 1"):
            model.sample(LR, 1, on_explode="error")
    assert FakeGraph.captured
    assert model.sample(LR, 1, on_explode="clamp").isfinite().all()


def test_a_weight_without_inverse_is_named_after_a_graph(fake_cuda: None) -> None:
    model = made()
    model.sample(LR, 1, graph=True)
    with torch.no_grad():
        model.levels[1][1].conv1x1.weight.zero_()
    for on_explode in ("resample", "clamp"):
        for _ in range(2):
            with pytest.raises(ValueError, match=r"InvertibleConv1x1 with \d+ channels: weight is singular"):
                model.sample(LR, 1, on_explode=on_explode, graph=True)


def test_copies_have_no_graph(fake_cuda: None) -> None:
    model = made()
    model.sample(LR, 1, graph=True)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model._graphed))):
        assert getattr(other, "_graphed", other)._graph is None


def test_no_graph_on_the_cpu() -> None:
    with pytest.raises(ValueError, match="graph must be None or False on cpu: CUDA graphs need a CUDA device"):
        made().sample(LR, graph=True)


@pytest.mark.parametrize(("samples", "pixels"), [(1, 1), (7, 2**30), (1000, 2**16), (10, 2**20), (13, 2**21), (5, 0)])
def test_blocks_hold_every_sample_once(samples: int, pixels: int) -> None:
    blocks = sample_blocks(samples, pixels)
    assert [sample for block in blocks for sample in block] == list(range(samples))
    assert all(len(block) == 1 or len(block) * pixels <= decoding._BLOCK_PIXELS_OF_ACCELERATORS for block in blocks)


def test_samples_in_blocks_are_those_of_one(fake_cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made()
    whole = model.sample(LR, 6, graph=False)
    monkeypatch.setattr(decoding, "_BLOCK_PIXELS_OF_ACCELERATORS", 2 * 2 * 32 * 32)
    assert len(sample_blocks(6, 2 * 32 * 32)) == 3
    torch.testing.assert_close(model.sample(LR, 6), whole, rtol=0, atol=1e-6)


def test_a_graph_is_of_one_precision_of_convolutions(set_precision: Callable[..., None]) -> None:
    layer, image = torch.nn.Linear(1, 1), torch.zeros(1, 3, 4, 4)
    keys = []
    for precision in ("tf32", "ieee"):
        set_precision(precision, "tf32")
        keys.append(graphs._key(layer, [image], False))
    assert keys[0] != keys[1]


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["srflow", "srflow-da", "ncsr"])
def test_samples_from_a_graph_on_a_gpu(name: str) -> None:
    model, lr = made(name, "cuda"), LR.cuda()
    for seed in range(3):
        expected = model.sample(lr, 2, seed=seed, graph=False)
        torch.testing.assert_close(model.sample(lr, 2, seed=seed, graph=True), expected, rtol=0, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("change", CHANGES)
def test_a_graph_on_a_gpu_follows_the_weights(change: Any) -> None:
    model, lr = made(device="cuda"), LR.cuda()
    before = model.sample(lr, 1, graph=True)
    change(model)
    after = model.sample(lr, 1, graph=True)
    torch.testing.assert_close(after, model.sample(lr, 1, graph=False), rtol=0, atol=1e-4)
    assert not torch.allclose(before, after, atol=1e-4)


@pytest.mark.gpu
def test_nothing_is_stale_after_training_from_a_graph() -> None:
    from sr_models.training.device_step import DeviceStep, fused_adam

    model, lr = made(device="cuda").train(), LR.cuda()
    hr = torch.rand(2, 3, 32, 32, device="cuda")
    with torch.no_grad():
        model.encode(hr, lr)  # whatever is remembered is warm
    step = DeviceStep(
        lambda hr, lr: model.encode(hr, lr).bits_per_dim.mean(),
        fused_adam([model.encoder.parameters(), model.levels.parameters()]),
        graph=True,
    )
    for _ in range(6):
        step([(hr, lr)], (1e-2, 1e-2))
        model.eval()
        with torch.no_grad():
            found = model.encode(hr, lr).log_prob
            expected = copy.deepcopy(model).encode(hr, lr).log_prob
        torch.testing.assert_close(found, expected)
        model.train()
    assert step._graph is not None


def in_a_thread(call: Callable[[], Tensor]) -> Tensor:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


def test_other_threads_make_graphs_only_if_asked_and_of_their_own(fake_cuda: None) -> None:
    """A thread may allocate in a capture what it has not used yet, and two may not share the memory of a graph."""
    model = made()
    expected = model.sample(LR, 1, graph=False)
    for _ in range(3):
        torch.testing.assert_close(in_a_thread(lambda: model.sample(LR, 1)), expected)
    assert not FakeGraph.captured
    for _ in range(2):
        model.sample(LR, 1)
    assert len(FakeGraph.captured) == 1
    torch.testing.assert_close(in_a_thread(lambda: model.sample(LR, 1, graph=True)), expected)
    assert len(FakeGraph.captured) == 2
