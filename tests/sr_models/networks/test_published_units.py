"""Single layers against the published implementations, whose results are stored as fixtures in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch
from golden import Golden, assert_agree, load_golden
from torch import Tensor, nn
from torch.nn import functional as F

import invflow
from invflow import ActNorm, AffineCoupling, AffineInjector, FlowStep, InvertibleConv1x1, Split, Squeeze, ZeroConv2d
from sr_models.checkpoints.published import published_name, published_part
from sr_models.models.assembly import NetClass, conditional_coupling, conditional_injector, conditional_step
from sr_models.models.ncsr import NoiseConditionalStep
from sr_models.networks.coupling import ConvActNorm, DeepConvNet, ResidualNet, ResidualUnitNet, ShallowNet
from sr_models.networks.rrdb import RRDB, RRDBEncoder
from sr_models.registry import get_plugin

CONTEXT = 320
RUNS = {
    "exact": ("reference", torch.float64),
    "plain": ("reference", torch.float32),
    "cpu": ("cpu", torch.float32),
}


def load(module: nn.Module, weights: dict[str, Tensor], rename: Callable[[str], str]) -> None:
    """Load published weights; ``rename`` maps our names to the published ones, and all of them must be used."""
    own = {name: tensor for name, tensor in module.state_dict().items() if not name.endswith("initialized")}
    assert {rename(name) for name in own} == set(weights)
    module.load_state_dict({name: weights[rename(name)].reshape(own[name].shape) for name in own}, strict=False)
    module.eval()


def simple(name: str) -> str:
    """For layers that are named like the published ones but for their scales."""
    return name.replace("log_scale", "logs")


def step_name(name: str) -> str:
    """For parts of a flow step."""
    return published_part(name, get_plugin("ncsr").published.names)


def compare(
    golden: Golden, module: nn.Module, call: Callable[[torch.dtype], dict[str, Tensor]], log_det: float = 1.0
) -> None:
    """Compare what ``call(dtype)`` returns, by key of the fixture, in every run; ``log_det`` is the size of the terms
    of log-determinants."""
    found: dict[str, dict[str, Tensor]] = {}
    for run, (backend, dtype) in RUNS.items():
        module.to(dtype)
        with torch.no_grad(), invflow.use_backend(backend):
            for key, result in call(dtype).items():
                found.setdefault(key, {})[run] = result
    for key, results in found.items():
        assert_agree(golden[key], results, key, log_det if "logdet" in key else 1.0)


@pytest.fixture(scope="module")
def srflow() -> Golden:
    return load_golden("units_srflow")


@pytest.mark.parametrize(("key", "factor"), [("squeeze", 2), ("squeeze4", 4)])
def test_squeeze(srflow: Golden, key: str, factor: int) -> None:
    squeeze = Squeeze(factor)
    assert torch.equal(squeeze(srflow[f"{key}/in"])[0], srflow[f"{key}/out"])
    assert torch.equal(squeeze.inverse(srflow[f"{key}/out"])[0], srflow[f"{key}/in"])


def test_actnorm(srflow: Golden) -> None:
    layer = ActNorm(12)
    load(layer, srflow.section("actnorm/sd/"), simple)

    def call(dtype: torch.dtype) -> dict[str, Tensor]:
        y, log_det = layer(srflow["actnorm/x"].to(dtype))
        return {"actnorm/y": y, "actnorm/logdet": srflow["actnorm/logdet_in"].to(dtype) + log_det}

    compare(srflow, layer, call)


def test_initialisation_of_actnorm(srflow: Golden) -> None:
    def call(dtype: torch.dtype) -> dict[str, Tensor]:
        layer = ActNorm(12).to(dtype)
        y, log_det = layer(srflow["actnorm_init/x"].to(dtype))
        return {
            "actnorm_init/y": y,
            "actnorm_init/logdet": srflow["actnorm_init/logdet_in"].to(dtype) + log_det,
            "actnorm_init/bias": layer.bias[None, :, None, None],
            "actnorm_init/logs": layer.log_scale[None, :, None, None],
        }

    compare(srflow, ActNorm(12), call)


def test_invertible_convolution(srflow: Golden) -> None:
    layer = InvertibleConv1x1(12)
    load(layer, srflow.section("invconv/sd/"), simple)

    def call(dtype: torch.dtype) -> dict[str, Tensor]:
        x, before = srflow["invconv/x"].to(dtype), srflow["invconv/logdet_in"].to(dtype)
        y, log_det = layer(x)
        # the published reverse pass starts from the same input
        back, back_log_det = layer.inverse(x)
        return {
            "invconv/y": y,
            "invconv/logdet": before + log_det,
            "invconv/rev_y": back,
            "invconv/rev_logdet": before + back_log_det,
        }

    # the published code factorises in float32, and the logarithms of the pivots cancel at each of 35 pixels
    terms = 35 * torch.linalg.svdvals(layer.weight.detach().double()).log().abs().sum().item()
    compare(srflow, layer, call, log_det=terms)


@pytest.mark.parametrize(("key", "layer"), [("conv_actnorm", ConvActNorm(12, 6, 3)), ("conv_zeros", ZeroConv2d(12, 6))])
def test_convolutions(srflow: Golden, key: str, layer: nn.Module) -> None:
    load(layer, srflow.section(f"{key}/sd/"), simple)
    compare(srflow, layer, lambda dtype: {f"{key}/y": layer(srflow[f"{key}/x"].to(dtype))})


def test_gaussian(srflow: Golden) -> None:
    def call(dtype: torch.dtype) -> dict[str, Tensor]:
        x, mean, log_scale = (srflow[f"gauss/{name}"].to(dtype) for name in ("x", "mean", "logs"))
        # mean and log-scale are the even and odd channels of the network's output
        h = torch.stack([mean, log_scale], 2).flatten(1, 2)
        epsilon, log_det = invflow.gaussian_split(x, h)
        return {
            "gauss/logp": invflow.standard_normal_log_prob([epsilon]) + log_det,
            "gauss/logp_std": invflow.standard_normal_log_prob([x]),
        }

    compare(srflow, nn.Identity(), call)


def test_split(srflow: Golden) -> None:
    layer = Split(12)
    load(layer, srflow.section("split2d/sd/"), lambda name: simple(name.replace("net.", "conv.")))

    def call(dtype: torch.dtype) -> dict[str, Tensor]:
        before = srflow["split2d/logdet_in"].to(dtype)
        (epsilon, kept), log_det = layer(srflow["split2d/x"].to(dtype))
        back, back_log_det = layer.inverse([epsilon, kept])
        # published sums contain the prior of the latent
        log_prior = invflow.standard_normal_log_prob([epsilon])
        return {
            "split2d/eps": epsilon,
            "split2d/z1": kept,
            "split2d/logdet": before + log_det + log_prior,
            "split2d/rev": back,
            "split2d/rev_logdet": before + back_log_det - log_prior,
        }

    compare(srflow, layer, call)


def test_rrdb(srflow: Golden) -> None:
    block = RRDB(16, 8)
    load(block, srflow.section("rrdb/sd/"), lambda name: encoder_name(f"trunk.0.{name}").removeprefix("RRDB_trunk.0."))
    compare(srflow, block, lambda dtype: {"rrdb/y": block(srflow["rrdb/x"].to(dtype))})


def encoder_name(name: str) -> str:
    return published_name(f"encoder.{name}").removeprefix("RRDB.")


@pytest.mark.parametrize("scale", [4, 8])
def test_encoder(srflow: Golden, scale: int) -> None:
    key = f"rrdbnet{scale}"
    encoder = RRDBEncoder(scale, features=16, growth=8, blocks=2, stacked_blocks=(0, 1))
    load(encoder, srflow.section(f"{key}/sd/"), encoder_name)

    def call(dtype: torch.dtype) -> dict[str, Tensor]:
        lr = srflow[f"{key}/x"].to(dtype)
        names = {0.5: "fea_up0", 1: "fea_up1", 2: "fea_up2", 4: "fea_up4", 8: "fea_up8"}
        maps = encoder(lr, [factor for factor in names if factor <= scale])
        found = {f"{key}/out/{names[factor]}": features[:, :16] for factor, features in maps.items()}
        found |= {f"{key}/out/block_{index}": maps[1][:, 16 * (index + 1) :][:, :16] for index in (0, 1)}
        return {name: tensor for name, tensor in found.items() if name in srflow.arrays} | {
            f"{key}/out/out": encoder.image(lr)
        }

    assert len(call(torch.float32)) == {4: 7, 8: 8}[scale]
    compare(srflow, encoder, call)


def compare_layers(golden: Golden, key: str, layers: Iterable[nn.Module], context: Tensor, *, inverse: bool) -> None:
    """Compare a chain of layers with the published layer that does all of them."""
    chain = nn.ModuleList(layers)

    def call(dtype: torch.dtype) -> dict[str, Tensor]:
        x, total = golden[f"{key}/x"].to(dtype), golden[f"{key}/logdet_in"].to(dtype)
        for layer in chain:
            x, log_det = layer(x, context.to(dtype))
            total = total + log_det
        found = {f"{key}/y": x, f"{key}/logdet": total}
        if inverse:
            for layer in reversed(chain):
                x, log_det = layer.inverse(x, context.to(dtype))
                total = total + log_det
            found |= {f"{key}/rev": x, f"{key}/rev_logdet": total}
        return found

    size = (golden[f"{key}/logdet"] - golden[f"{key}/logdet_in"]).abs().max().item()
    compare(golden, chain, call, log_det=size)


COUPLINGS: dict[str, tuple[str, str, NetClass]] = {
    "srflow": ("units_srflow", "coupling", ShallowNet),
    "srflow-da": ("units_srflowda", "coupling_SRFlow-DA", DeepConvNet),
    "srflow-da-r": ("units_srflowda", "coupling_SRFlow-DA-R", ResidualNet),
    "srflow-da-d": ("units_srflowda", "coupling_SRFlow-DA-D", ResidualUnitNet),
    "ncsr without noise": ("units_ncsr", "coupling_nostd", ShallowNet),
}


@pytest.mark.parametrize(("fixture", "key", "net"), COUPLINGS.values(), ids=COUPLINGS)
def test_injector_and_coupling(fixture: str, key: str, net: NetClass) -> None:
    golden = load_golden(fixture)
    sizes = (12, CONTEXT, golden.facts["hidden"], net)
    layers = nn.ModuleDict({"injector": conditional_injector(*sizes), "coupling": conditional_coupling(*sizes)})
    weights = {name: w for name, w in golden.section(f"{key}/sd/").items() if not name.startswith("fAffine_std.")}
    load(layers, weights, lambda name: step_name(name).removeprefix("affine."))
    assert isinstance(layers["injector"], AffineInjector)
    assert isinstance(layers["coupling"], AffineCoupling)
    compare_layers(golden, key, layers.values(), golden["ft"], inverse=True)


def test_flow_step(srflow: Golden) -> None:
    step = conditional_step(12, CONTEXT, srflow.facts["hidden"], ShallowNet)
    load(step, srflow.section("flowstep/sd/"), step_name)
    compare_layers(srflow, "flowstep", [step], srflow["ft"], inverse=False)


@pytest.mark.parametrize(("case", "channels"), [("noise", 3), ("std0", 3), ("stdch1", 1)])
def test_noise_conditional_step(case: str, channels: int) -> None:
    golden = load_golden("units_ncsr")
    sizes = (12, CONTEXT, golden.facts["hidden"], ShallowNet)
    step = NoiseConditionalStep(
        FlowStep(12, injector=conditional_injector(*sizes)),
        conditional_coupling(12, channels, golden.facts["hidden"], ShallowNet),
        conditional_coupling(*sizes),
    )
    # the published layer has neither actnorm nor convolution
    nn.init.eye_(step.step.conv1x1.weight)
    weights = {f"affine.{name}": weight for name, weight in golden.section(f"coupling_{case}/sd/").items()}
    weights |= {"actnorm.bias": torch.zeros(12), "actnorm.logs": torch.zeros(12), "invconv.weight": torch.eye(12)}
    load(step, weights, step_name)
    features, std = golden["ft"], golden[f"coupling_{case}/std"]
    if std.shape[2:] == (1, 1):
        noise = std.expand(-1, channels, *features.shape[2:])
    else:
        noise = F.interpolate(std, size=features.shape[2:], mode="bicubic")
    compare_layers(golden, f"coupling_{case}", [step], torch.cat([features, noise], 1), inverse=True)


@pytest.mark.parametrize("scale", [4, 8])
def test_reduction_of_noise(scale: int) -> None:
    from sr_models.io.resize import imresize

    golden = load_golden("units_ncsr")
    noise = np.moveaxis(golden.arrays["lr_noise/eps"], 0, -1)
    reduced = torch.from_numpy(np.moveaxis(imresize(noise, 1 / scale), -1, 0))
    torch.testing.assert_close(reduced.float(), golden[f"lr_noise/x{scale}"], rtol=0, atol=1e-7)
