"""The encoder: what its graph keeps."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from sr_models.networks.rrdb import DenseBlock


def plain(block: DenseBlock, x: torch.Tensor) -> torch.Tensor:
    seen = [x]
    for conv in block.convs[:-1]:
        seen.append(F.leaky_relu(conv(torch.cat(seen, 1)), 0.2))
    return 0.2 * block.convs[-1](torch.cat(seen, 1)) + x


@pytest.fixture
def block() -> DenseBlock:
    torch.manual_seed(0)
    return DenseBlock(6, 4).double()


def test_a_dense_block_keeps_no_joined_tensor(block: DenseBlock, monkeypatch: pytest.MonkeyPatch) -> None:
    wholes: list[weakref.ref[torch.UntypedStorage]] = []
    cat = torch.cat

    def watched(tensors: list[torch.Tensor], dim: int) -> torch.Tensor:
        whole = cat(tensors, dim)
        wholes.append(weakref.ref(whole))
        return whole

    monkeypatch.setattr(torch, "cat", watched)
    kept: list[int] = []
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape[1]) or t, lambda t: t):
        y = block(x)
    assert len(wholes) == 5
    assert all(whole() is None for whole in wholes)
    y.sum().backward()
    assert len(wholes) == 10
    # what is saved outside of the convolutions: the results of four activations
    assert kept == 4 * [4]


def test_a_dense_block_has_the_gradients_of_the_plain_one(block: DenseBlock) -> None:
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64, requires_grad=True)
    inputs, grad = [x, *block.parameters()], torch.randn_like(x)
    expected = torch.autograd.grad(plain(block, x), inputs, grad)
    for y in (block(x), checkpoint(block, x, use_reentrant=False), torch.compile(block, backend="eager")(x)):
        torch.testing.assert_close(y, plain(block, x))
        torch.testing.assert_close(torch.autograd.grad(y, inputs, grad), expected)
    assert torch.autograd.gradgradcheck(lambda x, *_: block(x), inputs)


def test_a_change_of_what_a_dense_block_needs_is_noticed(block: DenseBlock) -> None:
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64, requires_grad=True)
    y = 1 * x
    z = block(y)
    with torch.no_grad():
        y.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()
