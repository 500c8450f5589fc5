"""A plugin's own split, squeeze and nested sequences, in everything that a super-resolution flow does."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from foreign_layers import Cut, Doubling, Shift, Unshuffle
from torch import nn

import sr_models
from invflow import ActNorm, FlowSequential, Split, Squeeze
from invflow.testing import log_det_by_autograd
from sr_models import SuperResolutionFlow, check_model
from sr_models.models.assembly import conditional_step, transition
from sr_models.networks.coupling import ShallowNet
from sr_models.networks.rrdb import RRDBEncoder

SCALE = 4
CONTEXT = 8


def step(channels: int) -> nn.Module:
    return conditional_step(channels, CONTEXT, 4, ShallowNet)


def unequal() -> list[FlowSequential]:
    """The plugin's own squeeze and split, which keeps fewer channels than leave."""
    return [
        FlowSequential([Unshuffle(), *transition(12, 1), step(12), Cut(12, 8)]),
        FlowSequential([Unshuffle(), step(16), Doubling()]),
    ]


def three_latents() -> list[FlowSequential]:
    """A split into three, before other layers of the level."""
    return [
        FlowSequential([Squeeze(2), step(12), Cut(12, 1, 5), step(6)]),
        FlowSequential([Squeeze(2), step(24)]),
    ]


def nested() -> list[FlowSequential]:
    """Sequences inside a level, with the squeeze or a split, and one in the other."""
    first = FlowSequential([Squeeze(2), *transition(12, 1)])
    inner = FlowSequential([step(9), FlowSequential([Split(9), step(5)]), Shift(5, CONTEXT)])
    return [
        FlowSequential([first, Cut(12, 3), inner]),
        FlowSequential([FlowSequential([Unshuffle(), step(20)]), step(20)]),
    ]


def late_squeeze() -> list[FlowSequential]:
    """Something before the squeeze, and a level that works at the resolution of the one before."""
    return [
        FlowSequential([ActNorm(3), Doubling(), Squeeze(4), step(48), Cut(48, 7)]),
        FlowSequential([step(41), Shift(41, CONTEXT)]),
    ]


LEVELS: dict[str, Callable[[], list[FlowSequential]]] = {
    "unequal": unequal,
    "three latents": three_latents,
    "nested": nested,
    "late squeeze": late_squeeze,
}


@dataclass(frozen=True)
class ForeignConfig:
    scale: int = SCALE
    levels: str = "unequal"


def build(config: ForeignConfig) -> SuperResolutionFlow:
    """A flow of foreign layers."""
    encoder = RRDBEncoder(config.scale, features=4, growth=2, blocks=1, stacked_blocks=(0,))
    return SuperResolutionFlow(config.scale, encoder, LEVELS[config.levels]())


@pytest.fixture(scope="module", autouse=True)
def registered():
    """The flow as a registered model, for the time of these tests."""
    sr_models.list_models()
    sr_models.register_model("foreign", config=ForeignConfig, presets={"released": {SCALE: {}}})(build)
    yield
    del sr_models.registry._plugins["foreign"]


@pytest.fixture(params=LEVELS)
def model(request: pytest.FixtureRequest) -> SuperResolutionFlow:
    torch.manual_seed(1)
    model = sr_models.create("foreign", levels=request.param).double().eval()
    with torch.no_grad():
        for parameter in model.levels.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    return model


def pair(batch: int = 2, height: int = 3, width: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    hr = torch.rand(batch, 3, SCALE * height, SCALE * width, dtype=torch.float64)
    return hr, torch.rand(batch, 3, height, width, dtype=torch.float64)


def test_decode_undoes_encode(model: SuperResolutionFlow) -> None:
    hr, lr = pair()
    with torch.no_grad():
        encoding = model.encode(hr, lr)
        torch.testing.assert_close(model.decode(encoding.latents, lr), hr, rtol=0, atol=1e-10)
    assert [tuple(latent.shape[1:]) for latent in encoding.latents] == model.latent_shapes(3, 5)
    assert sum(math.prod(shape) for shape in model.latent_shapes(3, 5)) == hr[0].numel()
    assert model.lr_multiple == 1


def test_log_det(model: SuperResolutionFlow) -> None:
    hr, lr = pair(1, 1, 1)

    class AsLayer(nn.Module):
        def forward(self, x: torch.Tensor, context: torch.Tensor | None = None):
            encoding = model.encode(x, lr)
            return encoding.latents, encoding.log_det

    torch.testing.assert_close(model.encode(hr, lr).log_det, log_det_by_autograd(AsLayer(), hr), rtol=0, atol=1e-8)


def test_gradients_with_memory_invert(model: SuperResolutionFlow) -> None:
    hr, lr = pair()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found = []
    for memory in ("store", "invert"):
        for level in model.levels:
            level.memory = memory
        loss = model.encode(hr, lr).bits_per_dim.mean()
        found.append([grad for grad in torch.autograd.grad(loss, parameters, allow_unused=True) if grad is not None])
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("memory", ["store", "invert"])
def test_samples_of_several_images_are_those_of_each(model: SuperResolutionFlow, memory: str) -> None:
    for level in model.levels:
        level.memory = memory
    _, lr = pair()
    together = model.sample(lr, 3)
    assert together.shape == (2, 3, 3, 12, 20)
    torch.testing.assert_close(model.sample(lr[1:], 2), together[1:, :2], rtol=0, atol=1e-10)
    zeros = [torch.zeros(2, *shape, dtype=lr.dtype) for shape in model.latent_shapes(3, 5)]
    with torch.no_grad():
        expected = model.decode(zeros, lr).clamp(0, 1)
    torch.testing.assert_close(model.sample(lr, 2, temperature=0)[:, 1], expected)


def test_tiles(model: SuperResolutionFlow) -> None:
    _, lr = pair(1, 24, 20)
    whole, tiled = model.sample(lr, 1), model.sample(lr, 1, tile=16)
    assert whole.shape == tiled.shape
    # far from the tiles' borders nothing changes; close to them the convolutions' padding does
    assert (whole - tiled).abs().mean() < 0.02


def test_check(model: SuperResolutionFlow) -> None:
    check = check_model(model)
    assert check.round_trip < 1e-10
    assert [(layer.level, layer.layer) for layer in check.layers] == [
        (number, position)
        for number, level in reversed(list(enumerate(model.levels, 1)))
        for position in reversed(range(len(level)))
    ]
    doubling = [layer.factor for layer in check.layers if layer.kind == "Doubling"]
    assert doubling == pytest.approx([0.5] * len(doubling), abs=1e-6)


DESCRIPTIONS = {
    # of every level: reduction, channels, transition steps, steps, latents
    "unequal": [(2, 12, 1, 1, (8,)), (4, 16, 0, 1, (16,))],
    "three latents": [(2, 12, 0, 2, (1, 5)), (4, 24, 0, 1, (24,))],
    "nested": [(2, 12, 1, 2, (3, 4)), (4, 20, 0, 2, (20,))],
    "late squeeze": [(4, 48, 0, 1, (7,)), (4, 41, 0, 1, (41,))],
}


@pytest.mark.parametrize("levels", LEVELS)
def test_describe(levels: str) -> None:
    description = sr_models.describe("foreign", levels=levels)
    found = [
        (level.reduction, level.channels, level.transition_steps, level.steps, level.latents)
        for level in description.levels
    ]
    assert found == DESCRIPTIONS[levels]
    assert "1/4" in str(description)


def test_a_split_without_shapes_is_named() -> None:
    class Unknown(Cut):
        output_shapes = None

    encoder = RRDBEncoder(SCALE, features=4, growth=2, blocks=1, stacked_blocks=(0,))
    levels = [FlowSequential([Squeeze(4), Unknown(48, 8)])]
    model = SuperResolutionFlow(SCALE, encoder, levels)
    with pytest.raises(TypeError, match=r"level 1: layer 1: Unknown has 2 latents and needs a method output_shapes"):
        model.sample(torch.rand(1, 3, 4, 4))


def test_layers_that_do_not_fit_each_other_are_named() -> None:
    encoder = RRDBEncoder(SCALE, features=4, growth=2, blocks=1, stacked_blocks=(0,))
    model = SuperResolutionFlow(SCALE, encoder, [FlowSequential([Squeeze(2), step(12)]), FlowSequential([step(16)])])
    with pytest.raises(
        ValueError, match=r"level 2: layer 0: FlowStep: x must have 16 channels, got shape \(12, 2, 2\)"
    ):
        model.latent_shapes(1, 1)
