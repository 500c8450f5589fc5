"""Haar squeeze: its coefficients, its two orders of channels, and that it is a rotation."""

from __future__ import annotations

import pytest
import torch

from invflow import HaarSqueeze, Squeeze


def test_coefficients_of_a_block() -> None:
    block = torch.tensor([[1.0, 2.0], [4.0, 16.0]]).view(1, 1, 2, 2)
    y, _ = HaarSqueeze()(block)
    assert y.flatten().tolist() == [11.5, (1 - 2 + 4 - 16) / 2, (1 + 2 - 4 - 16) / 2, (1 - 2 - 4 + 16) / 2]


def test_orders_of_the_channels() -> None:
    x = torch.randn(2, 3, 4, 6)
    by_channel, by_band = HaarSqueeze()(x)[0], HaarSqueeze(bands_first=True)(x)[0]
    torch.testing.assert_close(by_band.unflatten(1, (4, 3)), by_channel.unflatten(1, (3, 4)).transpose(1, 2))
    means = torch.nn.functional.avg_pool2d(x, 2)
    torch.testing.assert_close(by_band[:, :3], 2 * means)
    torch.testing.assert_close(by_channel[:, ::4], 2 * means)


def test_it_is_the_squeeze_times_a_hadamard_matrix() -> None:
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    pair = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64) / 2**0.5
    squeezed = Squeeze(2)(x)[0].unflatten(1, (3, 4))
    expected = torch.einsum("kj,bcjhw->bckhw", torch.kron(pair, pair), squeezed).flatten(1, 2)
    torch.testing.assert_close(HaarSqueeze()(x)[0], expected)


def test_energy_is_kept() -> None:
    x = torch.randn(3, 2, 6, 4, dtype=torch.float64)
    y, log_det = HaarSqueeze()(x)
    torch.testing.assert_close(y.square().sum((1, 2, 3)), x.square().sum((1, 2, 3)))
    assert not log_det.any()


@pytest.mark.parametrize("bands_first", [False, True])
def test_integers_come_back_exactly_and_the_layout_is_kept(bands_first: bool) -> None:
    layer = HaarSqueeze(bands_first=bands_first)
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randint(0, 256, (2, 3, 8, 4)).float().contiguous(memory_format=layout)
        y, _ = layer(x)
        back, _ = layer.inverse(y)
        assert torch.equal(back, x)
        assert y.is_contiguous(memory_format=layout)
        assert back.is_contiguous(memory_format=layout)


def test_sizes_that_do_not_fit_are_refused() -> None:
    layer = HaarSqueeze()
    for call in (lambda: layer(torch.zeros(1, 3, 4, 5)), lambda: layer.output_shapes((3, 4, 5))):
        with pytest.raises(ValueError, match=r"HaarSqueeze: spatial dimensions must be even, got \(4, 5\)"):
            call()
    with pytest.raises(ValueError, match="HaarSqueeze: channels of z must be divisible by 4, got 6"):
        layer.inverse(torch.zeros(1, 6, 2, 2))
    with pytest.raises(ValueError, match="HaarSqueeze: a state must have 1 to 3 spatial dimensions, got 0"):
        layer.output_shapes((3,))  # type: ignore[arg-type]
