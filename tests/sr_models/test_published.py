"""SRFlow-DA against the published implementation, whose results are stored as fixtures."""

from __future__ import annotations

import math

import pytest
import torch
from golden import Golden, available, load_golden
from torch import Tensor

import invflow
import sr_models
from invflow import ActNorm
from sr_models.published import from_published, load_published, published_name
from sr_models.training import NOISE_STD

QUANT = 32
# Relative to the largest value: rounding, and nothing else.
FLOAT64_TOLERANCE = 1e-10
# Our float32 error against the published float64 result may be twice that of the published float32 run, plus a few ulp
# of the largest value, since the order of additions differs.
FLOAT32_FLOOR = 16 * torch.finfo(torch.float32).eps


NETWORKS = available(
    *(
        f"{name}{size}"
        for name in ("srflow_4", "srflow_8", "srflowda_4", "srflowda_8", "ncsr_4", "ncsr_8")
        for size in ("", "_full")
    ),
    *("srflowda_r_4", "srflowda_d_4", "srflowda_s_4"),
)


@pytest.fixture(scope="module", params=NETWORKS)
def golden(request: pytest.FixtureRequest) -> Golden:
    return load_golden(request.param)


def model_of(golden: Golden, state_dict: dict[str, Tensor] | None = None) -> sr_models.SuperResolutionFlow:
    growth = golden.facts["net_overrides"].get("gc", 32)
    return from_published(state_dict or golden.state_dict, golden.facts["opt"], growth=growth).eval()


@pytest.fixture(scope="module")
def model(golden: Golden) -> sr_models.SuperResolutionFlow:
    return model_of(golden)


def inputs_of(golden: Golden, case: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None]:
    """Image, low-resolution image and noise of a case, as the fixtures define them."""
    hr, lr = golden["hr"].to(dtype), golden["lr"].to(dtype)
    if case == "deq":
        if "dequant_n" in golden.arrays:
            return hr + NOISE_STD * golden["dequant_n"].to(dtype), lr, None
        return hr + (golden["dequant_u"].to(dtype) - 0.5) / QUANT, lr, None
    if case == "train":
        noise = golden["noise_eps"].to(dtype)
        return hr + noise, lr + golden["noise_lr"].to(dtype), noise
    if case == "std0":
        return hr, lr, hr.new_zeros(len(hr), 1, 1, 1)
    return hr, lr, golden["noise_c"].to(dtype) if case == "std1x1" else None


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
    @pytest.mark.parametrize("case", ["fwd", "deq", "std0", "train", "std1x1"])
    def test_encode(
        self, golden: Golden, model: sr_models.SuperResolutionFlow, case: str, dtype: torch.dtype, backend: str
    ) -> None:
        if f"{case}/nll" not in golden.arrays:
            pytest.skip("a case of noise-conditional models")
        model = model.to(dtype)
        hr, lr, noise = inputs_of(golden, case, dtype)
        with torch.no_grad(), invflow.use_backend(backend):
            encoding = model.encode(hr, lr, noise)
        assert f"{case}/eps_{len(encoding.latents)}" not in golden.arrays
        for index, latent in enumerate(encoding.latents):
            assert_same(golden, f"{case}/eps_{index}", latent, dtype)
        # the published code counts the uniform noise in one channel of three
        shift = math.log(QUANT) * hr[0, 0].numel() if case == "deq" and "dequant_u" in golden.arrays else 0.0
        assert_same(golden, f"{case}/logdet", published_logdet(encoding) - shift, dtype)
        assert_same(golden, f"{case}/nll", published_nll(encoding) + shift / (math.log(2) * hr[0, 0].numel()), dtype)

    @pytest.mark.parametrize("case", ["sr", "sr_heat0", "sr_std0", "sr_noise"])
    def test_decode(
        self, golden: Golden, model: sr_models.SuperResolutionFlow, case: str, dtype: torch.dtype, backend: str
    ) -> None:
        key = f"rev/{case}"
        if key not in golden.arrays:
            pytest.skip("not in this fixture")
        if dtype == torch.float32 and not golden[key].isfinite().all():
            pytest.skip("the published float32 run overflows")
        model = model.to(dtype)
        latents = [tensor.to(dtype) * (case != "sr_heat0") for _, tensor in sorted(golden.section("rev/eps_").items())]
        noise = {"sr_std0": torch.zeros(len(latents[0]), 1, 1, 1), "sr_noise": golden.arrays.get("noise_eps")}.get(case)
        noise = None if noise is None else torch.as_tensor(noise).to(dtype)
        with torch.no_grad(), invflow.use_backend(backend):
            sr = model.decode(latents, golden["lr"].to(dtype), noise)
        assert_same(golden, key, sr, dtype)


def test_every_layer(golden: Golden, model: sr_models.SuperResolutionFlow) -> None:
    model = model.double()
    logdets = golden["f64/fwd/trace_logdet"]
    total = torch.zeros(logdets.shape[1], dtype=torch.float64)
    state, position = golden["hr"].double(), 0
    with torch.no_grad():
        for level, context in zip(model.levels, model.contexts(golden["lr"].double()), strict=True):
            for layer in level:
                state, log_det = layer(state, context)
                total = total + log_det
                if isinstance(state, list):
                    total = total + invflow.standard_normal_log_prob(state[0])
                    state = state[-1]
                torch.testing.assert_close(total, logdets[position], rtol=1e-12, atol=1e-10, msg=str(position))
                position += 1
    assert position == len(logdets)


def test_features(golden: Golden, model: sr_models.SuperResolutionFlow) -> None:
    model = model.float()
    with torch.no_grad():
        factors = [0.5, 1, 2, 4] if "rrdb/fea_up0/pix" in golden.arrays else [1, 2]
        maps = model.encoder(golden["lr"], factors[:-1] if golden.facts["scale"] == 4 else factors)
        image = model.encoder.image(golden["lr"])
    pairs = [(image, golden["rrdb/out"])]
    for factor, feature in maps.items():
        key = f"rrdb/fea_up{0 if factor == 0.5 else factor}"
        pairs.append((feature.double().mean((0, 2, 3)), golden[f"{key}/chmean"]))
        pairs.append((feature[0, :, 1, 2], golden[f"{key}/pix"]))
    for actual, expected in pairs:
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_gradients(golden: Golden, model: sr_models.SuperResolutionFlow, backend: str) -> None:
    dtype = torch.float64 if backend == "reference" else torch.float32
    model = model.to(dtype)
    model.zero_grad()
    with invflow.use_backend(backend):
        case = "train" if "noise_eps" in golden.arrays else "fwd"
        loss = published_nll(model.encode(*inputs_of(golden, case, dtype))).mean()
        loss.backward()
    by_name = {published_name(model, name): parameter for name, parameter in model.named_parameters()}
    tolerance = 1e-10 if dtype == torch.float64 else 2e-4
    torch.testing.assert_close(loss.double(), golden["grad/mean_nll"], rtol=tolerance, atol=0)
    norms, sums = golden["grad/l2"], golden["grad/sum"]
    unused = set(golden.facts["params_without_grad"])
    for name, norm, total in zip(golden.facts["param_names"], norms, sums, strict=True):
        if name not in by_name:
            # published and never evaluated
            assert name.startswith("flowUpsamplerNet.f.") or ".fAffine_std." in name
            assert name in unused
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
def test_data_dependent_initialisation(golden: Golden, backend: str) -> None:
    dtype = torch.float64 if backend == "reference" else torch.float32
    zeroed = {
        name: torch.zeros_like(tensor) if ".actnorm." in name else tensor for name, tensor in golden.state_dict.items()
    }
    model = model_of(golden, zeroed).to(dtype).train()
    inputs = inputs_of(golden, "train" if "noise_eps" in golden.arrays else "fwd", dtype)
    with torch.no_grad(), invflow.use_backend(backend):
        first = model.encode(*inputs)
        second = model.eval().encode(*inputs)
    parameters = {published_name(model, name): parameter for name, parameter in model.state_dict().items()}
    expected = golden.section("ddinit/sd/")
    initialised = [name for name in expected if name in parameters]
    assert len(initialised) == 2 * sum(isinstance(module, ActNorm) for module in model.modules())
    assert all(".fAffine_std." in name for name in expected if name not in parameters)
    for name in initialised:
        torch.testing.assert_close(
            parameters[name].double(), expected[name].flatten().double(), rtol=1e-3, atol=1e-4, msg=name
        )
    for actual, key in ((published_nll(first), "nll"), (published_nll(second), "nll_second_pass")):
        torch.testing.assert_close(actual.double(), golden[f"ddinit/{key}"].double(), rtol=1e-4, atol=1e-4)


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
