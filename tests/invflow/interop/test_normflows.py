"""normflows: our layers in its models, its flows in ours, and its Glow models in our layers."""

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
)
from torch import Tensor, nn

import invflow

nf = pytest.importorskip("normflows", reason="normflows is not installed: make peers")

from invflow.interop import Flat  # noqa: E402
from invflow.interop.normflows import LayerFlow, convert, convert_back, layer_of  # noqa: E402


def test_trains_and_samples() -> None:
    torch.manual_seed(0)
    flows = [LayerFlow(step(2)), nf.flows.Permute(2, "swap"), LayerFlow(step(2))]
    model, x = nf.NormalizingFlow(nf.distributions.DiagGaussian(2), flows), moons(64)
    assert_learns(lambda: model.forward_kld(x), model.parameters())
    # in training mode: the actnorms are initialised, and stay as they are
    samples, log_prob = model.sample(16)
    torch.testing.assert_close(model.log_prob(samples), log_prob, atol=1e-4, rtol=1e-4)
    assert_copies(model, lambda made: made.log_prob(x))


def test_contexts() -> None:
    torch.manual_seed(0)
    flows = [LayerFlow(step(2, context_channels=3)) for _ in range(2)]
    model = nf.ConditionalNormalizingFlow(nf.distributions.DiagGaussian(2), flows)
    x, context = moons(32), torch.randn(32, 3)
    assert_learns(lambda: model.forward_kld(x, context), model.parameters())
    samples, log_prob = model.sample(32, context)
    torch.testing.assert_close(model.log_prob(samples, context), log_prob, atol=1e-4, rtol=1e-4)


def test_a_multiscale_model_with_classes() -> None:
    torch.manual_seed(0)
    bases = [nf.distributions.ClassCondDiagGaussian((2, 2, 2), 3) for _ in range(2)]
    flows = [[LayerFlow(step(2, image_net))], [LayerFlow(step(4, image_net)), LayerFlow(invflow.Squeeze())]]
    model = nf.MultiscaleFlow(bases, flows, [nf.flows.Merge()])
    x, y = stripes(16), torch.arange(16) % 3
    assert_learns(lambda: model.forward_kld(x, y), model.parameters())
    samples, log_prob = model.sample(16, y)
    torch.testing.assert_close(model.log_prob(samples, y), log_prob, atol=1e-3, rtol=1e-4)


def test_several_latents() -> None:
    torch.manual_seed(0)
    model = nf.NormalizingFlow(nf.distributions.DiagGaussian(16), [LayerFlow(Flat(multiscale(), (1, 4, 4)))])
    assert_learns(lambda: model.forward_kld(stripes(16)), model.parameters())
    assert model.sample(3)[0].shape == (3, 1, 4, 4)
    with pytest.raises(ValueError, match=r"FlowSequential with 2: join them by invflow\.interop\.Flat"):
        LayerFlow(multiscale())


@pytest.mark.parametrize(
    ("made", "shape"),
    [
        (lambda: nf.flows.GlowBlock(3, 8), (3, 4, 4)),
        (lambda: nf.flows.Invertible1x1Conv(3), (3, 4, 4)),
        (lambda: nf.flows.ActNorm((3, 1, 1)), (3, 4, 4)),
        (lambda: nf.flows.Squeeze(), (1, 4, 4)),
        (lambda: nf.flows.CoupledRationalQuadraticSpline(3, 1, 8), (3,)),
        (lambda: nf.flows.MaskedAffineFlow(torch.tensor([1.0, 0, 1]), nf.nets.MLP([3, 8, 3])), (3,)),
        (lambda: nf.flows.MaskedAffineAutoregressive(3, 8), (3,)),
    ],
)
def test_its_flows_are_layers(made, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer, x = layer_of(made()), torch.randn(4, *shape)
    layer(x)  # initialises
    assert_works_in_flow(scramble(layer), x.double())


def test_its_flows_take_contexts() -> None:
    torch.manual_seed(0)
    layer = layer_of(nf.flows.MaskedAffineAutoregressive(3, 8, context_features=2))
    assert_works_in_flow(scramble(layer), torch.randn(4, 3).double(), torch.randn(4, 2).double())
    layer = layer_of(nf.flows.CCAffineConst((3,), 2))
    assert_works_in_flow(scramble(layer), torch.randn(4, 3).double(), torch.eye(2).double().repeat(2, 1))


def glow(
    channels: int = 3, levels: int = 2, classes: int | None = None, base: str = "glow", **options: object
) -> nn.Module:
    """A Glow for images of 4 x 4, or 8 x 8 with two levels, as the tutorial of normflows builds it; trained."""
    torch.manual_seed(0)
    bases, flows, merges, size = [], [], [], 2
    for level in range(levels):
        wide = channels * 2 ** (levels + 1 - level)
        flows.append([nf.flows.GlowBlock(wide, 8, **options) for _ in range(2)] + [nf.flows.Squeeze()])
        shape = (wide // 2 if level else wide, size * 2**level, size * 2**level)
        if level:
            merges.append(nf.flows.Merge())
        if base == "glow":
            bases.append(nf.distributions.GlowBase(shape, num_classes=classes))
        elif classes:
            bases.append(nf.distributions.ClassCondDiagGaussian(shape, classes))
        else:
            bases.append(nf.distributions.DiagGaussian(shape, trainable=base == "trained"))
    model = nf.MultiscaleFlow(bases, flows, merges, class_cond=classes is not None)
    for part in model.modules():
        if isinstance(part, nf.flows.ActNorm):
            part.data_dep_init_done.fill_(1.0)
    return scramble(model)


def assert_same(model: nn.Module, flow: invflow.Flow, y: Tensor | None = None) -> None:
    """Densities and samples are the same to 1e-10 in float64."""
    x = torch.randn(4, *flow.event_shape).double()
    own = flow.log_prob(x, y)
    theirs = model.log_prob(x) if isinstance(model, nf.NormalizingFlow) else model.log_prob(x, y)
    torch.testing.assert_close(own, theirs, atol=1e-10, rtol=1e-13)
    torch.manual_seed(5)
    samples, log_prob = model.sample(4) if y is None else model.sample(4, y)
    # the same noise, in the order in which normflows draws it
    torch.manual_seed(5)
    noise = [torch.randn(4, *shape, dtype=torch.float64) for shape in reversed(flow.latent_shapes())][::-1]
    own_samples, _ = flow.transform.inverse(noise if len(noise) > 1 else noise[0], y)
    torch.testing.assert_close(own_samples, samples, atol=1e-10, rtol=1e-13)
    torch.testing.assert_close(flow.log_prob(samples, y), log_prob, atol=1e-9, rtol=1e-13)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_lu": False, "split_mode": "channel_inv"},
        {"scale_map": "exp"},
        {"scale_map": "sigmoid_inv"},
        {"scale": False},
        {"net_actnorm": True, "leaky": 0.1},
    ],
    ids=str,
)
def test_glow_converts(options: dict) -> None:
    model = glow(**options)
    if "net_actnorm" in options:
        model.log_prob(torch.randn(4, 3, 8, 8).double(), None)  # initialises
    with torch.no_grad():
        flow = convert(model)
        assert_same(model, flow)
        assert_same(model, pickle.loads(pickle.dumps(flow)))
        back = convert_back(flow)
        assert_same(back, flow)
    kinds = [type(layer) for layer in flow.transform]
    assert kinds.count(invflow.FlowStep) == 4
    assert kinds.count(invflow.Squeeze) == 2
    assert set(back.state_dict()) == set(model.state_dict())
    assert flow.sample(2).shape == (2, 3, 8, 8)


@pytest.mark.parametrize("base", ["glow", "diagonal"])
def test_classes_are_contexts(base: str) -> None:
    model, y = glow(1, classes=3, base=base), torch.tensor([2, 0, 1, 1])
    with torch.no_grad():
        flow = convert(model)
        assert_same(model, flow, y)
        one_hot = nn.functional.one_hot(y, 3)
        x = torch.randn(4, 1, 8, 8).double()
        torch.testing.assert_close(flow.log_prob(x, one_hot), flow.log_prob(x, y))
        assert_same(convert_back(flow), flow, y)
        assert flow.sample(5, y).shape == (5, 4, 1, 8, 8)
        with pytest.raises(ValueError, match="context must hold labels"):
            flow.log_prob(x)


def test_a_model_of_one_level_with_classes() -> None:
    torch.manual_seed(0)
    flows = [nf.flows.GlowBlock(3, 8) for _ in range(2)]
    model = nf.ClassCondFlow(nf.distributions.ClassCondDiagGaussian((3, 2, 2), 3), flows)
    model.log_prob(torch.randn(8, 3, 2, 2), torch.arange(8) % 3)  # initialises
    y = torch.tensor([2, 0, 1, 1])
    with torch.no_grad():
        flow = convert(scramble(model))
        assert_same(model, flow, y)
        back = convert_back(flow)
        assert_same(back, flow, y)
    assert type(back) is nf.ClassCondFlow


def test_the_transform_of_a_model() -> None:
    model = glow(1)
    model.transform = nf.transforms.Logit(alpha=0.05)
    with torch.no_grad():
        flow, x = convert(model), torch.rand(4, 1, 8, 8).double()
        torch.testing.assert_close(flow.log_prob(x), model.log_prob(x, None), atol=1e-10, rtol=1e-13)
        back = convert_back(flow)
        torch.testing.assert_close(back.log_prob(x, None), model.log_prob(x, None), atol=1e-10, rtol=1e-13)


def test_gradients_are_the_same() -> None:
    model, x = glow(1, levels=1, base="trained"), torch.randn(8, 1, 4, 4).double()
    for memory in ("store", "invert"):
        flow = convert(model)
        flow.transform.memory = memory
        flow.log_prob(x).sum().backward()
        model.zero_grad()
        model.log_prob(x, None).sum().backward()
        block, own = model.flows[0][0].flows, flow.transform[2]
        pairs = [
            (own.actnorm.bias.grad, -block[2].t.grad),
            (own.actnorm.log_scale.grad, -block[2].s.grad),
            (own.conv1x1.upper.grad, block[1].U.grad),
            (own.coupling.net.net.net[0].weight.grad, block[0].flows[1].param_map.net[0].weight.grad),
            (flow.transform[3].base.loc.grad, model.q0[0].loc.grad),
        ]
        for grad, expected in pairs:
            assert expected.abs().max() > 1e-3
            torch.testing.assert_close(grad, expected.reshape(grad.shape), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("split_mode", ["channel", "channel_inv"])
def test_odd_channels(split_mode: str) -> None:
    torch.manual_seed(0)
    flows = [nf.flows.GlowBlock(5, 8, split_mode=split_mode) for _ in range(3)]
    model = nf.NormalizingFlow(nf.distributions.DiagGaussian((5, 2, 2)), flows)
    model.log_prob(torch.randn(8, 5, 2, 2))  # initialises
    scramble(model)
    with torch.no_grad():
        flow = convert(model)
        assert_same(model, flow)
        assert_same(convert_back(flow), flow)
    assert type(convert_back(flow)) is nf.NormalizingFlow


def test_converted_models_train_and_go_back() -> None:
    model = glow(1, levels=1, base="trained")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flow = convert(model)
    x = stripes(16).double()
    assert_learns(lambda: -flow.log_prob(x).mean(), flow.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        assert_same(convert_back(flow), flow)


def test_a_fresh_model_stays_fresh() -> None:
    model = nf.NormalizingFlow(nf.distributions.DiagGaussian((4, 2, 2)), [nf.flows.GlowBlock(4, 8)])
    flow = convert(model)
    assert flow.training
    assert not flow.transform[0].actnorm.initialized
    assert not convert_back(flow).flows[0].flows[2].data_dep_init_done
    flow.log_prob(torch.randn(8, 4, 2, 2))
    assert convert_back(flow).flows[0].flows[2].data_dep_init_done


def test_other_flows_stay_what_they_are() -> None:
    torch.manual_seed(0)
    flows = [
        nf.flows.GlowBlock(2, 8, split_mode="checkerboard"),
        nf.flows.Permute(2, "swap"),
        nf.flows.GlowBlock(2, 8),
        nf.flows.ActNorm((2, 1, 1)),
    ]
    model = nf.NormalizingFlow(nf.distributions.DiagGaussian((2, 4, 4)), flows)
    model.log_prob(torch.randn(8, 2, 4, 4))  # initialises
    scramble(model)
    with torch.no_grad():
        flow = convert(model)
        assert_same(model, flow)
        back = convert_back(flow)
        assert_same(back, flow)
    assert [type(layer) for layer in back.flows] == [type(layer) for layer in flows]


FORMS = [
    invflow.AffineForm(),
    invflow.AffineForm("exp", order="scale_then_shift"),
    invflow.AffineForm("tanh_exp", packing="split"),
    invflow.AffineForm("none"),
    invflow.AffineForm("bounded_exp", volume_preserving=True),
]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_any_flow_of_one_latent_goes_back(form: invflow.AffineForm) -> None:
    torch.manual_seed(0)
    couplings = [invflow.AffineCoupling(4, image_net, form=form), invflow.AffineCoupling(4, image_net, stop=2)]
    steps = [invflow.FlowStep(4, coupling=coupling) for coupling in couplings]
    odd = invflow.FlowStep(4, coupling=invflow.AffineCoupling(4, image_net, start=1))
    base = invflow.DiagonalNormal((4, 2, 2))
    flow = scramble(invflow.Flow([invflow.Squeeze(), *steps, odd], base, event_shape=(1, 4, 4)))
    for layer in (*steps, odd):
        layer.actnorm.mark_initialized()
    with torch.no_grad():
        model = convert_back(flow)
        x = torch.randn(4, 1, 4, 4).double()
        torch.testing.assert_close(model.log_prob(x), flow.log_prob(x), atol=1e-10, rtol=0)
        samples, log_prob = model.sample(4)
        torch.testing.assert_close(flow.log_prob(samples), log_prob, atol=1e-9, rtol=0)
    kinds = [type(part) for part in model.flows]
    assert kinds == [LayerFlow, nf.flows.GlowBlock, nf.flows.GlowBlock, nf.flows.Squeeze]


def test_errors() -> None:
    with pytest.raises(TypeError, match=r"must be a normflows\.flows\.Flow, got FlowStep"):
        layer_of(step(2))
    with pytest.raises(ValueError, match="a tensor to a tensor, got Merge"):
        layer_of(nf.flows.Merge())
    with pytest.raises(TypeError, match="model must be one of normflows"):
        convert(nf.flows.GlowBlock(4, 8))
    with pytest.raises(ValueError, match="base distributions must be DiagGaussian"):
        convert(nf.NormalizingFlow(nf.distributions.Uniform(2), []))
    bases = [nf.distributions.DiagGaussian((2, 2, 2)) for _ in range(2)]
    with pytest.raises(ValueError, match=r"merged by Merge\('channel'\), got Merge\('checkerboard'\)"):
        convert(nf.MultiscaleFlow(bases, [[], []], [nf.flows.Merge("checkerboard")], class_cond=False))
    with pytest.raises(ValueError, match="several latents, of a layer such as Split"):
        convert_back(invflow.Flow(multiscale(), event_shape=(1, 4, 4)))
    with pytest.raises(ValueError, match="base must be StandardNormal or DiagonalNormal, got ClassNormal"):
        convert_back(invflow.glow((2,), steps=1, base=lambda shape: invflow.ClassNormal(2, shape)))
