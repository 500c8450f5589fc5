"""Whole networks against the published implementations, whose results are stored as fixtures."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Sequence

import pytest
import torch
from golden import FLOAT32_FLOOR, Golden, assert_agree, available, load_golden
from kinks import pre_activations
from torch import Tensor

import invflow
import sr_models
from invflow import ActNorm
from sr_models.checkpoints.published import from_published, load_published, published_layout
from sr_models.flow import condition_sharing
from sr_models.networks.precision import network_precision
from sr_models.training.recipe import PAPER_NOISE_STD

QUANT = 32
# Relative to the largest value: rounding, and nothing else.
FLOAT64_TOLERANCE = 1e-10


NETWORKS = available(
    *(
        f"{name}{size}"
        for name in ("srflow_4", "srflow_8", "srflowda_4", "srflowda_8", "ncsr_4", "ncsr_8")
        for size in ("", "_full")
    ),
    *("srflowda_r_4", "srflowda_d_4", "srflowda_s_4"),
)
SLOWEST = "ncsr_8_full"


def but_for(slow: Callable[[str], bool]) -> list[object]:
    """The networks as parameters, some of which are left to make test-slow."""
    return [pytest.param(name, marks=pytest.mark.slow) if slow(name) else name for name in NETWORKS]


@pytest.fixture(scope="module", params=but_for(lambda name: name == SLOWEST))
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
            return hr + PAPER_NOISE_STD * golden["dequant_n"].to(dtype), lr, None
        return hr + (golden["dequant_u"].to(dtype) - 0.5) / QUANT, lr, None
    if case == "train":
        # added in float32, whatever the network computes in
        hr, lr = golden["hr"] + golden["noise_eps"], golden["lr"] + golden["noise_lr"]
        return hr.to(dtype), lr.to(dtype), golden["noise_eps"].to(dtype)
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


def pairs_of(dtypes: Iterable[torch.dtype], networks: Sequence[str] = NETWORKS) -> pytest.MarkDecorator:
    """Parametrise by network, dtype and backend: all three together of small networks, every pair of large ones.

    test_gradients compares one encoding of a large network in all four.
    """
    combined = []
    for number, name in enumerate(networks):
        marks = [pytest.mark.slow] if name == SLOWEST else []
        for place in itertools.product(enumerate(dtypes), enumerate(("reference", "cpu"))):
            (first, dtype), (second, backend) = place
            if not name.endswith("_full") or (number + first + second) % 2 == 0:
                combined.append(pytest.param(name, dtype, backend, marks=marks, id=f"{name}-{dtype}-{backend}"))
    return pytest.mark.parametrize(("golden", "dtype", "backend"), combined, indirect=["golden"])


def assert_encodes(
    golden: Golden, model: sr_models.SuperResolutionFlow, cases: Sequence[str], dtype: torch.dtype, backend: str
) -> None:
    model = model.to(dtype)
    for case in cases:
        hr, lr, noise = inputs_of(golden, case, dtype)
        with torch.no_grad(), invflow.use_backend(backend):
            encoding = model.encode(hr, lr, noise)
        assert f"{case}/eps_{len(encoding.latents)}" not in golden.arrays
        for index, latent in enumerate(encoding.latents):
            assert_same(golden, f"{case}/eps_{index}", latent, dtype)
        # the published code counts the uniform noise in one channel of three
        shift = math.log(QUANT) * hr[0, 0].numel() if case == "deq" and "dequant_u" in golden.arrays else 0.0
        assert_same(golden, f"{case}/logdet", published_logdet(encoding) - shift, dtype)
        nll = published_nll(encoding) + shift / (math.log(2) * hr[0, 0].numel())
        assert_same(golden, f"{case}/nll", nll, dtype)


@pairs_of((torch.float64, torch.float32))
class TestNetwork:
    def test_encode(
        self, golden: Golden, model: sr_models.SuperResolutionFlow, dtype: torch.dtype, backend: str
    ) -> None:
        cases = [case for case in ("fwd", "deq", "std0", "train", "std1x1") if f"{case}/nll" in golden.arrays]
        assert len(cases) == (5 if model.noise_channels else 2)
        assert_encodes(golden, model, cases, dtype, backend)

    def test_decode(
        self, golden: Golden, model: sr_models.SuperResolutionFlow, dtype: torch.dtype, backend: str
    ) -> None:
        model = model.to(dtype)
        given = [tensor.to(dtype) for _, tensor in sorted(golden.section("rev/eps_").items())]
        noises = {"sr_std0": torch.zeros(len(given[0]), 1, 1, 1), "sr_noise": golden.arrays.get("noise_eps")}
        cases = [case for case in ("sr", "sr_heat0", "sr_std0", "sr_noise") if f"rev/{case}" in golden.arrays]
        assert "sr" in cases
        for case in cases:
            if dtype == torch.float32 and not golden[f"rev/{case}"].isfinite().all():
                continue  # the published float32 run overflows
            latents = [latent * 0 if case == "sr_heat0" else latent for latent in given]
            noise = None if case not in noises else torch.as_tensor(noises[case]).to(dtype)
            with torch.no_grad(), invflow.use_backend(backend):
                sr = model.decode(latents, golden["lr"].to(dtype), noise)
            assert_same(golden, f"rev/{case}", sr, dtype)


@pytest.mark.parametrize("way", ["joined", "merged"])
@pytest.mark.parametrize("golden", but_for(lambda name: name.endswith("_full")), indirect=True)
def test_encode_in_other_ways(
    golden: Golden, model: sr_models.SuperResolutionFlow, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every network sees the joined features, as if it were watched, or shares a convolution, as on an accelerator.

    In float64 one way of every network, in float32 the other: every pair of way, network and dtype, but not all three.
    Of the cases those whose noise has another shape.
    """
    if way == "joined":
        monkeypatch.setattr(condition_sharing, "_is_split", lambda net: False)
    else:
        monkeypatch.setattr(condition_sharing, "_merges", lambda features: True)
    number = NETWORKS.index(golden.facts["fixture"]) + (way == "merged")
    cases = [case for case in ("fwd", "std0", "train") if f"{case}/nll" in golden.arrays]
    assert len(cases) == (3 if model.noise_channels else 1)
    assert_encodes(golden, model, cases, (torch.float64, torch.float32)[number % 2], "cpu")


#: Of networks in half precision, against the published results in float64: error of bits per pixel, relative to them
#: or to 1, mean relative error of a latent, and mean error of an image, whose values these untrained networks amplify
#: to 5.
HALF_ERRORS = {torch.bfloat16: (5e-3, 5e-2, 0.3), torch.float16: (6e-4, 6e-3, 0.04)}


# the largest has weights by a formula, which overflow float16 and amplify the roundings of bfloat16 beyond this
@pairs_of(HALF_ERRORS, networks=[name for name in NETWORKS if name != SLOWEST])
def test_networks_in_half_precision(
    golden: Golden, model: sr_models.SuperResolutionFlow, dtype: torch.dtype, backend: str
) -> None:
    bits, relative, absolute = HALF_ERRORS[dtype]
    model = model.float()
    given = [tensor.float() for _, tensor in sorted(golden.section("rev/eps_").items())]
    hr, lr, noise = inputs_of(golden, "fwd", torch.float32)
    with torch.no_grad(), invflow.use_backend(backend), network_precision(dtype, torch.device("cpu")):
        encoding = model.encode(hr, lr, noise)
        image = model.decode(given, golden["lr"].float())
    expected = golden["f64/fwd/nll"]
    assert (published_nll(encoding) - expected).abs().max() < bits * expected.abs().clamp(min=1).max()
    for latent, expected in zip(encoding.latents, golden.latents("fwd", torch.float64), strict=True):
        assert latent.dtype == torch.float32
        assert (latent - expected).abs().mean() < relative * expected.abs().mean()
    assert (image - golden["f64/rev/sr"]).abs().mean() < absolute


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


def test_log_det_of_decoding(golden: Golden, model: sr_models.SuperResolutionFlow) -> None:
    model = model.double()
    *latents, state = [tensor.double() for _, tensor in sorted(golden.section("rev/eps_").items())]
    # published sums contain the priors of all latents but the last, here with the opposite sign
    total = -invflow.standard_normal_log_prob(latents)
    with torch.no_grad():
        for level, context in reversed(list(zip(model.levels, model.contexts(golden["lr"].double()), strict=True))):
            rest = len(latents) - level.num_latents + 1
            state, log_det = level.inverse([*latents[rest:], state], context)
            total, latents = total + log_det, latents[:rest]
    assert_same(golden, "rev/logdet", total, torch.float64)
    # every layer with the joined features, where test_decode shares what it can
    assert_same(golden, "rev/sr", state, torch.float64)


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


#: Backend, dtype and memory of every run whose gradients are compared.
RUNS = {
    "exact": ("reference", torch.float64, "store"),
    "exact, inverted": ("cpu", torch.float64, "invert"),
    "plain": ("reference", torch.float32, "store"),
    "cpu": ("cpu", torch.float32, "store"),
    "cpu, inverted": ("cpu", torch.float32, "invert"),
}


def published_names(model: sr_models.SuperResolutionFlow) -> dict[str, str]:
    """By our name."""
    return {own: name for name, (own, _) in published_layout(model).items() if own is not None}


def gradients(golden: Golden, model: sr_models.SuperResolutionFlow, run: str) -> dict[str, Tensor]:
    """Gradients of the mean bits per pixel in float64, by published name; the encoding itself is checked on the way."""
    backend, dtype, memory = RUNS[run]
    model = model.to(dtype)
    model.zero_grad()
    for level in model.levels:
        level.memory = memory
    case = "train" if "noise_eps" in golden.arrays else "fwd"
    with invflow.use_backend(backend):
        encoding = model.encode(*inputs_of(golden, case, dtype))
        loss = published_nll(encoding).mean()
        loss.backward()
    for index, latent in enumerate(encoding.latents):
        assert_same(golden, f"{case}/eps_{index}", latent, dtype)
    assert_same(golden, f"{case}/logdet", published_logdet(encoding), dtype)
    if dtype == torch.float64:
        torch.testing.assert_close(loss, golden["grad/mean_nll"], rtol=FLOAT64_TOLERANCE, atol=0)
    names = published_names(model)
    found = {
        names[name]: parameter.grad.double()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    model.zero_grad()
    for level in model.levels:
        level.memory = "store"
    return found


@pytest.mark.parametrize("golden", but_for(lambda name: name.endswith("_full")), indirect=True)
def test_gradients(golden: Golden, model: sr_models.SuperResolutionFlow) -> None:
    """Float64 gives the published gradients; float32 errs at most twice as much as plain PyTorch, between equal kinks.

    One ReLU's input of -3.5e-6, in a layer whose largest is 3.1, became 9e-8 with one thread and ``memory="invert"``
    (ncsr_4_full). This sign alone changed gradients by 5e-3, while rounding changes them by 3e-6.
    The float32 runs therefore take all signs from the float64 run, and their pre-activations are compared as well.
    """
    unused = set(golden.facts["params_without_grad"])
    names = [name for name in golden.facts["param_names"] if name not in unused]
    norms = dict(zip(golden.facts["param_names"], golden["grad/l2"], strict=True))
    sums = dict(zip(golden.facts["param_names"], golden["grad/sum"], strict=True))
    with pre_activations() as exact_inputs:
        exact = gradients(golden, model, "exact")
    for found in (exact, gradients(golden, model, "exact, inverted")):
        assert set(found) == set(names)
        for name in names:
            torch.testing.assert_close(found[name].norm(), norms[name], rtol=FLOAT64_TOLERANCE, atol=1e-12, msg=name)
            difference = abs(found[name].sum() - sums[name])
            assert difference <= FLOAT64_TOLERANCE * math.sqrt(found[name].numel()) * norms[name], name
    with pre_activations(exact_inputs) as plain_inputs:
        plain = gradients(golden, model, "plain")
    # The networks are deep: how far float32 gets is what plain PyTorch shows, on average over the parameters of one
    # kind, since chance decides for a single one.
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(re.sub(r"\d+", "n", name), []).append(name)
    for run in ("cpu", "cpu, inverted"):
        with pre_activations(exact_inputs) as inputs:
            found = gradients(golden, model, run)
        for kind, members in kinds.items():
            error, plain_error = (
                math.sqrt(sum(relative_error(gradient[name], exact[name]) ** 2 for name in members) / len(members))
                for gradient in (found, plain)
            )
            assert error <= 2 * plain_error + FLOAT32_FLOOR, (run, kind)
        assert inputs.keys() == exact_inputs.keys()
        for activation, (exact_input,) in exact_inputs.items():
            plain_error = relative_error(plain_inputs[activation][0], exact_input)
            for evaluation in inputs[activation]:
                assert relative_error(evaluation, exact_input) <= 2 * plain_error + FLOAT32_FLOOR, (run, activation)


def relative_error(actual: Tensor, exact: Tensor) -> float:
    """In the Euclidean norm; nothing is relative to zero."""
    return (torch.linalg.vector_norm(actual - exact) / torch.linalg.vector_norm(exact).clamp(min=1e-30)).item()


def test_data_dependent_initialisation(golden: Golden) -> None:
    expected = golden.section("ddinit/sd/")
    if not expected:
        pytest.skip("not in this fixture")
    zeroed = {
        name: torch.zeros_like(tensor) if ".actnorm." in name else tensor for name, tensor in golden.state_dict.items()
    }
    found = {}
    for run in ("exact", "plain", "cpu"):
        backend, dtype, _ = RUNS[run]
        model = model_of(golden, zeroed).to(dtype).train()
        inputs = inputs_of(golden, "train" if "noise_eps" in golden.arrays else "fwd", dtype)
        with torch.no_grad(), invflow.use_backend(backend):
            first = published_nll(model.encode(*inputs))
            second = published_nll(model.eval().encode(*inputs))
        found[run] = {published: model.get_parameter(name) for name, published in published_names(model).items()}
        found[run] |= {"nll": first, "nll_second_pass": second}
    initialised = [name for name in expected if name in found["exact"]]
    assert len(initialised) == 2 * sum(isinstance(module, ActNorm) for module in model.modules())
    # the network draws statistics of dead layers too
    assert all(".fAffine_std." in name for name in expected if name not in found["exact"])
    published = {name: expected[name].flatten() for name in initialised}
    published |= {name: golden[f"ddinit/{name}"] for name in ("nll", "nll_second_pass")}
    for name, tensor in published.items():
        assert_agree(tensor, {run: results[name] for run, results in found.items()}, name)


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
            (lambda o: o.update(model="SRFlow-X"), "model must be one of 'SRFlow', .*, 'NCSR', .*, got 'SRFlow-X'"),
            (lambda o: o["network_G"]["flow"].update(L=3), "L must be 2 for SRFlow-DA at scale 4, got 3"),
            (lambda o: o["network_G"].pop("nb"), "must have the entry 'nb'"),
        ],
    )
    def test_options(self, change, message: str) -> None:
        golden = load_golden("srflowda_4")
        change(golden.facts["opt"])
        with pytest.raises(ValueError, match=message):
            from_published(golden.state_dict, golden.facts["opt"], growth=8)
