"""The layout in which layers hand images to their networks, and the network that the library offers for couplings."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from invflow import AffineCoupling, AffineInjector, FlowSequential, FlowStep, Split, coupling_net

CHANNELS_LAST = torch.channels_last


def is_last(x):
    return x.is_contiguous(memory_format=CHANNELS_LAST) and not x.is_contiguous()


class Spy(nn.Module):
    """A network that notes the layouts of its inputs."""

    def __init__(self, inputs, outputs, conv=True):
        super().__init__()
        self.net = nn.Conv2d(inputs, outputs, 3, padding=1) if conv else nn.Linear(inputs, outputs)
        self.seen = []

    def forward(self, *inputs):
        self.seen += [(x.shape[1], is_last(x)) for x in inputs]
        x = torch.cat(inputs, 1)
        return self.net(x) if isinstance(self.net, nn.Conv2d) else self.net(x.movedim(1, -1)).movedim(-1, 1)


class Viewing(nn.Module):
    """A network that no channels_last image can enter: it calls ``view`` across channels and pixels."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.net, self.calls = nn.Conv2d(inputs, outputs, 3, padding=1), 0

    def forward(self, x):
        self.calls += 1
        return self.net(x) + x.view(x.shape[0], -1).mean(1)[:, None, None, None]


@pytest.mark.parametrize("direction", ["forward", "inverse", "invert"])
def test_networks_of_convolutions_are_given_channels_last_and_the_state_stays(direction):
    torch.manual_seed(0)
    step = FlowStep(
        6,
        injector=AffineInjector(6, Spy(3, 12), context_channels=3),
        coupling=AffineCoupling(6, Spy(6, 6), context_channels=3),
    )
    flow = FlowSequential([step, Split(6, Spy(3, 6))], memory="invert")
    x, context = torch.randn(2, 6, 8, 9), torch.randn(2, 3, 8, 9)
    z, _ = flow(x, context)
    if direction == "inverse":
        back, _ = flow.inverse(z, context)
        torch.testing.assert_close(back, x, rtol=1e-4, atol=1e-4)
    if direction == "invert":
        sum(latent.sum() for latent in z).backward()
    assert all(latent.is_contiguous() or latent.stride(3) == 1 for latent in z)
    times = 1 if direction == "forward" else 2
    assert step.coupling.net.seen == [(3, True), (3, True)] * times
    assert step.injector.net.seen == [(3, True)] * times
    assert flow[1].net.seen == [(3, True)] * times


def test_a_context_of_all_pixels_is_given_in_channels_last_too():
    coupling = AffineCoupling(4, Spy(5, 4), context_channels=3)
    coupling(torch.randn(2, 4, 8, 8), torch.randn(2, 3))
    assert coupling.net.seen == [(2, True), (3, True)]


@pytest.mark.parametrize(
    ("conv", "size", "dtype"),
    [(False, 8, torch.float32), (True, 7, torch.float32), (True, 8, torch.float64), (True, 8, torch.bfloat16)],
    ids=["no convolution", "few pixels", "float64", "bfloat16"],
)
def test_other_networks_are_given_states_as_they_are(conv, size, dtype):
    coupling = AffineCoupling(4, Spy(2, 4, conv)).to(dtype)
    coupling(torch.randn(2, 4, size, size, dtype=dtype))
    assert coupling.net.seen == [(2, False)]


def test_channels_of_a_channels_last_state_are_not_copied():
    addresses = []
    coupling = AffineCoupling(6, coupling_net(3, 6))
    coupling.net.register_forward_pre_hook(lambda net, inputs: addresses.append(inputs[0].data_ptr()))
    x = torch.randn(2, 6, 8, 8).contiguous(memory_format=CHANNELS_LAST)
    y, _ = coupling(x)
    assert addresses == [x.data_ptr()]
    assert is_last(y)


def test_a_network_that_takes_no_channels_last_image_is_asked_once():
    torch.manual_seed(0)
    coupling, x = AffineCoupling(4, Viewing(2, 4)), torch.randn(2, 4, 8, 8)
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        coupling.net(x[:, :2].contiguous(memory_format=CHANNELS_LAST))
    coupling.net.calls = 0
    y, _ = coupling(x)
    assert coupling.net.calls == 2
    for again in (coupling, copy.deepcopy(coupling), pickle.loads(pickle.dumps(coupling))):
        again.net.calls = 0
        torch.testing.assert_close(again(x)[0], y, rtol=0, atol=0)
        assert again.net.calls == 1
        torch.testing.assert_close(again.inverse(y)[0], x, rtol=1e-5, atol=1e-5)


class Stateful(Viewing):
    """A network whose evaluation changes buffers and draws random numbers."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.norm, self.dropout = nn.BatchNorm2d(inputs), nn.Dropout(0.5)

    def forward(self, x):
        return super().forward(self.dropout(self.norm(x)))


def test_a_try_that_fails_leaves_nothing_behind():
    torch.manual_seed(0)
    coupling, x = AffineCoupling(4, Stateful(2, 4)), torch.randn(2, 4, 8, 8)
    plain = copy.deepcopy(coupling)
    found = []
    for layer, given in ((coupling, x), (plain, x[:, :2])):
        torch.manual_seed(1)
        (layer if layer is coupling else layer.net)(given)
        found.append([torch.get_rng_state(), *layer.net.buffers()])
    assert coupling.net.norm.num_batches_tracked == 1
    torch.testing.assert_close(*found, rtol=0, atol=0)


@pytest.mark.parametrize("network", [Viewing, Stateful, Spy])
def test_activation_checkpointing_sees_no_try(network):
    torch.manual_seed(0)
    coupling, x = AffineCoupling(4, network(2, 4)), torch.randn(2, 4, 8, 8)
    plain, gradients = copy.deepcopy(coupling), []
    for layer, watched in ((coupling, True), (plain, False)):
        leaf = x.clone().requires_grad_()
        torch.manual_seed(1)
        y = checkpoint(layer, leaf, use_reentrant=False)[0] if watched else layer(leaf)[0]
        y.square().sum().backward()
        gradients.append([leaf.grad, layer.net.net.weight.grad])
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


def test_a_compiler_need_not_find_out_what_a_network_takes():
    torch.manual_seed(0)
    coupling, x = AffineCoupling(4, Viewing(2, 4)), torch.randn(2, 4, 8, 8)
    compiled = torch.compile(coupling, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), coupling(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(compiled(x), coupling(x), rtol=1e-5, atol=1e-5)


def test_errors_of_a_network_are_its_own():
    class Failing(nn.Conv2d):
        calls = 0

        def forward(self, x):
            Failing.calls += 1
            raise RuntimeError("no luck")

    with pytest.raises(RuntimeError, match=r"^no luck$"):
        AffineCoupling(4, Failing(2, 4, 1))(torch.randn(1, 4, 8, 8))
    assert Failing.calls == 1


def test_transforms_and_compilers_see_the_same_function():
    torch.manual_seed(0)
    coupling, x = AffineCoupling(4, coupling_net(2, 4, hidden=4)), torch.randn(3, 4, 8, 8)
    nn.init.normal_(coupling.net[-1].weight, std=0.1)
    y, log_det = coupling(x)
    mapped = torch.func.vmap(lambda x: coupling(x[None])[0][0])(x)
    torch.testing.assert_close(mapped, y, rtol=1e-5, atol=1e-5)
    compiled = torch.compile(coupling, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), (y, log_det), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [4, 12])
def test_coupling_net_is_the_network_of_plain_convolutions(size):
    torch.manual_seed(0)
    net, x = coupling_net(13, 6, hidden=20), torch.randn(2, 13, size, size)
    assert not net(x).any()
    nn.init.normal_(net[-1].weight, std=0.1)
    plain = nn.Sequential(
        nn.Conv2d(13, 20, 3, padding=1), nn.ReLU(), nn.Conv2d(20, 20, 1), nn.ReLU(), nn.Conv2d(20, 6, 3, padding=1)
    )
    state = net.state_dict()
    assert not state.pop("4.log_scale").any()
    plain.load_state_dict(state)
    results = []
    for network in (net, plain):
        leaf = x.clone().requires_grad_()
        y = network(leaf)
        y.square().sum().backward()
        results.append([y, leaf.grad, *(network[i].weight.grad for i in (0, 2, 4))])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("numbers", [(0, 4, 8), (2, 0, 8), (2, 4, 0)])
def test_coupling_net_names_a_number_that_is_too_small(numbers):
    name = ("in_channels", "out_channels", "hidden")[numbers.index(0)]
    with pytest.raises(ValueError, match=f"^{name} must be at least 1, got 0$"):
        coupling_net(*numbers[:2], hidden=numbers[2])
