"""Networks in half precision: what it changes, and what it leaves exact."""

from __future__ import annotations

import threading

import pytest
import torch
from tiny_models import randomised

import invflow
from invflow import AffineCoupling, AffineInjector
from sr_models.flow.explosions import ExplosionError
from sr_models.flow.model import SuperResolutionFlow
from sr_models.networks.precision import Precision, network_precision

HALVES: list[tuple[Precision, torch.dtype]] = [("bf16", torch.bfloat16), ("fp16", torch.float16)]
#: Mean difference between images in [0, 1]; a rounding is 2^-9 of a value in bfloat16, and 2^-12 in float16.
MEAN_ERRORS = {"bf16": 2e-3, "fp16": 3e-4}


@pytest.fixture(scope="module", params=["srflow", "srflow-da", "srflow-da-r", "ncsr"])
def named(request: pytest.FixtureRequest) -> SuperResolutionFlow:
    return randomised(request.param, dtype=torch.float32)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def model(request: pytest.FixtureRequest, named: SuperResolutionFlow) -> SuperResolutionFlow:
    return named.to(request.param)


def images(
    model: SuperResolutionFlow, size: tuple[int, int] = (4, 6), count: int = 2
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of high and low resolution, on the device of the model."""
    torch.manual_seed(0)
    like = next(model.parameters())
    return torch.rand(count, 3, 4 * size[0], 4 * size[1]).to(like), torch.rand(count, 3, *size).to(like)


@pytest.mark.parametrize(("precision", "dtype"), HALVES)
class TestHalfPrecision:
    def test_samples_are_nearly_those_of_float32(
        self, model: SuperResolutionFlow, precision: Precision, dtype: torch.dtype
    ) -> None:
        lr = images(model)[1]
        exact, half = model.sample(lr, 3), model.sample(lr, 3, precision=precision)
        assert half.dtype == torch.float32
        assert 0 < (half - exact).abs().mean() < MEAN_ERRORS[precision]

    @pytest.mark.parametrize("backend", ["reference", "auto"])
    def test_networks_run_in_it_and_the_state_does_not(
        self, model: SuperResolutionFlow, precision: Precision, dtype: torch.dtype, backend: str
    ) -> None:
        hr, lr = images(model)
        with torch.no_grad(), network_precision(dtype, lr.device), invflow.use_backend(backend):
            features = model.encoder.features(lr, [1])[1]
            encoding = model.encode(hr, lr, hr.new_zeros(2, 1, 1, 1) if model.noise_channels else None)
        assert features.own.dtype == dtype
        assert {latent.dtype for latent in encoding.latents} == {torch.float32}
        assert encoding.log_det.dtype == encoding.log_prior.dtype == torch.float32

    @pytest.mark.parametrize("backend", ["reference", "auto"])
    def test_the_inverse_of_a_coupling_is_exact(
        self, model: SuperResolutionFlow, precision: Precision, dtype: torch.dtype, backend: str
    ) -> None:
        """Both directions compute the same network, so that what it rounds does not matter."""
        lr = images(model)[1]
        noise = lr.new_zeros(2, 1, 1, 1) if model.noise_channels else None
        with torch.no_grad(), invflow.use_backend(backend), network_precision(dtype, lr.device):
            for level, context in zip(model._levels(), model.contexts(lr, noise), strict=True):
                couplings = [module for module in level.modules() if isinstance(module, AffineCoupling)]
                assert couplings
                for coupling in couplings:
                    x = torch.randn(2, coupling.channels, *context.shape[2:]).to(lr)
                    u = context[:, : coupling.context_channels]
                    torch.testing.assert_close(coupling.inverse(coupling(x, u)[0], u)[0], x, rtol=0, atol=2e-5)

    @pytest.mark.parametrize("backend", ["reference", "auto"])
    def test_round_trip(
        self, model: SuperResolutionFlow, precision: Precision, dtype: torch.dtype, backend: str
    ) -> None:
        """The state comes back to float32's rounding, which networks may round to a neighbour in half precision."""
        hr, lr = images(model, (8, 8))
        noise = hr.new_zeros(2, 1, 1, 1) if model.noise_channels else None
        with torch.no_grad(), invflow.use_backend(backend), network_precision(dtype, lr.device):
            encoding = model.encode(hr, lr, noise)
            error = (model.decode(encoding.latents, lr, noise) - hr).abs()
        assert error.mean() < MEAN_ERRORS[precision]

    def test_the_same_call_gives_the_same_samples(
        self, model: SuperResolutionFlow, precision: Precision, dtype: torch.dtype
    ) -> None:
        lr = images(model)[1]
        assert torch.equal(model.sample(lr, 2, precision=precision), model.sample(lr, 2, precision=precision))

    @pytest.mark.parametrize("tile", [None, 16])
    def test_other_batches_and_tiles(
        self, model: SuperResolutionFlow, precision: Precision, dtype: torch.dtype, tile: int | None
    ) -> None:
        lr = images(model, (20, 24), 3)[1]
        together = model.sample(lr, 2, precision=precision, tile=tile)
        alone = torch.cat([model.sample(image[None], 2, precision=precision, tile=tile) for image in lr])
        assert (together - alone).abs().mean() < MEAN_ERRORS[precision]
        assert (together - model.sample(lr, 2, tile=tile)).abs().mean() < MEAN_ERRORS[precision]

    def test_autocast_around_a_call_has_no_effect(
        self, model: SuperResolutionFlow, precision: Precision, dtype: torch.dtype
    ) -> None:
        lr = images(model)[1]
        exact, half = model.sample(lr), model.sample(lr, precision=precision)
        with torch.autocast(lr.device.type, dtype):
            assert torch.equal(model.sample(lr), exact)
            assert torch.equal(model.sample(lr, precision=precision), half)

    def test_threads_do_not_disturb_each_other(
        self, model: SuperResolutionFlow, precision: Precision, dtype: torch.dtype
    ) -> None:
        lr = images(model)[1]
        names: list[Precision] = ["fp32", precision]
        expected = {name: model.sample(lr, precision=name) for name in names}
        equal: dict[str, bool] = {}

        def work(name: Precision) -> None:
            equal[name] = all(torch.equal(model.sample(lr, precision=name), expected[name]) for _ in range(5))

        threads = [threading.Thread(target=work, args=[name]) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert equal == {"fp32": True, precision: True}


def test_gradients_are_those_of_float32_nearly(model: SuperResolutionFlow) -> None:
    hr, lr = images(model)
    noise = hr.new_zeros(2, 1, 1, 1) if model.noise_channels else None
    found = []
    for dtype in (None, torch.bfloat16):
        model.zero_grad()
        with network_precision(dtype, lr.device):
            loss = model.encode(hr, lr, noise).bits_per_dim.mean()
        loss.backward()
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        assert {gradient.dtype for gradient in gradients} == {torch.float32}
        found.append(torch.cat(gradients))
    model.zero_grad(set_to_none=True)
    exact, half = found
    assert 0 < (half - exact).norm() / exact.norm() < 0.03


def test_a_network_that_overflows_in_float16_is_named() -> None:
    model = randomised("srflow-da", dtype=torch.float32)
    lr = images(model)[1]
    with torch.no_grad():
        # features of more than float16's 65504, of which the networks make moderate shifts
        model.encoder.trunk_conv.weight.mul_(1e7)
        for module in model.modules():
            if isinstance(module, AffineCoupling | AffineInjector):
                module.net.first_conv.weight[:, -module.context_channels :].mul_(1e-7)
    for precision in ("fp32", "bf16"):
        assert model.sample(lr, precision=precision).isfinite().all()
    with pytest.raises(ExplosionError, match="networks overflow in fp16: choose precision 'bf16' or 'fp32'"):
        model.sample(lr, precision="fp16")


def test_a_model_in_double_precision_has_no_other(model: SuperResolutionFlow) -> None:
    lr = images(model)[1].double()
    double = randomised("srflow").to(lr.device)
    # another algorithm of a convolution may round otherwise on a GPU
    torch.testing.assert_close(double.sample(lr, precision="auto"), double.sample(lr), rtol=0, atol=1e-9)
    with pytest.raises(ValueError, match=r"precision must be 'fp32' or 'auto' for a model in torch\.float64"):
        double.sample(lr, precision="bf16")
