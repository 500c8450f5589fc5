"""Folded super-resolution flows, and their decoders as programs."""

from __future__ import annotations

import copy
import warnings

import onnxruntime
import pytest
import torch
from accuracy import assert_as_accurate
from tiny_models import NAMES, randomised
from torch import Tensor

import sr_models
from invflow import ActNorm
from sr_models.flow.export import Decoder
from sr_models.networks.coupling import ConvActNorm

DYNAMIC = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}


def inputs(
    model: sr_models.SuperResolutionFlow, batch: int, height: int, width: int, temperature: float = 0.5
) -> tuple[Tensor, list[Tensor]]:
    latents = [temperature * torch.randn(batch, *shape) for shape in model.latent_shapes(height, width)]
    return torch.rand(batch, 3, height, width), latents


def exact_and_plain(model: sr_models.SuperResolutionFlow, lr: Tensor, latents: list[Tensor]) -> tuple[Tensor, Tensor]:
    wide = copy.deepcopy(model).double()
    noise = lr.new_zeros(len(lr), 1, 1, 1) if model.noise_channels else None
    with torch.no_grad():
        exact = wide.decode([z.double() for z in latents], lr.double(), None if noise is None else noise.double())
        return exact.clamp(0, 1), model.decode(latents, lr, noise).clamp(0, 1)


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("name", NAMES)
def test_a_folded_model_encodes_decodes_and_samples(name: str, scale: int) -> None:
    model = randomised(name, scale)
    folded = model.folded()
    assert (folded.name, folded.config) == (model.name, model.config)
    assert not any(isinstance(part, ActNorm | ConvActNorm) for part in folded.modules())
    lr, hr = torch.rand(2, 3, 4, 6, dtype=torch.float64), torch.rand(2, 3, 4 * scale, 6 * scale, dtype=torch.float64)
    noise = 0.02 * torch.ones(2, 1, 1, 1, dtype=torch.float64) if model.noise_channels else None
    with torch.no_grad():
        found, expected = folded.encode(hr, lr, noise), model.encode(hr, lr, noise)
    torch.testing.assert_close(found.latents, expected.latents, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.log_prob, expected.log_prob, rtol=1e-10, atol=1e-8)
    torch.testing.assert_close(folded.decode(found.latents, lr, noise), hr, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(folded.sample(lr, 2), model.sample(lr, 2), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_a_traced_decoder(name: str) -> None:
    model = randomised(name, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.jit.trace(Decoder(model.folded()), inputs(model, 2, 4, 6))
    for size in ((2, 4, 6), (3, 8, 4)):
        lr, latents = inputs(model, *size)
        exact, plain = exact_and_plain(model, lr, latents)
        assert_as_accurate(program(lr, latents), plain, exact)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["srflow-da-s", "ncsr"])
def test_a_decoder_in_onnxruntime(name: str) -> None:
    model = randomised(name, dtype=torch.float32, steps=1)
    decoder = Decoder(model.folded())
    lr, latents = inputs(model, 2, 4, 6)
    shapes = (DYNAMIC, [DYNAMIC] * len(latents))
    program = torch.onnx.export(decoder, (lr, latents), dynamo=True, dynamic_shapes=shapes, verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for size in ((2, 4, 6), (3, 8, 4)):
        lr, latents = inputs(model, *size)
        names = [value.name for value in session.get_inputs()]
        given = {name: tensor.numpy() for name, tensor in zip(names, [lr, *latents], strict=True)}
        (image,) = session.run(None, given)
        exact, plain = exact_and_plain(model, lr, latents)
        assert_as_accurate(torch.from_numpy(image), plain, exact)


def test_a_fresh_model_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"^levels: 0: layer 1: ActNorm with 12 channels is not initialised"):
        sr_models.create("srflow", steps=1, blocks=1, stacked_blocks=(0,)).folded()


def test_a_fresh_actnorm_in_a_network_is_refused() -> None:
    model = randomised("srflow")
    network = next(part for part in model.modules() if isinstance(part, ConvActNorm))
    network.actnorm = ActNorm(network.out_channels)
    with pytest.raises(RuntimeError, match=r"^levels: 0: layer \d: injector: layers: 0: ActNorm .* not initialised"):
        model.folded()
