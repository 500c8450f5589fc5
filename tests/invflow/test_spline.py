"""Spline couplings: the spline itself, its derivative, its inverse where it is steep or flat, and its tails."""

from __future__ import annotations

import math

import pytest
import torch
from layer_cases import spline
from torch import Tensor, nn

from invflow import SplineCoupling
from invflow.layers._spline_map import SplineForm

FORM = SplineForm(bins=8, limit=3.0, least=0.02)


def drawn(count: int, spread: float, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """States inside and outside the interval, and raw parameters, a spline an element."""
    generator = torch.Generator().manual_seed(0)
    x = 7 * torch.rand(1, 1, count, generator=generator, dtype=torch.float64) - 3.5
    return x.to(dtype), (spread * torch.randn(1, 1, 23, count, generator=generator, dtype=torch.float64)).to(dtype)


def as_published(x: float, raw: Tensor, form: SplineForm) -> float:
    """Equations 4 to 8 of Durkan et al., written down as they stand there, for one number."""
    k = form.bins
    fractions = [form.least + (1 - k * form.least) * part.softmax(0) for part in (raw[:k], raw[k : 2 * k])]
    knots = [[-form.limit + 2 * form.limit * float(part[:n].sum()) for n in range(k + 1)] for part in fractions]
    shift = math.log(math.expm1(1 - form.least))
    slopes = [1.0, *(form.least + math.log1p(math.exp(r + shift)) for r in raw[2 * k :].tolist()), 1.0]
    n = max(n for n in range(k) if knots[0][n] <= x)
    (x0, x1), (y0, y1) = (part[n : n + 2] for part in knots)
    s, xi = (y1 - y0) / (x1 - x0), (x - x0) / (x1 - x0)
    above = (y1 - y0) * (s * xi**2 + slopes[n] * xi * (1 - xi))
    return y0 + above / (s + (slopes[n + 1] + slopes[n] - 2 * s) * xi * (1 - xi))


def test_it_is_the_published_spline() -> None:
    x, raw = drawn(50, 1.0)
    x = x.clamp(-2.99, 2.99)
    y, _ = FORM.transform(x, raw, inverse=False)
    for i in range(50):
        assert y[0, 0, i].item() == pytest.approx(as_published(x[0, 0, i].item(), raw[0, 0, :, i], FORM), abs=1e-12)


@pytest.mark.parametrize("inverse", [False, True])
def test_the_logarithm_is_that_of_the_derivative(inverse: bool) -> None:
    x, raw = drawn(500, 2.0)
    x.requires_grad_()
    y, log_slope = FORM.transform(x, raw, inverse=inverse)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(slope.log(), log_slope, rtol=1e-9, atol=1e-9)


def test_float32_comes_back() -> None:
    x, raw = drawn(20000, 0.7, torch.float32)
    y, log_slope = FORM.transform(x, raw, inverse=False)
    back, inverse_log_slope = FORM.transform(y, raw, inverse=True)
    assert (back - x).abs().max() < 1e-4
    assert (log_slope + inverse_log_slope).abs().max() < 1e-3


@pytest.mark.parametrize("spread", [1.0, 5.0, 50.0, 1e4])
def test_an_inverse_solves_the_equation_however_steep_or_flat_the_spline(spread: float) -> None:
    y, raw = drawn(20000, spread, torch.float32)
    x, minus_log_slope = FORM.transform(y, raw, inverse=True)
    again, log_slope = FORM.transform(x, raw, inverse=False)
    # x itself is rounded, which the slope multiplies
    allowed = 2e-6 * (1 + torch.maximum(log_slope, -minus_log_slope).exp())
    assert ((again - y).abs() <= allowed).all()


def test_zeros_make_the_identity_and_the_tails_are_it() -> None:
    x, raw = drawn(300, 3.0)
    y, log_slope = FORM.transform(x, torch.zeros_like(raw), inverse=False)
    torch.testing.assert_close(y, x)
    torch.testing.assert_close(log_slope, torch.zeros_like(x))
    for inverse in (False, True):
        y, log_slope = FORM.transform(x, raw, inverse=inverse)
        outside = x.abs() > 3
        assert outside.any()
        assert torch.equal(y[outside], x[outside])
        assert not log_slope[outside].any()
        assert (y[~outside].abs() <= 3).all()


def test_knots_and_ends_belong_to_both_pieces() -> None:
    _, raw = drawn(4, 1.0)
    raw = raw[..., :1].expand(-1, -1, -1, 9)
    knots = FORM._knots(raw[:, :, :8, :1])[0, 0, :, 0]
    heights = FORM._knots(raw[:, :, 8:16, :1])[0, 0, :, 0]
    y, log_slope = FORM.transform(knots.view(1, 1, 9), raw, inverse=False)
    torch.testing.assert_close(y[0, 0], heights)
    back, inverse_log_slope = FORM.transform(heights.view(1, 1, 9), raw, inverse=True)
    torch.testing.assert_close(back[0, 0], knots)
    torch.testing.assert_close(inverse_log_slope, -log_slope)


def test_nan_and_infinity_stay_what_they_are() -> None:
    _, raw = drawn(3, 1.0)
    for inverse in (False, True):
        y, _ = FORM.transform(
            torch.tensor([math.nan, math.inf, -math.inf]).view(1, 1, 3).double(), raw, inverse=inverse
        )
        assert y[0, 0, 0].isnan()
        assert y[0, 0, 1:].tolist() == [math.inf, -math.inf]


def test_a_state_far_from_the_data_does_not_explode() -> None:
    layer = spline(4)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(3 * torch.randn_like(parameter))
    z = 100 * torch.randn(2, 4, 5, 5)
    assert (layer.inverse(z)[0] - z).abs().max() <= 6


def test_errors_name_the_argument() -> None:
    net = nn.Identity()
    for arguments, message in (
        ({"bins": 1}, "bins must be at least 2, got 1"),
        ({"limit": 0.0}, "limit must be greater than 0, got 0.0"),
        ({"limit": float("inf")}, "limit must be finite, got inf"),
        ({"least": 0.2}, "least must be between 0 and 1 / bins = 0.125, got 0.2"),
        ({"least": 0.0}, "least must be between 0 and 1 / bins = 0.125, got 0.0"),
    ):
        with pytest.raises(ValueError, match=f"SplineCoupling: {message}"):
            SplineCoupling(4, net, **arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="SplineCoupling: net must return 46 channels, 23 for each of the 2 that"):
        SplineCoupling(4, net)(torch.zeros(1, 4, 2, 2))
