"""Limits of what networks make of states that they have not seen."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sr_models
from invflow import AffineCoupling, AffineForm
from sr_models.checkpoints.published import published_layout
from sr_models.flow.noise import clean_condition
from sr_models.networks.coupling import DeepConvNet, OutputLimit, ResidualNet, ResidualUnitNet, ShallowNet, limited

TINY: dict[str, Any] = {"steps": 2, "hidden_channels": 4, "features": 4, "growth": 2, "blocks": 2, "stacked_blocks": ()}


def test_outputs_within_the_limits_stay_and_others_are_cut_off() -> None:
    h = torch.tensor([[0.5, -1.0, -0.5, 30.0], [9.0, -9.0, -9.0, -3.0]])[:, :, None, None]
    form = AffineForm()
    shift, raw = form.unpack(OutputLimit(4, 4.0, 8.0)(h))
    assert shift.flatten(1).tolist() == [[0.5, -0.5], [8.0, -8.0]]
    assert raw.flatten(1)[0].tolist() == [-1.0, 30.0]
    assert raw[1, 1] == -3.0
    assert float(1 / form.log_scale(raw)[0][1, 0]) == pytest.approx(4.0, rel=1e-6)


@pytest.mark.parametrize("gain", [1.01, 2.5, 500.0])
@pytest.mark.parametrize("net", [DeepConvNet, ResidualNet, ResidualUnitNet, ShallowNet])
def test_no_state_is_amplified_by_more(net: type, gain: float) -> None:
    torch.manual_seed(0)
    network = limited(net, gain, 3.0)(2, 4, 4)
    assert network.state_dict().keys() == net(2, 4, 4).state_dict().keys()
    coupling = AffineCoupling(4, network).eval()
    z = 1e4 * torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        coupling(z)
        for parameter in network.parameters():
            parameter.normal_()
        x = coupling.inverse(z)[0]
        most = gain * z[:, 2:].abs() * (1 + 1e-5) + 3
        assert bool((x[:, 2:].abs() <= most).all())
        assert bool(((x[:, 2:] / z[:, 2:]).abs() > 0.9 * gain).any())  # it is the limit that held
        torch.testing.assert_close(coupling(x)[0], z, rtol=1e-5, atol=0.5)


def _model(name: str = "srflow-da", **fields: Any) -> sr_models.SuperResolutionFlow:
    torch.manual_seed(0)
    noise = {"noise_steps": (1, 1)} if name == "ncsr" else {}
    model = sr_models.create(name, base="image", **TINY, **noise, **fields)
    with torch.no_grad():
        model.encode(torch.rand(2, 3, 32, 32), lr := torch.rand(2, 3, 8, 8), clean_condition(model, lr))
        for name, parameter in model.levels.named_parameters():
            if ".net." in name:
                parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


@pytest.mark.parametrize(("name", "variant"), [("srflow-da", ""), ("srflow-da", "R"), ("ncsr", "R")])
def test_the_folded_copy_has_the_limits(name: str, variant: str) -> None:
    model = _model(name, variant=variant, largest_gain=1.2, largest_shift=0.1).double()
    free = _model(name, variant=variant).double()
    lr = torch.rand(1, 3, 8, 8).double()
    latents = [0.2 * torch.randn(1, *shape).double() for shape in model.latent_shapes(8, 8)]
    noise = clean_condition(model, lr)
    with torch.no_grad():
        found = model.decode(latents, lr, noise)
        torch.testing.assert_close(model.folded().decode(latents, lr, noise), found, rtol=1e-8, atol=1e-8)
        assert not torch.allclose(free.decode(latents, lr, noise), found, atol=0.1)
        torch.testing.assert_close(model.encode(found, lr, noise).latents[0], latents[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"largest_gain": 1.0}, "largest_gain must be 0 or more than 1, and at most 1000, got 1.0"),
        ({"largest_gain": -2.0}, "largest_gain must be 0 or more than 1, and at most 1000, got -2.0"),
        ({"largest_gain": float("nan")}, "largest_gain must be 0 or more than 1, and at most 1000, got nan"),
        ({"largest_shift": 0.0}, "largest_shift must be finite and greater than 0, got 0.0"),
        ({"largest_shift": float("inf")}, "largest_shift must be finite and greater than 0, got inf"),
    ],
)
def test_limits_out_of_range(fields: dict[str, float], message: str) -> None:
    for name, noise in (("srflow-da", {}), ("ncsr", {"noise_steps": (0, 1, 1)})):
        with pytest.raises(ValueError, match=message):
            sr_models.create(name, **TINY, **noise, **fields)


@pytest.mark.parametrize("name", ["srflow-da", "ncsr"])
def test_no_published_implementation_has_limits(name: str) -> None:
    noise = {"noise_steps": (0, 1, 1)} if name == "ncsr" else {}
    published_layout(sr_models.create(name, **TINY, **noise))
    with pytest.raises(ValueError, match=f"the published implementations have no {name} like this one"):
        published_layout(sr_models.create(name, largest_gain=2.0, **TINY, **noise))


def test_no_published_ncsr_has_the_networks_of_srflow_da() -> None:
    model = sr_models.create("ncsr", variant="R", noise_steps=(1, 1), **TINY)
    with pytest.raises(ValueError, match="the published implementations have no ncsr like this one"):
        published_layout(model)
