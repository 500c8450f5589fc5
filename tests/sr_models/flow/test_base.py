"""Flows of the residual: the base image, and what of a flow it changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sr_models
from sr_models.checkpoints.published import published_layout
from sr_models.flow.base import BASES, enlarge_bicubic
from sr_models.flow.export import Decoder
from sr_models.flow.latents import draw_latents
from sr_models.flow.model import SuperResolutionFlow
from sr_models.io.resize import imresize
from sr_models.networks.rrdb import RRDBEncoder

TINY: dict[str, Any] = {"steps": 1, "hidden_channels": 4, "features": 4, "growth": 2, "blocks": 2}
#: Finest features at twice, once and half the low resolution.
KINDS = [("srflow-da", {}), ("srflow-da-s", {"stacked_blocks": (0, 1)}), ("ncsr", {"noise_steps": (0, 1, 1)})]


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 5), (20, 33)])
def test_enlargement_is_that_of_matlab(size: tuple[int, int], scale: int) -> None:
    image = np.random.default_rng(0).random((*size, 3))
    enlarged = enlarge_bicubic(torch.from_numpy(image).permute(2, 0, 1)[None], scale)
    np.testing.assert_allclose(enlarged[0].permute(1, 2, 0).numpy(), imresize(image, scale), rtol=0, atol=1e-13)


def test_enlargement_has_the_right_gradient_and_keeps_its_dtype_under_autocast() -> None:
    image = torch.rand(2, 3, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda image: enlarge_bicubic(image, 4), image)
    single = image.detach().float()
    with torch.autocast("cpu", torch.bfloat16):
        found = enlarge_bicubic(single, 4)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, enlarge_bicubic(single, 4), rtol=0, atol=0)


def _models(name: str, fields: dict[str, Any], base: str) -> tuple[SuperResolutionFlow, SuperResolutionFlow]:
    """Return a model without a base and the same with one; the encoder's image is not trivial."""
    torch.manual_seed(0)
    fields = {**TINY, "stacked_blocks": (), **fields}
    plain, model = sr_models.create(name, **fields).double(), sr_models.create(name, base=base, **fields).double()
    with torch.no_grad():
        plain.encode(torch.rand(2, 3, 32, 32).double(), torch.rand(2, 3, 8, 8).double(), _noise(plain, 2))
        for parameter in plain.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    model.load_state_dict(plain.state_dict())
    return plain.eval(), model.eval()


def _noise(model: SuperResolutionFlow, count: int) -> Tensor | None:
    return torch.full((count, 1, 1, 1), 0.02).double() if model.noise_channels else None


def _base(plain: SuperResolutionFlow, base: str, lr: Tensor) -> Tensor:
    if base == "none":
        return torch.zeros(())
    return enlarge_bicubic(lr, 4) + (plain.encoder.image(lr) if base == "image" else 0)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize(("name", "fields"), KINDS)
def test_the_flow_models_the_difference_to_the_base(name: str, fields: dict[str, Any], base: str) -> None:
    plain, model = _models(name, fields, base)
    hr, lr = torch.rand(2, 3, 32, 32).double(), torch.rand(2, 3, 8, 8).double()
    noise = _noise(plain, 2)
    with torch.no_grad():
        found = model.encode(hr, lr, noise)
        difference = plain.decode(found.latents, lr, noise)
        torch.testing.assert_close(difference, hr - _base(plain, base, lr), rtol=0, atol=1e-10)
        torch.testing.assert_close(model.decode(found.latents, lr, noise), hr, rtol=0, atol=1e-10)
        # a shift of the image has determinant 1
        again = plain.encode(hr, lr, noise) if base == "none" else None
    assert again is None or torch.equal(found.log_det, again.log_det)


@pytest.mark.parametrize("base", ["bicubic", "image"])
def test_the_log_determinant_is_that_of_the_whole_map(base: str) -> None:
    _, model = _models("srflow-da", {"scale": 4}, base)
    hr, lr = torch.rand(1, 3, 8, 8).double(), torch.rand(1, 3, 2, 2).double()

    def latents(hr: Tensor) -> Tensor:
        return torch.cat([latent.flatten() for latent in model.encode(hr, lr).latents])

    jacobian = torch.autograd.functional.jacobian(latents, hr).reshape(3 * 64, 3 * 64)
    expected = torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(model.encode(hr, lr).log_det[0].detach(), expected, rtol=1e-10, atol=1e-8)


@pytest.mark.parametrize("base", ["bicubic", "image"])
@pytest.mark.parametrize(("name", "fields"), KINDS)
def test_samples_add_the_base_of_their_image(name: str, fields: dict[str, Any], base: str) -> None:
    plain, model = _models(name, fields, base)
    lr = torch.rand(2, 3, 8, 6).double()
    samples = model.sample(lr, 3, temperature=0.5, seed=7)
    noise = _noise(model, 2 * 3)
    noise = None if noise is None else torch.zeros_like(noise)
    latents = [
        latent.double().expand(2, *latent.shape).flatten(0, 1)
        for latent in draw_latents(model.latent_shapes(8, 6), range(3), 0.5, 7, 0)
    ]
    with torch.no_grad():
        difference = plain.decode(latents, lr.repeat_interleave(3, 0), noise).unflatten(0, (2, 3))
        expected = (difference + _base(plain, base, lr)[:, None]).clamp(0, 1)
    torch.testing.assert_close(samples, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("base", ["bicubic", "image"])
def test_a_tile_of_a_large_image_has_its_part_of_the_base(base: str) -> None:
    _, model = _models("srflow-da", {}, base)
    lr = torch.rand(1, 3, 40, 18).double()
    samples = model.sample(lr, 2, temperature=0.0, tile=16)
    with torch.no_grad():
        whole = model.sample(lr, 2, temperature=0.0)
        plain = enlarge_bicubic(lr, 4).clamp(0, 1)
    # tiles know no pixels beyond their borders; the base of another place would be wrong by far more
    assert (samples - whole).square().mean() < 0.01 * (plain - plain.roll(16 * 4, 2)).square().mean()


@pytest.mark.parametrize("base", ["bicubic", "image"])
def test_decoders_for_export_add_the_base(base: str) -> None:
    _, model = _models("srflow-da", {}, base)
    lr = torch.rand(2, 3, 4, 6).double()
    latents = [torch.randn(2, *shape).double() for shape in model.latent_shapes(4, 6)]
    with torch.no_grad():
        found = Decoder(model.folded())(lr, latents)
        torch.testing.assert_close(found, model.decode(latents, lr).clamp(0, 1), rtol=0, atol=1e-9)
        program = torch.export.export(Decoder(model.folded()), (lr, latents))
        torch.testing.assert_close(program.module()(lr, latents), found, rtol=0, atol=1e-9)


def test_the_encoder_of_a_model_with_a_base_begins_with_bicubic_enlargement() -> None:
    lr = torch.rand(1, 3, 5, 6)
    with torch.no_grad():
        for base in ("bicubic", "image"):
            model = sr_models.create("srflow-da", base=base, **TINY, stacked_blocks=())
            torch.testing.assert_close(model.image(lr), enlarge_bicubic(lr, 4), rtol=0, atol=0)
        plain = sr_models.create("srflow-da", **TINY, stacked_blocks=())
        torch.testing.assert_close(plain.image(lr), plain.encoder.image(lr), rtol=0, atol=0)


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_the_image_goes_on_from_features(factor: int) -> None:
    encoder = RRDBEncoder(8, features=4, growth=2, blocks=3, stacked_blocks=(0, 2))
    lr = torch.rand(2, 3, 4, 6)
    with torch.no_grad():
        own = encoder.features(lr, [factor])[factor].own
        torch.testing.assert_close(encoder.image(lr, (own, factor)), encoder.image(lr))


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"base must be one of 'none', 'bicubic', 'image', got 'nearest'$"):
        sr_models.create("srflow", base="nearest")
    model = sr_models.create("srflow-da", base="bicubic", **TINY, stacked_blocks=())
    with pytest.raises(ValueError, match="the published implementations have no srflow-da like this one"):
        published_layout(model)
