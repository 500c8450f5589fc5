"""Networks prepared for inference compute what the networks compute."""

from __future__ import annotations

import pytest
import torch
from tiny_models import randomised
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from invflow import ActNorm
from invflow._numerics import state_format
from sr_models.flow import decoding
from sr_models.networks.coupling import (
    ConvActNorm,
    CouplingNet,
    DeepConvNet,
    Residual,
    ResidualNet,
    ResidualUnitNet,
    ShallowNet,
)
from sr_models.networks.inference import prepared_rest, prepared_weight
from sr_models.networks.precision import network_precision

CPU = torch.device("cpu")


def network(kind: type[CouplingNet], dtype: torch.dtype = torch.float64) -> CouplingNet:
    torch.manual_seed(0)
    net = kind(5, 6, 8)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    for module in net.modules():
        if isinstance(module, ActNorm):
            module.mark_initialized()
    return net.to(dtype).eval()


@pytest.fixture(params=[ShallowNet, DeepConvNet, ResidualNet, ResidualUnitNet])
def net(request: pytest.FixtureRequest) -> CouplingNet:
    return network(request.param)


@torch.no_grad()
def compare(net: CouplingNet) -> None:
    h = torch.randn(2, 6, 7, 4, dtype=torch.float64)
    torch.testing.assert_close(prepared_rest(net)(h.clone()), net.rest(h.clone()), rtol=1e-12, atol=1e-12)


def test_the_same_result(net: CouplingNet) -> None:
    compare(net)


def test_layers_that_hooks_watch_are_called(net: CouplingNet) -> None:
    calls: list[str] = []
    convs = [module for module in net.modules() if isinstance(module, nn.Conv2d)][1:]
    for conv in convs:
        conv.register_forward_hook(lambda *_: calls.append("conv"))
    for relu in (module for module in net.modules() if isinstance(module, nn.ReLU)):
        relu.register_forward_hook(lambda *_: calls.append("relu"))
    compare(net)
    # by the prepared one and by the network itself
    assert calls.count("conv") == 2 * len(convs)
    assert calls.count("relu") == 2 * len([module for module in net.modules() if isinstance(module, nn.ReLU)])


def test_a_skip_connection_that_hooks_watch_is_called() -> None:
    net = network(ResidualNet)
    calls: list[int] = []
    net.body.register_forward_hook(lambda *_: calls.append(1))
    compare(net)
    assert len(calls) == 2


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ReLU, Residual])
def test_layers_whose_forward_was_replaced_are_called(kind: type[nn.Module]) -> None:
    """As wrappers of a module do that leave its class as it is."""
    net = network(ResidualNet)
    layer = [module for module in net.modules() if type(module) is kind][-1]
    plain = net.rest(torch.ones(1, 6, 7, 4, dtype=torch.float64))
    original = layer.forward
    layer.forward = lambda x: 2 * original(x) + 1
    assert not torch.equal(net.rest(torch.ones(1, 6, 7, 4, dtype=torch.float64)), plain)
    compare(net)


def test_weights_that_hooks_compute(net: CouplingNet) -> None:
    for conv in [module for module in net.modules() if isinstance(module, nn.Conv2d)][1:]:
        nn.utils.parametrizations.weight_norm(conv)
        with torch.no_grad():
            conv.parametrizations.weight.original0.mul_(1.5)
    compare(net)


def test_an_actnorm_that_does_more_than_its_parameters_say() -> None:
    net = network(ShallowNet)
    calls: list[int] = []
    next(module for module in list(net.layers)[1:] if isinstance(module, ConvActNorm)).actnorm.register_forward_hook(
        lambda *_: calls.append(1)
    )
    compare(net)
    assert len(calls) == 2


def test_subclasses_that_compute_otherwise() -> None:
    class Scaled(ConvActNorm):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    class Shifted(ShallowNet):
        def rest(self, h: Tensor) -> Tensor:
            return super().rest(h) + 1

    net = network(ShallowNet)
    net.layers[2].__class__ = Scaled
    compare(net)
    compare(network(Shifted))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_are_cast_once(dtype: torch.dtype, net: CouplingNet) -> None:
    weight = torch.randn(3, 4, 3, 3)
    with network_precision(dtype, CPU):
        assert prepared_weight(weight).dtype == prepared_weight(weight[0, 0, 0]).dtype == dtype
        assert prepared_weight(weight).is_contiguous(memory_format=torch.channels_last)
        # autocast does not touch float64
        assert prepared_weight(weight.double()).dtype == torch.float64
    assert prepared_weight(weight).dtype == torch.float32
    net, h = net.float(), torch.randn(2, 6, 5, 4)
    with torch.no_grad():
        exact = net.rest(h.clone())
        with network_precision(dtype, CPU):
            half = prepared_rest(net)(h.clone())
    assert half.dtype == dtype
    assert 0 < (half - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("tf32", [False, True])
def test_weights_on_a_gpu_are_channels_last_for_its_matrix_units(tf32: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layout of a weight decides that of a convolution's result there. A fake tensor stands for one on a GPU."""
    monkeypatch.setattr("sr_models.networks.precision.uses_tf32", lambda: tf32)
    with FakeTensorMode():
        x, weight = torch.empty(2, 4, 8, 8, device="cuda"), torch.empty(6, 4, 3, 3, device="cuda")
        y = F.conv2d(x, prepared_weight(weight), padding=1)
    assert state_format(y) == (torch.channels_last if tf32 else torch.contiguous_format)


@pytest.mark.parametrize("name", ["srflow", "srflow-da"])
def test_a_sample_prepares_every_network_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not for every chunk of states."""
    model = randomised(name)
    calls: list[int] = []
    original = prepared_weight

    def counted(weight: Tensor) -> Tensor:
        calls.append(weight.dim())
        return original(weight)

    monkeypatch.setattr("sr_models.networks.inference.prepared_weight", counted)
    found = []
    for pixels in (1, 2**14):
        monkeypatch.setattr(decoding, "_CHUNK_PIXELS", pixels)
        model.sample(torch.rand(1, 3, 4, 4, dtype=torch.float64), 3)
        found.append(len(calls))
        calls.clear()
    assert found[0] == found[1] > 0
