"""Condition sharing: what is computed once for all samples is what every sample would compute for itself."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.utils.prune
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import NAMES, randomised
from torch import Tensor, nn
from torch.nn import functional as F

from invflow import ActNorm, AffineCoupling, AffineInjector, FlowSequential, FlowStep, Squeeze
from invflow.layers import condition
from sr_models.flow import condition_sharing, decoding, merged_convs
from sr_models.flow.condition_sharing import LevelContext, features_conv
from sr_models.flow.decoding import Place, decode_flow
from sr_models.flow.model import SuperResolutionFlow
from sr_models.networks.coupling import ConvActNorm, CouplingNet, ShallowNet
from sr_models.networks.rrdb import Features

SCALES = (2, 4, 8)


@pytest.fixture(scope="module", params=[(name, scale) for name in NAMES for scale in SCALES], ids=str)
def model(request: pytest.FixtureRequest) -> SuperResolutionFlow:
    return randomised(*request.param)


def unshared(model: SuperResolutionFlow, latents: list[Tensor], lr: Tensor, noise: Tensor | None = None) -> Tensor:
    """Every sample by itself, with the joined context in every layer."""
    contexts = model.contexts(lr, noise)
    *rest, x = latents
    for level, context in zip(reversed(model.levels), reversed(contexts), strict=True):
        extra = level.num_latents - 1
        x, _ = level.inverse([*rest[len(rest) - extra :], x], context)
        rest = rest[: len(rest) - extra]
    return x


def latents_of(model: SuperResolutionFlow, batch: int, height: int = 4, width: int = 6) -> list[Tensor]:
    shapes = model.latent_shapes(height, width)
    generator = torch.Generator().manual_seed(3)
    return [0.5 * torch.randn(batch, *shape, generator=generator, dtype=torch.float64) for shape in shapes]


@given(
    repeat=st.integers(2, 8),
    height=st.integers(1, 4),
    width=st.integers(1, 4),
    biased=st.booleans(),
    channels_last=st.booleans(),
)
def test_convolution_of_features_is_that_of_the_joined_ones(
    repeat: int, height: int, width: int, biased: bool, channels_last: bool
) -> None:
    torch.manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    own = torch.randn(2, 3, repeat * height, repeat * width, dtype=torch.float64).contiguous(memory_format=layout)
    stacked = torch.randn(2, 5, height, width, dtype=torch.float64).contiguous(memory_format=layout)
    weight = torch.randn(4, 8, 3, 3, dtype=torch.float64)
    bias = torch.randn(4, dtype=torch.float64) if biased else None
    features = Features(own, stacked, repeat)
    expected = F.conv2d(features.joined(), weight, bias, padding=1)
    torch.testing.assert_close(features_conv(features, weight, bias), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("noisy", [False, True])
def test_decoding_shares_nothing_else(model: SuperResolutionFlow, noisy: bool) -> None:
    if noisy and not model.noise_channels:
        pytest.skip("not conditioned on noise")
    lr = torch.rand(2, 3, 4, 6, dtype=torch.float64)
    noise = torch.full((2, 1, 1, 1), 0.3, dtype=torch.float64) if noisy else None
    latents = latents_of(model, 2)
    with torch.no_grad():
        expected = unshared(model, latents, lr, noise)
        torch.testing.assert_close(model.decode(latents, lr, noise), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("pixels", [1, 100, 1000, 10**9])
def test_samples_of_several_images_in_chunks_of_any_size(
    model: SuperResolutionFlow, pixels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, samples = 2, 3
    lr = torch.rand(images, 3, 4, 6, dtype=torch.float64)
    latents = latents_of(model, images * samples)
    monkeypatch.setattr(decoding, "_CHUNK_PIXELS", pixels)
    with torch.no_grad():
        expected = unshared(model, latents, lr.repeat_interleave(samples, 0))
        actual = model.walk_decode(decode_flow, latents, lr)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_gradients_are_the_same() -> None:
    model = randomised("srflow")
    lr = torch.rand(1, 3, 4, 6, dtype=torch.float64, requires_grad=True)
    latents = [latent.requires_grad_() for latent in latents_of(model, 1)]
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def gradients(image: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(image.square().sum(), [lr, *latents, *parameters], allow_unused=True)

    pairs = zip(gradients(model.decode(latents, lr)), gradients(unshared(model, latents, lr)), strict=True)
    for actual, expected in pairs:
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)


def test_what_depends_on_the_image_only_is_computed_once() -> None:
    model = randomised("srflow")
    injectors = [layer.injector for level in model.levels for layer in level if getattr(layer, "injector", None)]
    calls: list[int] = []
    for injector in injectors:
        assert injector is not None
        injector.net.layers[-1].register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    trunk: list[int] = []
    model.encoder.conv_first.register_forward_hook(lambda _, inputs, __: trunk.append(len(inputs[0])))
    model.sample(torch.rand(2, 3, 4, 6, dtype=torch.float64), 5)
    assert calls == [2] * len(injectors)
    assert trunk == [2]


def test_an_actnorm_that_waits_for_its_first_batch_gets_it() -> None:
    torch.manual_seed(0)
    coupling = AffineCoupling(4, ShallowNet(2 + 3, 8, 4), context_channels=3)
    step = FlowStep(4, coupling=coupling)
    features = Features(torch.randn(1, 1, 4, 4), torch.randn(1, 2, 2, 2), 2)
    z = torch.randn(1, 4, 4, 4)
    actual = condition(step, LevelContext(features))(z, slice(0, 1))
    convolutions = [module for module in step.modules() if isinstance(module, ConvActNorm)]
    assert len(convolutions) == 2
    assert not any(convolution.waits() for convolution in convolutions)
    torch.testing.assert_close(actual, step.inverse(z, features.joined())[0])


def test_networks_of_the_models_are_split() -> None:
    model = randomised("srflow")
    context = LevelContext(Features(torch.rand(1, model.encoder.context_channels, 4, 4, dtype=torch.float64)))
    nets = [module for module in model.modules() if isinstance(module, CouplingNet)]
    assert nets
    for net in nets:
        assert isinstance(context.network(net), condition_sharing.ConditionedNet)


def test_networks_that_cannot_be_split_get_the_joined_context() -> None:
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)

        def forward(self, *inputs: Tensor) -> Tensor:
            return self.conv(torch.cat(inputs, 1))

    level = FlowSequential(
        [
            Squeeze(2),
            FlowStep(4, injector=AffineInjector(4, Net(3, 8), context_channels=3)),
            FlowStep(4, coupling=AffineCoupling(4, Net(2 + 3, 4), context_channels=3)),
            FlowStep(4, coupling=AffineCoupling(4, Net(2, 4))),
        ]
    ).eval()
    features = Features(torch.randn(2, 1, 4, 4), torch.randn(2, 2, 2, 2), 2)
    z = torch.randn(4, 4, 4, 4)
    with torch.no_grad():
        expected, _ = level.inverse(z, features.joined())
        actual = decode_flow(level, [z], LevelContext(features), Place(1))
    torch.testing.assert_close(actual, expected)


def full_step(net: type[nn.Module], context_channels: int) -> FlowStep:
    return FlowStep(
        4,
        injector=AffineInjector(4, net(context_channels, 8, 8), context_channels=context_channels),
        coupling=AffineCoupling(4, net(2 + context_channels, 8, 4), context_channels=context_channels),
    ).eval()


class Doubled(ShallowNet):
    """Overrides what the network computes, and knows nothing of its parts."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return 2 * super().forward(x, context)


@pytest.mark.parametrize("net", [ShallowNet, Doubled])
@pytest.mark.parametrize("noisy", [False, True])
def test_networks_see_the_whole_context_and_are_not_bypassed(net: type[nn.Module], noisy: bool) -> None:
    torch.manual_seed(0)
    step = full_step(net, 4 if noisy else 3)
    with torch.no_grad():
        for parameter in step.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        features = Features(torch.randn(2, 1, 4, 4), torch.randn(2, 2, 2, 2), 2)
        context = LevelContext(features, torch.randn(2, 1, 4, 4) if noisy else None)
        z = torch.randn(4, 4, 4, 4)
        expected, _ = step.inverse(z, context.joined())
        inverse = condition(step, context)
        torch.testing.assert_close(inverse(z, slice(0, 2)), expected)
        torch.testing.assert_close(inverse(z[2:], slice(1, 2)), expected[2:])


def test_an_empty_batch_decodes_to_an_empty_batch() -> None:
    model = randomised("srflow-da")
    assert model.decode(latents_of(model, 0), torch.rand(0, 3, 4, 6, dtype=torch.float64)).shape == (0, 3, 16, 24)


class Adapted(nn.Module):
    """A convolution and what an adapter adds to it, with the attributes of the convolution."""

    def __init__(self, base: nn.Conv2d) -> None:
        super().__init__()
        self.base = base
        self.added = nn.Conv2d(base.in_channels, base.out_channels, 3, padding=1)

    weight = property(lambda self: self.base.weight)
    bias = property(lambda self: self.base.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.added(x)

    def merged(self) -> tuple[Tensor, Tensor]:
        return self.base.merged()


class Negated(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return -super().forward(x)


def network_returns_double(net: CouplingNet) -> None:
    net.register_forward_hook(lambda module, args, output: 2 * output)


def network_sees_double(net: CouplingNet) -> None:
    net.register_forward_pre_hook(lambda module, args, kwargs: ((2 * args[0], *args[1:]), kwargs), with_kwargs=True)


def convolution_returns_double(net: CouplingNet) -> None:
    net.first_conv.register_forward_hook(lambda module, args, output: 2 * output)


def actnorm_returns_double(net: CouplingNet) -> None:
    for part in net.modules():
        if isinstance(part, ActNorm):
            part.register_forward_hook(lambda module, args, output: (2 * output[0], output[1]))


class ShrinkingActNorm(ActNorm):
    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, log_det = super().forward(x)
        return 0.5 * y, log_det


def actnorm_is_of_a_subclass(net: CouplingNet) -> None:
    shrinking = ShrinkingActNorm(8).eval()
    shrinking.load_state_dict(net.layers[0].actnorm.state_dict())
    net.layers[0].actnorm = shrinking


def forward_of_an_actnorm_is_replaced(net: CouplingNet) -> None:
    actnorm = net.layers[0].actnorm
    forward = actnorm.forward
    actnorm.forward = lambda x: (2 * forward(x)[0], forward(x)[1])


def convolution_is_adapted(net: CouplingNet) -> None:
    net.layers[0] = Adapted(net.layers[0])


def convolution_is_of_a_subclass(net: CouplingNet) -> None:
    net.layers[0] = Negated(net.first_conv.in_channels, 8, 3, padding=1)


def convolution_reflects(net: CouplingNet) -> None:
    net.layers[0] = nn.Conv2d(net.first_conv.in_channels, 8, 3, padding=1, padding_mode="reflect")


def forward_is_replaced(net: CouplingNet) -> None:
    conv = net.first_conv
    forward = conv.forward
    conv.forward = lambda x: 2 * forward(x)


def convolution_is_pruned(net: CouplingNet) -> None:
    torch.nn.utils.prune.l1_unstructured(net.first_conv, "weight", amount=0.5)


def actnorm_is_pruned(net: CouplingNet) -> None:
    torch.nn.utils.prune.l1_unstructured(net.layers[0].actnorm, "log_scale", amount=0.5)


def convolution_is_weight_normed(net: CouplingNet) -> None:
    torch.nn.utils.parametrizations.weight_norm(net.first_conv)
    with torch.no_grad():
        net.first_conv.parametrizations.weight.original0.mul_(2)


@pytest.mark.parametrize(
    "change",
    [
        network_returns_double,
        network_sees_double,
        convolution_returns_double,
        actnorm_returns_double,
        actnorm_is_of_a_subclass,
        forward_of_an_actnorm_is_replaced,
        convolution_is_adapted,
        convolution_is_of_a_subclass,
        convolution_reflects,
        forward_is_replaced,
        convolution_is_pruned,
        actnorm_is_pruned,
        convolution_is_weight_normed,
    ],
)
def test_what_watches_or_replaces_the_first_convolution_counts(change: Callable[[CouplingNet], None]) -> None:
    torch.manual_seed(0)
    step = full_step(ShallowNet, 3)
    with torch.no_grad():
        for parameter in step.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    before = copy.deepcopy(step)
    for net in (step.injector.net, step.coupling.net):
        change(net)
    with torch.no_grad():  # an optimizer's step, which no forward pass of the networks has followed
        for parameter in (*step.parameters(), *before.parameters()):
            parameter.mul_(1.1)
        features = Features(torch.randn(2, 1, 4, 4), torch.randn(2, 2, 2, 2), 2)
        context, z = LevelContext(features), torch.randn(4, 4, 4, 4)
        actual = condition(step, context)(z, slice(0, 2))
        expected, _ = step.inverse(z, context.joined())
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(step(actual, context.joined())[0], z, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(before.inverse(z, context.joined())[0], expected, rtol=1e-3, atol=1e-3)


def test_hooks_on_an_actnorm_inside_a_convolution_are_called() -> None:
    torch.manual_seed(0)
    conv, x = ConvActNorm(3, 4, 3), torch.randn(2, 3, 5, 5)
    seen = []
    conv.actnorm.register_forward_hook(lambda module, args, output: seen.append(output[0]))
    y = conv(x)
    assert seen[0] is y
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-5)


def test_a_pruned_actnorm_inside_a_convolution_follows_its_parameters() -> None:
    torch.manual_seed(0)
    conv, x = ConvActNorm(3, 4, 3), torch.randn(2, 3, 5, 5)
    conv(x)
    torch.nn.utils.prune.l1_unstructured(conv.actnorm, "log_scale", amount=1)
    for _ in range(2):
        with torch.no_grad():
            conv.actnorm.log_scale_orig.add_(0.5)
        scale = (conv.actnorm.log_scale_orig * conv.actnorm.log_scale_mask).exp()[:, None, None]
        expected = (F.conv2d(x, conv.weight, padding=1) + conv.actnorm.bias[:, None, None]) * scale
        torch.testing.assert_close(conv(x), expected)


def encode_joined(model: SuperResolutionFlow, hr: Tensor, lr: Tensor, noise: Tensor | None = None) -> list[Tensor]:
    """Latents and log-determinant with the joined context in every layer."""
    latents, total, x = [], 0.0, hr
    for level, context in zip(model.levels, model.contexts(lr, noise), strict=True):
        z, log_det = level(x, context)
        *leaving, x = z if isinstance(z, list) else [z]
        latents += leaving
        total = total + log_det
    return [*latents, x, total]


def gradients_of(
    results: list[Tensor], hr: Tensor, lr: Tensor, model: SuperResolutionFlow
) -> tuple[Tensor | None, ...]:
    loss = sum((result.square() + result).sum() for result in results)
    inputs = [hr, lr, *(parameter for parameter in model.parameters() if parameter.requires_grad)]
    return torch.autograd.grad(loss, inputs, allow_unused=True)


def assert_trains_as_joined(model: SuperResolutionFlow, noisy: bool = False) -> None:
    """Latents, log-determinant and all gradients are those with the joined context in every layer."""
    lr = torch.rand(2, 3, 4, 6, dtype=torch.float64, requires_grad=True)
    hr = torch.rand(2, 3, 4 * model.scale, 6 * model.scale, dtype=torch.float64, requires_grad=True)
    noise = torch.rand(2, model.noise_channels, *hr.shape[2:], dtype=torch.float64) if noisy else None
    encoding = model.encode(hr, lr, noise)
    found, expected = [*encoding.latents, encoding.log_det], encode_joined(model, hr, lr, noise)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    pairs = zip(gradients_of(found, hr, lr, model), gradients_of(expected, hr, lr, model), strict=True)
    for actual, wanted in pairs:
        assert (actual is None) == (wanted is None)
        if wanted is not None:
            torch.testing.assert_close(actual, wanted, rtol=1e-10, atol=1e-10 * float(wanted.abs().max()))


@pytest.mark.parametrize("memory", ["store", "invert"])
@pytest.mark.parametrize("noisy", [False, True])
def test_training_with_shared_conditions_has_the_gradients_of_joined_ones(
    model: SuperResolutionFlow, memory: str, noisy: bool
) -> None:
    if noisy and not model.noise_channels:
        pytest.skip("not conditioned on noise")
    torch.manual_seed(5)
    model = copy.deepcopy(model).train()
    for level in model.levels:
        level.memory = memory
    assert_trains_as_joined(model, noisy)


@pytest.fixture(params=[1, 2**26], ids=["one network", "a level"])
def merging(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Convolutions of the features for this many results at once, as on an accelerator."""
    monkeypatch.setattr(condition_sharing, "_merges", lambda x: True)
    monkeypatch.setattr(merged_convs, "_RESULTS", request.param)
    return request.param


@pytest.mark.parametrize("memory", ["store", "invert"])
def test_training_with_merged_convolutions_has_the_same_gradients(
    model: SuperResolutionFlow, memory: str, merging: int
) -> None:
    torch.manual_seed(5)
    model = copy.deepcopy(model).train()
    for level in list(model.levels)[:2]:
        level.memory = memory
    assert_trains_as_joined(model, noisy=bool(model.noise_channels))


def test_networks_of_a_level_share_one_convolution(merging: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = randomised("srflow", steps=3).train()
    calls: list[int] = []
    original = condition_sharing.features_conv

    def counted(features: Features, weight: Tensor, bias: Tensor | None) -> Tensor:
        calls.append(len(weight))
        return original(features, weight, bias)

    monkeypatch.setattr(condition_sharing, "features_conv", counted)
    model.encode(torch.rand(1, 3, 16, 16, dtype=torch.float64), torch.rand(1, 3, 4, 4, dtype=torch.float64))
    assert calls == ([4] * 18 if merging == 1 else [24] * 3)


def test_a_network_that_cannot_be_split_is_left_out_of_a_merged_convolution(merging: int) -> None:
    model = randomised("srflow", steps=3).train()
    seen: list[int] = []
    step = model.levels[0][3]
    step.coupling.net.first_conv.register_forward_hook(lambda module, args, output: seen.append(args[0].shape[1]))
    model.levels[1][3].register_forward_hook(lambda module, args, output: seen.append(args[1].shape[1]))
    model.levels[2][4].coupling.net = model.levels[2][3].coupling.net  # asked for twice
    assert_trains_as_joined(model)
    assert seen == 2 * [6 + model.encoder.context_channels, model.encoder.context_channels]


def test_waiting_networks_are_initialised_from_their_first_batch(merging: int) -> None:
    torch.manual_seed(0)
    fresh = randomised("srflow", steps=2).train()
    for module in fresh.modules():
        if isinstance(module, ConvActNorm):
            torch.nn.init.zeros_(module.actnorm.bias)
            torch.nn.init.zeros_(module.actnorm.log_scale)
            module.actnorm.initialized.zero_()
    joined = copy.deepcopy(fresh)
    hr, lr = torch.rand(2, 3, 16, 16, dtype=torch.float64), torch.rand(2, 3, 4, 4, dtype=torch.float64)
    found, expected = fresh.encode(hr, lr), encode_joined(joined, hr, lr)
    torch.testing.assert_close([*found.latents, found.log_det], expected, rtol=1e-11, atol=1e-11)
    assert not any(module.waits() for module in fresh.modules() if isinstance(module, ConvActNorm))
    for (name, actual), wanted in zip(fresh.named_parameters(), joined.parameters(), strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-11, atol=1e-11, msg=name)
