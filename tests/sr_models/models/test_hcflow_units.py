"""Single parts of HCFlow against the published implementation, whose results are stored as fixtures."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from golden import FLOAT32_FLOOR, Golden, load_golden
from torch import Tensor, nn

import invflow
from invflow import AffineCoupling, ContextPrior, FlowSequential, Squeeze, standard_normal_log_prob
from sr_models.flow.hierarchy import ConditionalFlow, quantised
from sr_models.models.hcflow import hcflow_step
from sr_models.models.hcflow_files import hcflow_name
from sr_models.networks.coupling import ShallowNet
from sr_models.networks.rrdb import RRDB
from sr_models.networks.tapped_rrdb import TappedRRDB
from sr_models.training.config import TrainingConfig

HIDDEN, CONTEXT = 8, 16
RUNS = [(torch.float64, "reference"), (torch.float64, "cpu"), (torch.float32, "reference"), (torch.float32, "cpu")]


@pytest.fixture(scope="module")
def units() -> Golden:
    golden = load_golden("units_hcflow")
    assert (golden.facts["hidden"], golden.facts["cond_channels"]) == (HIDDEN, CONTEXT)
    return golden


def load(module: nn.Module, weights: dict[str, Tensor], rename: Callable[[str], str]) -> None:
    """Load published weights; ``rename`` maps our names to the published ones, and all of them must be used."""
    own = {name: tensor for name, tensor in module.state_dict().items() if not name.endswith("initialized")}
    assert {rename(name) for name in own} == set(weights)
    module.load_state_dict({name: weights[rename(name)].reshape(own[name].shape) for name in own}, strict=False)
    for part in module.modules():
        if isinstance(part, invflow.ActNorm):
            part.mark_initialized()
    module.eval()


def step_name(name: str) -> str:
    return hcflow_name(f"levels.0.layers.0.{name}", [0]).removeprefix("flow.layers.0.")


def conditional_name(name: str) -> str:
    return hcflow_name(f"conditional.0.{name}", []).removeprefix("flow.level0_condFlow.")


def compare(golden: Golden, module: nn.Module, call: Callable[[torch.dtype], dict[str, Tensor]]) -> None:
    """Compare what ``call(dtype)`` returns, by key of the fixture, in every run."""
    for dtype, backend in RUNS:
        module.to(dtype)
        with torch.no_grad(), invflow.use_backend(backend):
            found = call(dtype)
        for key, actual in found.items():
            truth = golden[f"f64/{key}"]
            error, largest = (actual.double() - truth).abs().max().item(), truth.abs().max().item()
            published = (golden[key].double() - truth).abs().max().item()
            bound = 1e-10 * largest if dtype == torch.float64 else 2 * published + FLOAT32_FLOOR * largest
            assert error <= bound, (key, dtype, backend, error, bound)


def compare_layer(golden: Golden, key: str, layer: nn.Module) -> None:
    """Compare a layer and its inverse, with a context if the fixture has one."""

    def call(dtype: torch.dtype) -> dict[str, Tensor]:
        context = golden[f"{key}/u"].to(dtype) if f"{key}/u" in golden.arrays else None
        y, log_det = layer(golden[f"{key}/x"].to(dtype), context)
        back, _ = layer.inverse(y, context)
        return {f"{key}/y": y, f"{key}/logdet": golden[f"{key}/logdet_in"].to(dtype) + log_det, f"{key}/rev": back}

    compare(golden, layer, call)


def test_scale(units: Golden) -> None:
    form = hcflow_step(2, 0, 1).coupling.form
    compare(units, nn.Identity(), lambda dtype: {"logscale/out": form.log_scale(units["logscale/raw"].to(dtype))[1]})


def test_squeeze(units: Golden) -> None:
    assert torch.equal(Squeeze(2)(units["squeeze/in"])[0], units["squeeze/out"])


def test_network(units: Golden) -> None:
    net = ShallowNet(10, HIDDEN, 14)
    load(net, units.section("fcn/sd/"), lambda name: step_name(f"coupling.net.{name}").removeprefix("affine.f."))
    compare(units, net, lambda dtype: {"fcn/y": net(units["fcn/x"].to(dtype))})


@pytest.mark.parametrize(("key", "channels", "context"), [("coupling", 12, 0), ("coupling_odd_cond", 21, CONTEXT)])
def test_coupling(units: Golden, key: str, channels: int, context: int) -> None:
    layer = hcflow_step(channels, context, HIDDEN).coupling
    assert isinstance(layer, AffineCoupling)
    load(layer, units.section(f"{key}/sd/"), lambda name: step_name(f"coupling.{name}").removeprefix("affine."))
    compare_layer(units, key, layer)


@pytest.mark.parametrize(("key", "channels", "context"), [("flowstep", 12, 0), ("flowstep_cond", 45, CONTEXT)])
def test_flow_step(units: Golden, key: str, channels: int, context: int) -> None:
    layer = hcflow_step(channels, context, HIDDEN)
    load(layer, units.section(f"{key}/sd/"), step_name)
    compare_layer(units, key, layer)


def test_rrdb(units: Golden) -> None:
    block = RRDB(8, 4)
    prefix = "RRDB_trunk0.0."
    load(block, units.section("rrdb/sd/"), lambda n: conditional_name(f"features.trunks.0.0.{n}").removeprefix(prefix))
    compare(units, block, lambda dtype: {"rrdb/y": block(units["rrdb/x"].to(dtype))})


@pytest.mark.parametrize(("key", "channels", "kept"), [("condflow_last", 21, 3), ("condflow_above", 6, 22)])
def test_conditional_flow(units: Golden, key: str, channels: int, kept: int) -> None:
    features = TappedRRDB(kept, [], features=8, growth=4, blocks=(1, 1))
    steps = [hcflow_step(channels, CONTEXT, HIDDEN) for _ in range(2)]
    part = ConditionalFlow(features, FlowSequential([*steps, ContextPrior(channels, context_channels=CONTEXT)]))
    load(part, units.section(f"{key}/sd/"), conditional_name)

    def call(dtype: torch.dtype) -> dict[str, Tensor]:
        context = part.features(units[f"{key}/u"].to(dtype))
        latent, log_det = part.flow(units[f"{key}/x"].to(dtype), context)
        h = part.flow[-1].raw_output(context)
        before = units[f"{key}/logdet_in"].to(dtype)
        return {
            f"{key}/feature": context,
            f"{key}/mean": h[:, 0::2],
            f"{key}/logs": h[:, 1::2],
            f"{key}/latent": latent,
            f"{key}/logdet": before + log_det + standard_normal_log_prob([latent]),
            f"{key}/rev": part.flow.inverse(units[f"{key}/eps"].to(dtype), context)[0],
        }

    compare(units, part, call)


def test_quantiser(units: Golden) -> None:
    x = units["quantise/x"].double().requires_grad_()
    y = quantised(x)
    y.backward(units["quantise/grad_out"].double())
    torch.testing.assert_close(y, units["quantise/y"].double(), rtol=0, atol=1e-15)
    assert torch.equal(x.grad, units["quantise/grad_in"].double())


def test_low_resolution_term(units: Golden) -> None:
    """A Gaussian with a standard deviation of e^-6: what the standardised difference has, and its scale."""
    lr, made = units["lr_term/lr"].double(), units["lr_term/fake"].double()
    found = standard_normal_log_prob([(made - lr) * math.exp(6)]) + 6 * lr[0].numel()
    torch.testing.assert_close(found, units["lr_term/logp"].double(), rtol=1e-6, atol=0)


def test_rates(units: Golden) -> None:
    """Milestones of 20, 40 and 50 of 60 steps; the published code halves in the step before."""
    expected = units["sched/milestones_20_40_50"].double()
    config = TrainingConfig(model="hcflow", images=".", steps=60, milestones=[20 / 60, 40 / 60, 50 / 60], lr=1.0)
    rates = torch.tensor([config.learning_rates(step)[1] for step in range(60)]).double()
    torch.testing.assert_close(rates[1:], expected[:-1])
