"""SRFlow-DA against the published implementation, whose results are stored as fixtures."""

from __future__ import annotations

import math

import pytest
import torch
from golden import Golden, load_golden
from torch import Tensor

import invflow
import sr_models
from invflow import ActNorm, AffineCoupling, AffineForm, AffineInjector
from sr_models.coupling_nets import DeepConvNet
from sr_models.published import from_published, load_published, published_name
from sr_models.training import NOISE_STD

# Relative to the largest value: rounding, and nothing else.
FLOAT64_TOLERANCE = 1e-10
# Our float32 error against the published float64 result may be twice that of the published float32 run, plus a few ulp
# of the largest value, since the order of additions differs.
FLOAT32_FLOOR = 16 * torch.finfo(torch.float32).eps


@pytest.fixture(scope="module", params=["srflowda_4", "srflowda_4_full"])
def golden(request: pytest.FixtureRequest) -> Golden:
    return load_golden(request.param)


@pytest.fixture(scope="module")
def model(golden: Golden) -> sr_models.SuperResolutionFlow:
    growth = golden.facts["net_overrides"].get("gc", 32)
    return from_published(golden.state_dict, golden.facts["opt"], growth=growth).eval()


def assert_same(golden: Golden, key: str, actual: Tensor, dtype: torch.dtype) -> None:
    truth = golden[f"f64/{key}"] if f"f64/{key}" in golden.arrays else golden[key].double()
    error = (actual.double() - truth).abs().max().item()
    if dtype == torch.float64:
        assert error <= FLOAT64_TOLERANCE * truth.abs().max().item(), key
    else:
        published = (golden[key].double() - truth).abs().max().item()
        assert error <= 2 * published + FLOAT32_FLOOR * truth.abs().max().item(), key


def published_logdet(encoding: sr_models.Encoding) -> Tensor:
    """The published "logdet" contains the priors of all latents but the last."""
    return encoding.log_det + invflow.standard_normal_log_prob(encoding.latents[:-1])


def published_nll(encoding: sr_models.Encoding) -> Tensor:
    """Bits per pixel, of three dimensions each."""
    return 3 * encoding.bits_per_dim


@pytest.mark.parametrize(
    ("dtype", "backend"), [(torch.float64, "reference"), (torch.float32, "reference"), (torch.float32, "cpu")]
)
class TestNetwork:
    @pytest.mark.parametrize("case", ["fwd", "deq"])
    def test_encode(
        self, golden: Golden, model: sr_models.SuperResolutionFlow, case: str, dtype: torch.dtype, backend: str
    ) -> None:
        model = model.to(dtype)
        hr = golden["hr"].to(dtype)
        if case == "deq":
            hr = hr + NOISE_STD * golden["dequant_n"].to(dtype)
        with torch.no_grad(), invflow.use_backend(backend):
            encoding = model.encode(hr, golden["lr"].to(dtype))
        for index, latent in enumerate(encoding.latents):
            assert_same(golden, f"{case}/eps_{index}", latent, dtype)
        assert_same(golden, f"{case}/nll", published_nll(encoding), dtype)
        assert_same(golden, f"{case}/logdet", published_logdet(encoding), dtype)

    def test_decode(
        self, golden: Golden, model: sr_models.SuperResolutionFlow, dtype: torch.dtype, backend: str
    ) -> None:
        model = model.to(dtype)
        latents = [golden[f"rev/eps_{index}"].to(dtype) for index in range(2)]
        with torch.no_grad(), invflow.use_backend(backend):
            sr = model.decode(latents, golden["lr"].to(dtype))
        assert_same(golden, "rev/sr", sr, dtype)

    def test_every_layer(
        self, golden: Golden, model: sr_models.SuperResolutionFlow, dtype: torch.dtype, backend: str
    ) -> None:
        model = model.to(dtype)
        logdets = golden.expected("fwd/trace_logdet", dtype)
        total = torch.zeros(logdets.shape[1], dtype=dtype)
        state, position = golden["hr"].to(dtype), 0
        with torch.no_grad(), invflow.use_backend(backend):
            for level, context in zip(model.levels, model.contexts(golden["lr"].to(dtype)), strict=True):
                for layer in level:
                    state, log_det = layer(state, context)
                    total = total + log_det
                    if isinstance(state, list):
                        total = total + invflow.standard_normal_log_prob(state[0])
                        state = state[-1]
                    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
                    torch.testing.assert_close(
                        total, logdets[position].to(dtype), rtol=tolerance, atol=tolerance * 100, msg=str(position)
                    )
                    position += 1
        assert position == len(logdets)


def test_features(golden: Golden, model: sr_models.SuperResolutionFlow) -> None:
    model = model.float()
    with torch.no_grad():
        maps = model.encoder(golden["lr"], (1, 2))
        image = model.encoder.image(golden["lr"])
    pairs = [(image, golden["rrdb/out"])]
    for factor, feature in maps.items():
        pairs.append((feature.double().mean((0, 2, 3)), golden[f"rrdb/fea_up{factor}/chmean"]))
        pairs.append((feature[0, :, 1, 2], golden[f"rrdb/fea_up{factor}/pix"]))
    for actual, expected in pairs:
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_gradients(golden: Golden, model: sr_models.SuperResolutionFlow, backend: str) -> None:
    dtype = torch.float64 if backend == "reference" else torch.float32
    model = model.to(dtype)
    model.zero_grad()
    with invflow.use_backend(backend):
        loss = published_nll(model.encode(golden["hr"].to(dtype), golden["lr"].to(dtype))).mean()
        loss.backward()
    by_name = {published_name(model, name): parameter for name, parameter in model.named_parameters()}
    tolerance = 1e-10 if dtype == torch.float64 else 2e-4
    torch.testing.assert_close(loss.double(), golden["grad/mean_nll"], rtol=tolerance, atol=0)
    norms, sums = golden["grad/l2"], golden["grad/sum"]
    unused = set(golden.facts["params_without_grad"])
    for name, norm, total in zip(golden.facts["param_names"], norms, sums, strict=True):
        if name.startswith("flowUpsamplerNet.f."):
            continue
        gradient = by_name[name].grad
        if name in unused:
            assert gradient is None
            continue
        assert gradient is not None, name
        torch.testing.assert_close(gradient.double().norm(), norm, rtol=tolerance, atol=1e-12, msg=name)
        assert abs(gradient.double().sum() - total) <= tolerance * math.sqrt(gradient.numel()) * norm, name
    model.zero_grad()


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_data_dependent_initialisation(backend: str) -> None:
    golden = load_golden("srflowda_4")
    dtype = torch.float64 if backend == "reference" else torch.float32
    zeroed = {
        name: torch.zeros_like(tensor) if ".actnorm." in name else tensor for name, tensor in golden.state_dict.items()
    }
    model = from_published(zeroed, golden.facts["opt"], growth=8).to(dtype).train()
    with torch.no_grad(), invflow.use_backend(backend):
        first = model.encode(golden["hr"].to(dtype), golden["lr"].to(dtype))
        second = model.eval().encode(golden["hr"].to(dtype), golden["lr"].to(dtype))
    parameters = {published_name(model, name): parameter for name, parameter in model.state_dict().items()}
    expected = golden.section("ddinit/sd/")
    assert len(expected) == 2 * sum(isinstance(module, ActNorm) for module in model.modules())
    for name, tensor in expected.items():
        torch.testing.assert_close(parameters[name].double(), tensor.flatten().double(), rtol=1e-4, atol=1e-5, msg=name)
    for actual, key in ((published_nll(first), "nll"), (published_nll(second), "nll_second_pass")):
        torch.testing.assert_close(actual.double(), golden[f"ddinit/{key}"].double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_conditional_coupling_unit(backend: str) -> None:
    golden = load_golden("units_srflowda")
    weights = golden.section("coupling_SRFlow-DA/sd/")
    hidden = golden.facts["hidden"]
    injector = AffineInjector(12, DeepConvNet(320, hidden, 24), context_channels=320)
    coupling = AffineCoupling(12, DeepConvNet(326, hidden, 12), context_channels=320)
    for net, prefix in ((injector.net, "fFeatures."), (coupling.net, "fAffine.")):
        own = {
            name: weights[prefix + name.removeprefix("layers.").replace("log_scale", "logs")].reshape(tensor.shape)
            for name, tensor in net.state_dict().items()
        }
        net.load_state_dict(own)
    x, context = golden["coupling_SRFlow-DA/x"], golden["ft"]
    with torch.no_grad(), invflow.use_backend(backend):
        z, injector_log_det = injector(x, context)
        y, coupling_log_det = coupling(z, context)
        back, _ = injector.inverse(coupling.inverse(y, context)[0], context)
    torch.testing.assert_close(y, golden["coupling_SRFlow-DA/y"], rtol=1e-5, atol=1e-5)
    log_det = golden["coupling_SRFlow-DA/logdet_in"] + injector_log_det + coupling_log_det
    torch.testing.assert_close(log_det, golden["coupling_SRFlow-DA/logdet"], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(back, x, rtol=1e-5, atol=1e-5)
    assert coupling.form == AffineForm()


def test_parameter_counts_are_the_published_ones() -> None:
    model = sr_models.create("srflow-da", scale=4)
    unused = 96 * 320 * 9 + 96  # the convolution that the published files carry and never evaluate
    flow = sum(parameter.numel() for parameter in model.levels.parameters())
    encoder = sum(parameter.numel() for parameter in model.encoder.parameters())
    assert encoder == 16_697_987
    assert flow + unused == 8_690_640
    assert encoder + flow + unused == 25_388_627


class TestErrors:
    def test_missing_unexpected_and_misshapen_tensors_are_named(self) -> None:
        golden = load_golden("srflowda_4")
        model = from_published(golden.state_dict, golden.facts["opt"], growth=8)
        weights = golden.state_dict
        weights["extra.weight"] = weights.pop("RRDB.conv_first.bias")
        weights["RRDB.HRconv.bias"] = torch.zeros(3)
        with pytest.raises(
            ValueError, match=r"missing RRDB.conv_first.bias; unexpected extra.weight; RRDB.HRconv.bias has"
        ):
            load_published(model, weights)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda o: o.update(model="SRFlow-X"), "model must be one of 'SRFlow-DA', got 'SRFlow-X'"),
            (lambda o: o["network_G"]["flow"].update(L=3), "L must be log2"),
            (lambda o: o["network_G"].pop("nb"), "must have the entry 'nb'"),
        ],
    )
    def test_options(self, change, message: str) -> None:
        golden = load_golden("srflowda_4")
        change(golden.facts["opt"])
        with pytest.raises(ValueError, match=message):
            from_published(golden.state_dict, golden.facts["opt"], growth=8)
