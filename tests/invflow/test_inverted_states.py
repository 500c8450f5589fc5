"""What FlowSequential(memory="invert") notices in a backward pass: wrong states, and changes since the forward pass."""

import gc
import weakref

import numpy as np
import pytest
import torch
from foreign_layers import Doubling
from inverted_flows import CHANNELS, assert_same, captured_leaf, conditional, conv, plain, prepared, step
from layer_cases import CONTEXT_CHANNELS, latents_of, weighted_sum
from torch import nn

from invflow import AffineCoupling, AffineForm, FlowSequential


class Loses(nn.Module):
    """Its inverse finds another state, from the second sample on."""

    def __init__(self, value):
        super().__init__()
        self.value = value
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x, context=None):
        return x * self.scale, self.scale.log() * x[0].numel()

    def inverse(self, z, context=None):
        x = z / self.scale
        if len(x) > 1:
            x = torch.cat([x[:1], torch.full_like(x[1:], self.value)])
        return x, -self.scale.log() * z[0].numel()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_reconstruction_that_is_not_finite_is_an_error(dtype):
    for value in (float("nan"), float("inf")):
        flow = prepared([Doubling(), Doubling(), Loses(value)], dtype)
        flow.memory = "invert"
        x = torch.randn(2, CHANNELS, 3, 3, dtype=dtype, requires_grad=True)
        with pytest.raises(RuntimeError, match="layer 0: its output could not be reconstructed"):
            flow(x)[0].sum().backward()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_wrong_sample_is_noticed_beside_a_right_one_that_is_larger(dtype):
    flow = prepared([Doubling(), Doubling(), Loses(0.0)], dtype)
    flow.memory = "invert"
    x = torch.randn(2, CHANNELS, 3, 3, dtype=dtype)
    x[0] *= 1e6 if dtype is not torch.float16 else 1e3
    with pytest.warns(UserWarning, match=r"differed from the true one by 1.0e\+00 of its largest"):
        flow(x.requires_grad_())[0].sum().backward()
    store = torch.autograd.grad(flow(x)[0].float().sum(), flow.parameters())
    flow.memory = "store"
    torch.testing.assert_close(torch.autograd.grad(flow(x)[0].float().sum(), flow.parameters()), store)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_single_layer_is_evaluated_from_its_input(dtype):
    def build():
        flow = FlowSequential([AffineCoupling(CHANNELS, conv(), form=AffineForm("exp"))]).to(dtype)
        with torch.no_grad():
            flow[0].net.bias[1::2] = -300.0  # a scale of 0, which has no inverse
        return flow

    _, invert = assert_same(build, tolerance=0)
    assert all(tensor.isfinite().all() for tensor in invert.tensors().values() if "latent" not in str(tensor))


def test_a_forward_pass_that_is_not_finite_has_the_gradients_of_store():
    for value in (float("nan"), float("inf")):
        found = []
        for memory in ("store", "invert"):
            torch.manual_seed(0)
            flow = plain()
            flow.memory = memory
            x = torch.randn(2, CHANNELS, 3, 3, dtype=torch.float64)
            x[1, 0, 0, 0] = value
            x.requires_grad_()
            z, log_det = flow(x)
            (z.sum() + log_det.sum()).backward()
            found.append(x.grad)
        torch.testing.assert_close(found[1][0], found[0][0])
        assert not found[1][1].isfinite().all()


class Noisy(nn.Module):
    """A network with a random generator of its own."""

    def __init__(self):
        super().__init__()
        self.conv, self.generator = conv(), torch.Generator()

    def forward(self, x):
        return self.conv(x) + torch.rand(x.shape[2:], generator=self.generator).to(x)


def test_a_layer_that_does_not_compute_the_same_again_is_named():
    flow = prepared([step(Noisy())])
    flow.memory = "invert"
    x = torch.randn(2, CHANNELS, 3, 3, dtype=torch.float64, requires_grad=True)
    with pytest.raises(RuntimeError, match="layer 0: its second evaluation differs from the first"):
        flow(x)[0].sum().backward()
    flow = prepared([step(), step(Noisy())])
    flow.memory = "invert"
    with pytest.warns(UserWarning, match="reconstructed state differed"):
        flow(x)[0].sum().backward()
    with pytest.raises(RuntimeError, match="layer 1: its second evaluation differs from the first"):
        flow(x)[0].sum().backward()


# Changes between the two passes


def test_what_changes_between_the_passes_is_named():
    flow = conditional()
    flow.memory = "invert"
    x = torch.randn(2, CHANNELS, 3, 3, dtype=torch.float64, requires_grad=True)
    context = torch.randn(2, CONTEXT_CHANNELS, 3, 3, dtype=torch.float64)

    def after(change):
        z, log_det = flow(x, context)
        with torch.no_grad():
            change(z)
        log_det.sum().backward()

    def freeze(z):
        flow[1].requires_grad_(False)

    for change, message in (
        (lambda z: flow[1].coupling.net.hidden.weight.mul_(1), "layer 1: coupling.net.hidden.weight, needed for"),
        (lambda z: flow[1].actnorm.bias.requires_grad_(False).mul_(1), "layer 1: actnorm.bias, needed for"),
        (lambda z: context.mul_(1), "the context, needed .* is at version 1; expected version 0 instead"),
        (lambda z: z[-1].mul_(1), "modified by an inplace operation"),
        (lambda z: x.mul_(1), "modified by an inplace operation"),
        (freeze, "layer 1: its parameters are not those of the forward pass"),
    ):
        with pytest.raises(RuntimeError, match=message):
            after(change)


def test_a_captured_tensor_that_is_exchanged_is_noticed():
    flow = captured_leaf()
    flow.memory = "invert"
    _, log_det = flow(torch.randn(2, CHANNELS, 3, 3, dtype=torch.float64))
    flow[0].coupling.net.tensors = (flow.extra[0].detach().clone().requires_grad_(),)
    with pytest.raises(RuntimeError, match="layer 0: its parameters are not those of the forward pass"):
        log_det.sum().backward()


def test_a_graph_that_was_released_is_refused():
    flow = plain()
    flow.memory = "invert"
    _, log_det = flow(torch.randn(2, CHANNELS, 3, 3, dtype=torch.float64))
    log_det.sum().backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        log_det.sum().backward()


@pytest.mark.parametrize("trained", [False, True])
def test_a_loss_that_is_kept_keeps_no_context(trained):
    flow = conditional()
    flow.memory = "invert"
    owner = np.random.default_rng(0).random((3, CONTEXT_CHANNELS, 4, 4))
    # a tensor is the last to hold this array
    lives = weakref.ref(owner)
    context = torch.from_numpy(owner)
    if trained:
        context.mul_(torch.ones((), dtype=torch.float64, requires_grad=True))
    z, log_det = flow(torch.randn(3, CHANNELS, 4, 4, dtype=torch.float64), context)
    loss = weighted_sum([*latents_of(z), log_det])
    del owner, context, z, log_det
    loss.backward(retain_graph=True)
    assert lives() is not None
    loss.backward()
    gc.collect()
    assert lives() is None
