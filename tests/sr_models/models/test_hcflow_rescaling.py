"""HCFlow's rescaling model against the published implementation, whose results are stored as fixtures."""

from __future__ import annotations

import math

import pytest
import torch
from golden import FLOAT32_FLOOR, Golden, load_golden
from torch import Tensor

import invflow
import sr_models
from sr_models.checkpoints.published import from_published, published_layout, to_own, to_published
from sr_models.flow.hierarchy import HierarchicalFlow, quantised

RUNS = [(torch.float64, "reference"), (torch.float64, "cpu"), (torch.float32, "reference"), (torch.float32, "cpu")]


@pytest.fixture(scope="module")
def golden() -> Golden:
    return load_golden("hcflow_rescaling_4")


@pytest.fixture(scope="module")
def model(golden: Golden) -> HierarchicalFlow:
    found = from_published(golden.state_dict, golden.facts["opt"]).eval()
    assert isinstance(found, HierarchicalFlow)
    return found


def assert_same(golden: Golden, key: str, actual: Tensor, dtype: torch.dtype) -> None:
    truth = golden[f"f64/{key}"]
    error, largest = (actual.double() - truth).abs().max().item(), truth.abs().max().item()
    published = (golden[key].double() - truth).abs().max().item()
    assert error <= (1e-10 * largest if dtype == torch.float64 else 2 * published + FLOAT32_FLOOR * largest), key


@pytest.mark.parametrize(("dtype", "backend"), RUNS)
def test_reduction_latents_and_restoration(
    golden: Golden, model: HierarchicalFlow, dtype: torch.dtype, backend: str
) -> None:
    model = model.to(dtype)
    hr, lr = golden["hr"].to(dtype), golden["lr"].to(dtype)
    with torch.no_grad(), invflow.use_backend(backend):
        y = model.reduce(hr)
        latents = model.encode(hr, lr).latents
        assert_same(golden, "fwd/y", y, dtype)
        for level in (0, 1):
            assert_same(golden, f"fwd/eps_{level}", latents[level], dtype)
        given = [golden[f"rev/eps_{level}"].to(dtype) for level in (0, 1)]
        for key, heat in (("sr", 1), ("sr_heat0", 0)):
            image = model.decode([*(heat * z for z in given), torch.zeros_like(lr)], lr)
            assert_same(golden, f"rev/{key}", image, dtype)


def test_gradients(golden: Golden, model: HierarchicalFlow) -> None:
    """Of the published sum of three losses, both directions together."""
    model = model.double()
    model.zero_grad()
    hr, lr = golden["hr"].double(), golden["lr"].double()
    y, latents = model.reduce(hr), model.encode(hr, lr).latents
    reduced = quantised(y.clamp(0, 1))
    given = [golden[f"rev/eps_{level}"].double() for level in (0, 1)]
    image = model.decode([*given, torch.zeros_like(lr)], reduced).clamp(0, 1)
    squares = torch.cat([z.flatten() for z in latents[:-1]]).square().mean()
    losses = {
        "lr": 0.05 * (y.clamp(0, 1) - lr).square().mean(),
        "z": 1e-5 * squares,
        "hr": (image - hr).abs().mean(),
    }
    sum(losses.values()).backward()
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(golden[f"grad/loss_{name}"].item(), rel=1e-10)
    names = {own: name for name, (own, _) in published_layout(model).items() if own is not None}
    found = {names[name]: parameter.grad for name, parameter in model.named_parameters()}
    listed = [name for name in golden.facts["param_names"] if not name.endswith("haar_weights")]
    assert set(found) == set(listed)
    for name, norm, total in zip(listed, golden["grad/l2"], golden["grad/sum"], strict=True):
        torch.testing.assert_close(found[name].norm(), norm, rtol=1e-10, atol=1e-12, msg=name)
        assert abs(found[name].sum() - total) <= 1e-10 * math.sqrt(found[name].numel()) * norm + 1e-12, name
    model.zero_grad()


def test_files_hold_the_wavelet(golden: Golden, model: HierarchicalFlow) -> None:
    """It is no parameter here, comes back as it was, is made where there was no file, and must be that of Haar."""
    state_dict = golden.state_dict
    own = to_own(model, state_dict)
    for tensors in (own, model.float().state_dict()):
        back = to_published(model, tensors)
        assert list(back) == list(state_dict)
        assert all(torch.equal(back[name], tensor) for name, tensor in state_dict.items())
    name = "flow.layers.0.haar_weights"
    with pytest.raises(ValueError, match=f"{name} must hold what this model computes with, got other numbers"):
        to_own(model, {**state_dict, name: -state_dict[name]})


def test_parameters() -> None:
    with torch.device("meta"):
        model = sr_models.create("hcflow-rescaling")
        wavelets = sum(math.prod(shape) for own, shape in published_layout(model).values() if own is None)
    assert sum(parameter.numel() for parameter in model.parameters()) + wavelets == 4_396_350
