"""HCFlow against the published implementation, whose results are stored as fixtures."""

from __future__ import annotations

import itertools
import math
import re

import pytest
import torch
from golden import FLOAT32_FLOOR, Golden, load_golden
from kinks import pre_activations
from torch import Tensor

import invflow
import sr_models
from invflow import ActNorm
from sr_models.checkpoints.published import from_published, published_layout, to_published
from sr_models.flow.hierarchy import HierarchicalFlow, quantised

SMALL, FULL = ("hcflow_4", "hcflow_8_faces"), ("hcflow_4_full", "hcflow_8_faces_full")
#: Those of full size take seconds.
ALL = [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in FULL)]
#: Relative to the largest value: rounding, and nothing else.
TOLERANCE = {name: 1e-9 if name in FULL else 1e-10 for name in SMALL + FULL}


@pytest.fixture(scope="module", params=ALL)
def golden(request: pytest.FixtureRequest) -> Golden:
    return load_golden(request.param)


@pytest.fixture(scope="module")
def model(golden: Golden) -> HierarchicalFlow:
    found = from_published(golden.state_dict, golden.facts["opt"]).eval()
    assert isinstance(found, HierarchicalFlow)
    return found


def images_of(golden: Golden, case: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Image and low-resolution image of a case, as the fixtures define them."""
    hr, quant = golden["hr"].to(dtype), golden.facts["opt"]["quant"]
    if case != "fwd":
        hr = hr + golden["dequant_u"].to(dtype) / quant
    return hr, golden["near/lr" if case == "near" else "lr"].to(dtype)


def assert_same(golden: Golden, key: str, actual: Tensor, dtype: torch.dtype) -> None:
    truth = golden[f"f64/{key}"] if f"f64/{key}" in golden.arrays else golden[key].double()
    error, largest = (actual.double() - truth).abs().max().item(), truth.abs().max().item()
    if dtype == torch.float64:
        assert error <= TOLERANCE[golden.facts["fixture"]] * largest, key
    else:
        published = (golden[key].double() - truth).abs().max().item()
        assert error <= 2 * published + FLOAT32_FLOOR * largest, key


def published_terms(golden: Golden, encoding: sr_models.Encoding, lr: Tensor) -> dict[str, Tensor]:
    """What the published code makes of an image: "y" is no latent, and the noise counts in one channel of three."""
    *latents, last = encoding.latents
    of_latents, shift = invflow.standard_normal_log_prob(latents), 6.0 * lr[0].numel()
    pixels = encoding.dims // 3
    noise = -math.log(golden.facts["opt"]["quant"]) * pixels
    return {
        **{f"eps_{level}": latent for level, latent in enumerate(latents)},
        "y": lr + last * math.exp(-6),
        "lr_from_hr": quantised(lr + last * math.exp(-6)).clamp(0, 1),
        "logdet": encoding.log_det - shift + of_latents + noise,
        "logp_lr": encoding.log_prior - of_latents + shift,
        "nll": -(encoding.log_prob + noise) / (math.log(2) * pixels),
    }


DTYPES_AND_BACKENDS = list(itertools.product((torch.float64, torch.float32), ("reference", "cpu")))


@pytest.mark.parametrize(("dtype", "backend"), DTYPES_AND_BACKENDS)
def test_encode(golden: Golden, model: HierarchicalFlow, dtype: torch.dtype, backend: str) -> None:
    model = model.to(dtype)
    compared = 0
    for case in ("fwd", "deq", "near"):
        hr, lr = images_of(golden, case, dtype)
        with torch.no_grad(), invflow.use_backend(backend):
            encoding = model.encode(hr, lr)
        for name, value in published_terms(golden, encoding, lr).items():
            if f"{case}/{name}" in golden.arrays:
                assert_same(golden, f"{case}/{name}", value, dtype)
                compared += 1
    assert compared == 2 * (5 + golden.facts["n_eps"]) + 3


@pytest.mark.parametrize(("dtype", "backend"), DTYPES_AND_BACKENDS)
def test_decode(golden: Golden, model: HierarchicalFlow, dtype: torch.dtype, backend: str) -> None:
    model = model.to(dtype)
    given = [golden[f"rev/eps_{level}"].to(dtype) for level in range(golden.facts["n_eps"])]
    cases = {"rev/sr": (given, "rev/lr"), "rev/sr_heat0": ([0 * latent for latent in given], "rev/lr")}
    if "sample/sr" in golden.arrays:
        drawn = [golden[f"sample/eps_{level}"].to(dtype) for level in range(golden.facts["n_eps"])]
        cases["sample/sr"] = drawn, "lr"
    for key, (latents, lr) in cases.items():
        image = golden[lr].to(dtype)
        with torch.no_grad(), invflow.use_backend(backend):
            assert_same(golden, key, model.decode([*latents, torch.zeros_like(image)], image), dtype)


def test_every_layer(golden: Golden, model: HierarchicalFlow) -> None:
    """Running log-determinants, states and features, from layer to layer."""
    model = model.double()
    hr, _ = images_of(golden, "fwd", torch.float64)
    total = torch.full((len(hr),), -math.log(golden.facts["opt"]["quant"]) * hr[0, 0].numel(), dtype=torch.float64)
    leaving, states, x, position = [], [], hr, 0

    def compare(key: str, number: int, state: Tensor) -> None:
        for name, value in (
            ("logdet", total),
            ("z_mean", state.mean((1, 2, 3))),
            ("z_absmean", state.abs().mean((1, 2, 3))),
            ("z_corner", state[:, :6, 0, 0]),
        ):
            expected = golden[f"f64/{key}_{name}"][number][..., : value.shape[-1]]
            torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-10, msg=f"{key}_{name} {number}")

    with torch.no_grad():
        for level in model.levels:
            for layer in level:
                x, log_det = layer(x)
                total = total + log_det
                if isinstance(x, list):
                    rest, x = x
                    leaving.append(rest)
                    states.append(x)
                compare("fwd/trace", position, x)
                position += 1
        deeper: list[Tensor] = []
        for number in reversed(range(len(states))):
            part, a = model.conditional[number], leaving[number]
            features = part.features(states[number], deeper)
            key = f"cond/level{number}"
            assert_same(golden, f"{key}/chmean", features.mean((0, 2, 3)), torch.float64)
            height, width = features.shape[2:]
            pixel = features[0, :, min(1, height - 1), min(2, width - 1)]
            assert_same(golden, f"{key}/pix", pixel, torch.float64)
            for index, layer in enumerate(part.flow[:-1]):
                a, log_det = layer(a, features)
                total = total + log_det
                compare(f"fwd/trace_cond{number}", index, a)
            latent, log_det = part.flow[-1](a, features)
            if f"fwd/mean_{number}" in golden.arrays:
                h = part.flow[-1].raw_output(features)
                assert_same(golden, f"fwd/mean_{number}", h[:, 0::2], torch.float64)
                assert_same(golden, f"fwd/logs_{number}", h[:, 1::2], torch.float64)
            log_prior = invflow.standard_normal_log_prob([latent]) + log_det
            assert_same(golden, f"fwd/logp_{number}", log_prior, torch.float64)
            total = total + log_prior
            deeper.insert(0, features)
    assert position == golden.facts["n_layers"]


#: Backend, dtype and memory of every run whose gradients are compared.
RUNS = {
    "exact": ("reference", torch.float64, "store"),
    "exact, inverted": ("cpu", torch.float64, "invert"),
    "plain": ("reference", torch.float32, "store"),
    "cpu": ("cpu", torch.float32, "store"),
    "cpu, inverted": ("cpu", torch.float32, "invert"),
}


def gradients(golden: Golden, model: HierarchicalFlow, run: str, loss: str) -> dict[str, Tensor]:
    """Gradients in float64, by published name: of the mean bits per pixel, or of the image decoded from zeros."""
    backend, dtype, memory = RUNS[run]
    model = model.to(dtype)
    model.zero_grad()
    for flow in model.flows():
        flow.memory = memory
    with invflow.use_backend(backend):
        if loss == "grad":
            hr, lr = images_of(golden, "near", dtype)
            value = published_terms(golden, model.encode(hr, lr), lr)["nll"].mean()
        else:
            hr, lr = golden["hr"].to(dtype), golden["rev/lr"].to(dtype)
            shapes = model.latent_shapes(*lr.shape[2:])
            image = model.decode([lr.new_zeros(len(lr), *shape) for shape in shapes], lr)
            value = (image.clamp(0, 1) - hr).abs().mean()
        value.backward()
    if dtype == torch.float64:
        expected = golden["grad/mean_nll" if loss == "grad" else "grad_pixel/loss"]
        torch.testing.assert_close(value, expected, rtol=TOLERANCE[golden.facts["fixture"]], atol=0)
    names = {own: name for name, (own, _) in published_layout(model).items()}
    found = {names[name]: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for flow in model.flows():
        flow.memory = "store"
    return found


def assert_gradients(golden: Golden, found: dict[str, Tensor], loss: str) -> None:
    tolerance = TOLERANCE[golden.facts["fixture"]]
    assert set(found) == set(golden.facts["param_names"])
    for name, norm, total in zip(golden.facts["param_names"], golden[f"{loss}/l2"], golden[f"{loss}/sum"], strict=True):
        torch.testing.assert_close(found[name].norm(), norm, rtol=tolerance, atol=1e-12, msg=name)
        difference = abs(found[name].sum() - total)
        assert difference <= tolerance * math.sqrt(found[name].numel()) * norm + 1e-12, name


def test_gradients(golden: Golden, model: HierarchicalFlow) -> None:
    """Float64 gives the published ones; float32 errs at most twice as much as plain PyTorch, between equal kinks."""
    with pre_activations() as exact_inputs:
        exact = gradients(golden, model, "exact", "grad")
    for found in (exact, gradients(golden, model, "exact, inverted", "grad")):
        assert_gradients(golden, found, "grad")
    with pre_activations(exact_inputs):
        plain = gradients(golden, model, "plain", "grad")
    kinds: dict[str, list[str]] = {}
    for name in exact:
        kinds.setdefault(re.sub(r"\d+", "n", name), []).append(name)
    for run in ("cpu", "cpu, inverted"):
        with pre_activations(exact_inputs):
            found = gradients(golden, model, run, "grad")
        for kind, members in kinds.items():
            error, plain_error = (
                sum((grads[name] - exact[name]).norm().item() for name in members) for grads in (found, plain)
            )
            floor = FLOAT32_FLOOR * sum(exact[name].norm().item() for name in members)
            assert error <= 2 * plain_error + floor, (run, kind)


def test_gradients_of_decoding(golden: Golden, model: HierarchicalFlow) -> None:
    """Through the inverses of all layers."""
    assert_gradients(golden, gradients(golden, model, "exact", "grad_pixel"), "grad_pixel")


@pytest.mark.parametrize("golden", SMALL, indirect=True)
def test_data_dependent_initialisation(golden: Golden) -> None:
    weights = golden.state_dict
    for name in golden.facts["ddinit_keys"]:
        weights[name] = torch.zeros_like(weights[name])
    model = from_published(weights, golden.facts["opt"]).double().train()
    assert not any(bool(part.initialized) for part in model.modules() if isinstance(part, ActNorm))
    hr, lr = images_of(golden, "deq", torch.float64)
    with torch.no_grad():
        encoding = model.encode(hr, lr)
    assert_same(golden, "ddinit/nll", published_terms(golden, encoding, lr)["nll"], torch.float64)
    found = to_published(model, model.state_dict())
    for name in golden.facts["ddinit_keys"]:
        expected = golden[f"f64/ddinit/sd/{name}"]
        largest = expected.abs().max().item()
        torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-10 * max(largest, 1e-3), msg=name)
