"""Condition sharing: what is computed once for all samples is what every sample would compute for itself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import NAMES, randomised
from torch import Tensor, nn
from torch.nn import functional as F

from invflow import AffineCoupling, AffineInjector, FlowSequential, FlowStep, Squeeze
from invflow.layers import condition
from sr_models.flow import decoding
from sr_models.flow.condition_sharing import LevelContext, features_conv
from sr_models.flow.decoding import decode_levels
from sr_models.flow.model import SuperResolutionFlow
from sr_models.networks.coupling import ConvActNorm, ShallowNet
from sr_models.networks.rrdb import Features

SCALES = (4, 8)


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
        actual = decode_levels(list(model.levels), latents, model.level_contexts(lr))
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
        actual = decode_levels([level], [z], [LevelContext(features)])
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
