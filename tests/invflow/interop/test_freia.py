"""FrEIA: our layers in its networks, its modules in our flows, and its sequences in our layers."""

from __future__ import annotations

import pickle

import pytest
import torch
from interop_checks import (
    assert_copies,
    assert_learns,
    assert_works_in_flow,
    image_net,
    moons,
    multiscale,
    scramble,
    step,
    stripes,
    vector_net,
)
from torch import Tensor, nn

import invflow

pytest.importorskip("FrEIA", reason="FrEIA is not installed: make peers")

from FrEIA import modules
from FrEIA.framework import ConditionNode, GraphINN, InputNode, Node, OutputNode, SequenceINN

from invflow.interop.freia import Block, convert, convert_back, layer_of


def nll(inn: nn.Module, x: Tensor, c: list[Tensor] | None = None) -> Tensor:
    z, log_det = inn(x, c=c)
    return (z.square().sum(1) / 2 - log_det).mean()


def test_a_sequence_trains_and_samples() -> None:
    torch.manual_seed(0)
    inn, x = SequenceINN(2), moons(64)
    inn.append(Block, layer=step(2))
    inn.append(modules.PermuteRandom)
    inn.append(Block, layer=lambda channels, conditions: step(channels))
    assert_learns(lambda: nll(inn, x), inn.parameters())
    z = torch.randn(8, 2)
    samples, back = inn(z, rev=True)
    again, there = inn(samples)
    torch.testing.assert_close(again, z, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(there, -back, atol=1e-4, rtol=1e-4)
    assert_copies(inn, lambda made: made(x)[0])


def test_a_graph_with_conditions_and_two_latents() -> None:
    torch.manual_seed(0)
    image, label, guide = InputNode(1, 4, 4), ConditionNode(3), ConditionNode(2, 2, 2)
    squeeze = Node(image, Block, {"layer": invflow.Squeeze()})
    made = {"layer": lambda channels, conditions: step(channels, image_net, context_channels=conditions)}
    conditional = Node(squeeze, Block, made, conditions=[label, guide])
    split = Node(conditional, Block, {"layer": invflow.Split(4)})
    outputs = [OutputNode(split.out0), OutputNode(split.out1)]
    inn = scramble(GraphINN([image, label, guide, squeeze, conditional, split, *outputs]))
    x, c = torch.randn(3, 1, 4, 4).double(), [torch.randn(3, 3).double(), torch.randn(3, 2, 2, 2).double()]
    z, log_det = inn(x, c=c)
    assert [tuple(latent.shape) for latent in z] == [(3, 2, 2, 2), (3, 2, 2, 2)]
    back, inverse_log_det = inn(z, c=c, rev=True)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(inverse_log_det, -log_det)
    torch.testing.assert_close(inn.log_jacobian_numerical(x, c=c, h=1e-6), log_det, atol=1e-5, rtol=1e-5)


def test_a_flow_of_several_layers_is_one_block() -> None:
    inn = SequenceINN(1, 4, 4)
    inn.append(Block, layer=invflow.FlowSequential([invflow.Squeeze(), step(4, image_net)], memory="invert"))
    inn.append(modules.Flatten)
    assert inn.shapes == [(1, 4, 4), (4, 2, 2), (16,)]
    assert_learns(lambda: nll(inn, stripes(16)), inn.parameters())


@pytest.mark.parametrize("kind", ["GLOWCouplingBlock", "RNVPCouplingBlock", "NICECouplingBlock", "AllInOneBlock"])
@pytest.mark.parametrize("context_channels", [0, 2])
def test_its_modules_are_layers(kind: str, context_channels: int) -> None:
    torch.manual_seed(0)
    dims_c = [(context_channels,)] if context_channels else []
    module = getattr(modules, kind)([(4,)], dims_c=dims_c, subnet_constructor=vector_net)
    context = torch.randn(5, context_channels).double() if context_channels else None
    assert_works_in_flow(layer_of(module.double()), 0.5 * torch.randn(5, 4).double(), context)


def test_shapes_that_change() -> None:
    x = torch.randn(2, 2, 4, 4).double()
    squeeze = layer_of(modules.HaarDownsampling([(2, 4, 4)])).double()
    assert squeeze.output_shapes((2, 4, 4)) == [(8, 2, 2)]
    flow = invflow.Flow([squeeze, layer_of(modules.Split([(8, 2, 2)])), step(4, image_net)], event_shape=(2, 4, 4))
    assert flow.latent_shapes() == [(4, 2, 2), (4, 2, 2)]
    scramble(flow)
    assert flow.sample(3).shape == (3, 2, 4, 4)
    invflow.testing.assert_invertible(flow.transform, x)


def blocks(dims: tuple[int, ...], net, condition: tuple[int, ...] | None = None, **options: object) -> SequenceINN:
    """A trained sequence of two blocks, and one of another kind of rotation."""
    torch.manual_seed(0)
    inn = SequenceINN(*dims)
    conditions = {"cond": 0, "cond_shape": condition} if condition else {}
    for number in range(3):
        given = {"permute_soft": number == 1, **options}
        inn.append(modules.AllInOneBlock, subnet_constructor=net, **conditions, **given)
    return scramble(inn)


def assert_same(inn: SequenceINN, flow: invflow.Flow, context: Tensor | None = None) -> None:
    """Densities and samples are the same to 1e-10 in float64."""
    c = None if context is None else [context]
    x = torch.randn(4, *inn.shapes[0]).double()
    z, log_det = inn(x, c=c)
    own, own_log_det = flow.transform(x, context)
    torch.testing.assert_close(own, z, atol=1e-10, rtol=0)
    torch.testing.assert_close(own_log_det, log_det, atol=1e-10, rtol=0)
    normal = torch.distributions.Normal(0, 1).log_prob(z).flatten(1).sum(1)
    torch.testing.assert_close(flow.log_prob(x, context), normal + log_det, atol=1e-10, rtol=0)
    sample, own_sample = inn(z, c=c, rev=True), flow.transform.inverse(z, context)
    torch.testing.assert_close(own_sample, sample, atol=1e-10, rtol=0)


OPTIONS = [
    {},
    {"permute_soft": True, "affine_clamping": 1.3},
    {"gin_block": True},
    {"global_affine_type": "SIGMOID", "global_affine_init": 0.7},
    {"global_affine_type": "EXP"},
    {"learned_householder_permutation": 2},
    {"reverse_permutation": True},
    {"reverse_permutation": True, "learned_householder_permutation": 1, "permute_soft": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(
    ("dims", "condition"), [((5,), None), ((4,), (3,)), ((3, 4, 4), None), ((4, 2, 2), (2, 2, 2))], ids=str
)
def test_sequences_convert(options: dict, dims: tuple[int, ...], condition: tuple[int, ...] | None) -> None:
    net = vector_net if len(dims) == 1 else image_net
    inn = blocks(dims, net, condition, **options)
    context = torch.randn(4, *condition).double() if condition else None
    with torch.no_grad():
        flow = convert(inn)
        assert_same(inn, flow, context)
        back = convert_back(flow)
        assert_same(back, flow, context)
        assert_same(inn, pickle.loads(pickle.dumps(flow)), context)
    assert [type(module) for module in back] == [modules.AllInOneBlock] * 3
    assert [module.reverse_pre_permute for module in back] == [options.get("reverse_permutation", False)] * 3


def test_converted_flows_are_fused_and_train() -> None:
    inn = blocks((5,), vector_net, learned_householder_permutation=1)
    flow = convert(inn)
    assert [type(layer) for layer in flow.transform] == [invflow.AffineCoupling, *[invflow.FlowStep] * 3]
    before = {name: value.clone() for name, value in inn.state_dict().items()}
    x = torch.randn(16, 5).double()
    assert_learns(lambda: -flow.train().log_prob(x).mean(), flow.parameters())
    assert all(torch.equal(value, before[name]) for name, value in inn.state_dict().items() if name in before)
    with torch.no_grad():
        assert_same(convert_back(flow), flow)


@pytest.mark.parametrize("options", [{"learned_householder_permutation": 2, "reverse_permutation": True}, {}], ids=str)
@pytest.mark.parametrize("memory", ["store", "invert"])
def test_gradients_are_the_same(options: dict, memory: str) -> None:
    inn, x = blocks((5,), vector_net, global_affine_type="EXP", **options), torch.randn(8, 5).double()
    nll(inn, x).backward()
    flow = convert(inn)
    flow.transform.memory = memory
    z, log_det = flow.transform(x)
    (z.square().sum(1) / 2 - log_det).mean().backward()
    ends = [layer for layer in flow.transform if isinstance(layer, invflow.FlowStep)]
    nets = [module.subnet for module in flow.modules() if hasattr(module, "subnet")]
    for block, end, net in zip(inn, ends, nets, strict=True):
        pairs = [(net[0].weight, block.subnet[0].weight)]
        if options:
            pairs.append((end.conv1x1.vectors, block.vk_householder))
        # a soft permutation is undone up to the rounding of float32
        atol = 1e-9 if memory == "store" else 1e-6
        for own, theirs in pairs:
            assert theirs.grad.abs().max() > 1e-4
            torch.testing.assert_close(own.grad, theirs.grad, atol=atol, rtol=atol)
        # the offset comes after the scale there
        expected = block.global_offset.grad.flatten() * block.global_scale.exp().flatten()
        torch.testing.assert_close(end.actnorm.bias.grad, expected, atol=atol, rtol=atol)
    folded = flow.transform.folded()
    torch.testing.assert_close(folded(x)[0], z)
    torch.testing.assert_close(folded.inverse(z)[0], flow.transform.inverse(z)[0])


def test_other_modules_stay_what_they_are() -> None:
    torch.manual_seed(0)
    inn = SequenceINN(2, 4, 4)
    inn.append(modules.AllInOneBlock, subnet_constructor=image_net)
    inn.append(modules.HaarDownsampling)
    inn.append(modules.AllInOneBlock, subnet_constructor=image_net, permute_soft=True)
    inn.append(modules.GLOWCouplingBlock, subnet_constructor=image_net, cond=0, cond_shape=(3, 2, 2))
    inn.append(modules.Flatten)
    scramble(inn)
    context = torch.randn(4, 3, 2, 2).double()
    with torch.no_grad():
        flow = convert(inn)
        assert_same(inn, flow, context)
        back = convert_back(flow)
        assert_same(back, flow, context)
    assert [type(module) for module in back] == [type(module) for module in inn]


def test_any_flow_goes_back() -> None:
    torch.manual_seed(0)
    layers = [invflow.Squeeze(), step(4, image_net), step(4, image_net, context_channels=2)]
    flow = scramble(invflow.Flow(layers, event_shape=(1, 4, 4)))
    with torch.no_grad():
        inn = convert_back(flow)
        assert_same(inn, flow, torch.randn(4, 2, 2, 2).double())
    assert [type(module) for module in inn] == [Block] * 3


def test_errors() -> None:
    with pytest.raises(TypeError, match="must be one of FrEIA, got FlowStep"):
        layer_of(step(2))
    with pytest.raises(TypeError, match="Block: layer must be"):
        Block([(2,)], layer=nn.Linear(2, 2))
    with pytest.raises(ValueError, match="one input, got 2"):
        Block([(2,), (2,)], layer=step(2))
    with pytest.raises(ValueError, match="one input and at most one condition, got 1 and 2"):
        layer_of(modules.AllInOneBlock([(2,)], dims_c=[(1,), (1,)], subnet_constructor=vector_net))
    conditional = modules.AllInOneBlock([(2,)], dims_c=[(1,)], subnet_constructor=vector_net)
    with pytest.raises(ValueError, match="has a condition: context must not be None"):
        layer_of(conditional)(torch.zeros(1, 2))
    inn = SequenceINN(2)
    for index in range(2):
        inn.append(modules.AllInOneBlock, subnet_constructor=vector_net, cond=index, cond_shape=(1,))
    with pytest.raises(ValueError, match=r"conditions \[0, 1\]"):
        convert(inn)
    with pytest.raises(ValueError, match="one latent"):
        convert_back(invflow.Flow(multiscale(), event_shape=(1, 4, 4)))
    with pytest.raises(ValueError, match="base must be StandardNormal, got DiagonalNormal"):
        convert_back(invflow.glow((2,), steps=1))
