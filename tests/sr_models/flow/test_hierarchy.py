"""Flows without an encoder: what they share over samples, and how they fit everything that takes a model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sr_models
from invflow import ActNorm
from sr_models.checkpoints.convert import convert_published, write_published
from sr_models.checkpoints.files import load_model
from sr_models.checkpoints.published import to_published
from sr_models.flow import decoding
from sr_models.flow.export import Decoder
from sr_models.flow.hierarchy import HierarchicalFlow, quantised
from sr_models.flow.latents import draw_latents
from sr_models.networks.tapped_rrdb import TappedRRDB, joined

TINY: dict[str, Any] = {
    "steps": (1, 2),
    "conditional_steps": (2, 1),
    "hidden_channels": 6,
    "conditional_hidden_channels": 5,
    "features": 4,
    "growth": 2,
    "blocks": (1, 2),
}


def tiny(scale: int = 4, dtype: torch.dtype = torch.float64) -> HierarchicalFlow:
    """A model none of whose parts is at its initial identity, in evaluation mode."""
    torch.manual_seed(1)
    changes = {**TINY, "steps": 1, "conditional_steps": 2} if scale == 8 else TINY
    model = sr_models.create("hcflow", scale=scale, **changes).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    for module in model.modules():
        if isinstance(module, ActNorm):
            module.mark_initialized()
    assert isinstance(model, HierarchicalFlow)
    return model.eval()


@pytest.fixture(scope="module", params=[4, 8])
def model(request: pytest.FixtureRequest) -> HierarchicalFlow:
    return tiny(request.param)


def images(model: HierarchicalFlow, batch: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    lr = torch.rand(batch, 3, 3, 5, generator=generator, dtype=torch.float64)
    hr = torch.rand(batch, 3, 3 * model.scale, 5 * model.scale, generator=generator, dtype=torch.float64)
    return hr, lr


def test_round_trip_and_change_of_variables(model: HierarchicalFlow) -> None:
    """The latents, that of the low resolution included, give the image; log_det is that of their Jacobian."""
    hr, lr = images(model, 1)
    hr, lr = hr[..., : model.scale, : model.scale], lr[..., :1, :1]
    encoding = model.encode(hr, lr)
    assert [tuple(z.shape[1:]) for z in encoding.latents] == model.latent_shapes(1, 1)
    torch.testing.assert_close(model.decode(encoding.latents, lr), hr, rtol=0, atol=1e-11)
    if model.scale == 8:
        return  # whose Jacobian would take seconds

    def flat(x: Tensor) -> Tensor:
        return torch.cat([z.flatten() for z in model.encode(x.view_as(hr), lr).latents])

    jacobian = torch.autograd.functional.jacobian(flat, hr.flatten())
    torch.testing.assert_close(encoding.log_det[0], torch.linalg.slogdet(jacobian)[1], rtol=1e-9, atol=1e-9)


def test_an_image_one_grey_level_away_is_less_likely(model: HierarchicalFlow) -> None:
    """In the likelihood the flow's low-resolution image has 8 bits: a difference of less than half a level is none."""
    hr, lr = images(model, 1)
    with torch.no_grad():
        y = lr + model.encode(hr, lr).latents[-1] * math.exp(-6)
        made = quantised(y)
        exact, off = (model.encode(hr, made + shift).log_prior for shift in (0.0, 1 / 255))
    loss = 0.5 * (math.exp(6) / 255) ** 2 * lr.numel()
    torch.testing.assert_close(exact - off, torch.full_like(off, loss))


@pytest.mark.parametrize("pixels", [1, 40, 10**6])
def test_samples_share_what_depends_on_the_image_only(
    model: HierarchicalFlow, pixels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples of two images, in chunks of any size, are those that are decoded one by one."""
    _, lr = images(model)
    monkeypatch.setattr(decoding, "_CHUNK_PIXELS", pixels)
    drawn = draw_latents(model.drawn_shapes(3, 5), range(3), 0.5, 7)
    samples = model.sample(lr, 3, temperature=0.5, seed=7, on_explode="error")
    for image in range(2):
        one = lr[image : image + 1]
        for index in range(3):
            latents = [z[index : index + 1].double() for z in drawn]
            with torch.no_grad():
                expected = model.decode([*latents, torch.zeros_like(one)], one).clamp(0, 1)
            torch.testing.assert_close(samples[image, index : index + 1], expected, rtol=0, atol=1e-10)


def test_tiles_and_progress(model: HierarchicalFlow) -> None:
    lr = torch.rand(1, 3, 17, 16, dtype=torch.float64)
    parts: list[float] = []
    whole = model.sample(lr, 2, temperature=0.1, on_progress=parts.append)
    assert sum(parts) == pytest.approx(1)
    tiled = model.sample(lr, 2, temperature=0.1, tile=16)
    assert tiled.shape == whole.shape
    assert (tiled - whole).abs().mean() < 0.05


def test_features_of_enlarged_maps_are_those_of_joined_ones(model: HierarchicalFlow) -> None:
    network = model.conditional[0].features
    assert isinstance(network, TappedRRDB)
    levels = model.scale.bit_length() - 2
    deeper = [torch.rand(2 if level else 4, 8, 4 // 2**level, 8 // 2**level).double() for level in range(levels)]
    own = torch.rand(4, 6, 8, 16, dtype=torch.float64)
    with torch.no_grad():
        expected = torch.nn.functional.conv2d(
            joined(own, deeper), network.conv_first.weight, network.conv_first.bias, padding=1
        )
        torch.testing.assert_close(network._first(own, deeper), expected, rtol=0, atol=1e-12)


def test_export_and_check(model: HierarchicalFlow) -> None:
    _, lr = images(model)
    latents = [torch.randn(2, *shape).double() for shape in model.latent_shapes(3, 5)]
    folded = model.folded()
    with torch.no_grad():
        expected = model.decode(latents, lr).clamp(0, 1)
        torch.testing.assert_close(Decoder(folded)(lr, latents), expected, rtol=0, atol=1e-11)
    found = sr_models.check_model(model, size=4)
    layers = sum(len(flow) for flow in model.flows())
    assert found.round_trip < 1e-10
    assert len({(layer.level, layer.layer) for layer in found.layers}) == len(found.layers) == layers


def test_converted_files_come_back_bit_for_bit(model: HierarchicalFlow, tmp_path: Path) -> None:
    model = tiny(model.scale, torch.float32)
    published = to_published(model, model.state_dict())
    torch.save({f"module.{name}": tensor for name, tensor in published.items()}, tmp_path / "published.pth")
    line = convert_published(tmp_path / "published.pth", tmp_path / "own.safetensors", model="hcflow")
    assert line == f"hcflow at {model.scale}x with {sum(map(torch.numel, published.values())):,} parameters"
    write_published(tmp_path / "own.safetensors", tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert list(back) == list(published)
    for name, tensor in published.items():
        assert torch.equal(back[name].view(torch.uint8), tensor.contiguous().view(torch.uint8)), name
    loaded = load_model(tmp_path / "own.safetensors")
    assert loaded.config == model.config
    assert loaded.temperature == model.temperature == (0.8 if model.scale == 8 else 0.9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model, hr, lr: model.encode(hr, lr, torch.ones(2, 1, 1, 1).double()), "noise must be None: hcflow"),
        (lambda model, hr, lr: model.image(lr), "hcflow has no encoder of the low-resolution image"),
        (lambda model, hr, lr: model.contexts(lr), "hcflow has no contexts of the low-resolution image"),
        (
            lambda model, hr, lr: sr_models.create("hcflow", steps=(1, 2, 3)),
            "steps must be one number or 2, one a level",
        ),
        (lambda model, hr, lr: sr_models.create("hcflow", blocks=(1,)), "blocks must be two whole numbers"),
    ],
)
def test_errors(model: HierarchicalFlow, call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(model, *images(model))
