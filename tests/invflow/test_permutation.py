"""Fixed permutations: orders, seeds, and orders that a file brings."""

from __future__ import annotations

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

from invflow import Permutation
from invflow.testing import assert_invertible


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("reverse", [3, 2, 1, 0]),
        ([2, 0, 3, 1], [2, 0, 3, 1]),
        (torch.tensor([1, 2, 3, 0]), [1, 2, 3, 0]),
        (range(4), [0, 1, 2, 3]),
    ],
)
def test_channels_come_out_in_the_order(order: object, expected: list[int]) -> None:
    layer = Permutation(4, order)  # type: ignore[arg-type]
    y, log_det = layer(torch.arange(4.0).view(1, 4, 1, 1).expand(2, 4, 2, 3))
    assert y[1, :, 1, 2].tolist() == expected
    assert log_det.tolist() == [0.0, 0.0]


def test_a_seed_is_a_generator_of_its_own() -> None:
    state = torch.random.get_rng_state()
    orders = [Permutation(50, seed=seed).order.tolist() for seed in (1, 1, 2)]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[2]) == list(range(50))


def test_without_a_seed_layers_differ_and_follow_the_global_one() -> None:
    found = []
    for _ in range(2):
        torch.manual_seed(5)
        found.append([Permutation(50).order.tolist() for _ in range(2)])
    assert found[0] == found[1]
    assert found[0][0] != found[0][1]


def test_an_order_changed_in_place_is_followed_in_both_directions() -> None:
    layer, x = Permutation(4, "reverse"), torch.randn(2, 4, 2, 2)
    assert_invertible(layer, x)
    layer.matrix.copy_(255 * torch.eye(4)[[1, 2, 3, 0]])
    assert_invertible(layer, x)
    assert torch.equal(layer(x)[0][:, 0], x[:, 1])


@pytest.mark.parametrize("decay", [None, 0.7, 0.9, 0.95, 0.9995, 0.9999])
def test_averages_of_buffers_keep_the_order(decay: float | None) -> None:
    layer = Permutation(64, seed=0)
    average = AveragedModel(layer, avg_fn=None if decay is None else get_ema_avg_fn(decay), use_buffers=True)
    for _ in range(20):
        average.update_parameters(layer)
    assert torch.equal(average.module.order, layer.order)


@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_the_layout_is_kept(direction: str) -> None:
    layer = Permutation(4, seed=0)
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 4, 6, 5).contiguous(memory_format=layout)
        y, _ = getattr(layer, direction)(x)
        assert y.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("order", [[0, 1, 2], [0, 1, 2, 2], [1, 2, 3, 4], [0.5, 1, 2, 3], "random ", torch.zeros(4)])
def test_an_order_that_is_none_is_refused(order: object) -> None:
    with pytest.raises(ValueError, match="Permutation: order must "):
        Permutation(4, order)  # type: ignore[arg-type]


def test_a_seed_for_a_given_order_is_refused() -> None:
    for order in ("reverse", [1, 0]):
        with pytest.raises(ValueError, match="Permutation: seed is for a random order, got seed=0"):
            Permutation(2, order, seed=0)  # type: ignore[arg-type]
