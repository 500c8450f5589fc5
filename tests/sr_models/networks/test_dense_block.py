"""The encoder's dense block: its gradients, what its graph keeps, and when its convolutions are called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from sr_models.networks.dense_block import DenseBlock


def plain(block: DenseBlock, x: Tensor) -> Tensor:
    seen = [x]
    for conv in block.convs[:-1]:
        seen.append(F.leaky_relu(conv(torch.cat(seen, 1)), 0.2))
    return torch.add(x, block.convs[-1](torch.cat(seen, 1)), alpha=0.2)


@pytest.fixture
def block() -> DenseBlock:
    torch.manual_seed(0)
    return DenseBlock(6, 4).double()


def an_input(**options: Any) -> Tensor:
    return torch.randn(2, 6, 5, 5, dtype=torch.float64, requires_grad=True, **options)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("batch", [1, 2])
def test_the_result_is_that_of_joined_tensors(
    block: DenseBlock, batch: int, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    block.to(dtype)
    x = torch.randn(batch, 6, 5, 7, dtype=dtype).contiguous(memory_format=layout)
    expected = plain(block, x)
    for y in (block(x), torch.no_grad()(block)(x), torch.inference_mode()(block)(x)):
        assert torch.equal(y, expected)
        assert y.stride() == expected.stride()


def test_a_dense_block_has_the_gradients_of_the_plain_one(block: DenseBlock) -> None:
    x = an_input()
    inputs, grad = [x, *block.parameters()], torch.randn_like(x)
    expected = torch.autograd.grad(plain(block, x), inputs, grad)
    for y in (block(x), checkpoint(block, x, use_reentrant=False), torch.compile(block, backend="eager")(x)):
        torch.testing.assert_close(y, plain(block, x))
        torch.testing.assert_close(torch.autograd.grad(y, inputs, grad), expected, rtol=0, atol=1e-12)
    assert torch.autograd.gradgradcheck(lambda x, *_: block(x), inputs)


@pytest.mark.parametrize("trained", [[], [0], [4], [1, 3], [9], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]])
@pytest.mark.parametrize("of_input", [True, False])
def test_gradients_of_some_parameters_only(block: DenseBlock, trained: list[int], of_input: bool) -> None:
    x = an_input().detach().requires_grad_(of_input)
    parameters = list(block.parameters())
    for number, parameter in enumerate(parameters):
        parameter.requires_grad_(number in trained)
    inputs = [tensor for tensor in (x, *parameters) if tensor.requires_grad]
    y = block(x)
    assert y.requires_grad == bool(inputs)
    if inputs:
        expected = torch.autograd.grad(plain(block, x).square().sum(), inputs)
        torch.testing.assert_close(torch.autograd.grad(y.square().sum(), inputs), expected)


def test_a_dense_block_keeps_each_channel_once(block: DenseBlock) -> None:
    x = an_input()
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> None:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()

    y = block(1 * x)
    for saved in y.grad_fn.saved_tensors:
        note(saved)
    weights = sum(parameter.untyped_storage().nbytes() for parameter in block.parameters())
    assert sum(storages.values()) == 8 * 2 * 25 * (6 + 4 * 4) + weights


def test_a_graph_that_others_watch_keeps_what_they_can_take_away(block: DenseBlock) -> None:
    x = an_input()
    expected = torch.autograd.grad(plain(block, x).sum(), [x, *block.parameters()])
    kept: list[Tensor] = []

    def moved(tensor: Tensor) -> int:
        kept.append(tensor.clone())
        return len(kept) - 1

    with torch.autograd.graph.saved_tensors_hooks(moved, lambda number: kept[number]):
        y = block(1 * x)
    assert sum(tensor.shape[1] for tensor in kept if tensor.shape[2:] == x.shape[2:]) == 2 * 6 + 4 * 4
    torch.testing.assert_close(torch.autograd.grad(y.sum(), [x, *block.parameters()]), expected)


def test_what_the_block_needs_may_change_if_the_graph_has_a_copy(block: DenseBlock) -> None:
    x = an_input()
    expected = torch.autograd.grad(plain(block, x).sum(), x)
    y = 1 * x
    z = block(y)
    with torch.no_grad():
        y.zero_()
    torch.testing.assert_close(torch.autograd.grad(z.sum(), x), expected)


def test_a_change_of_a_weight_is_noticed(block: DenseBlock) -> None:
    z = block(an_input())
    with torch.no_grad():
        block.convs[2].weight.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


def test_a_second_backward_pass_needs_a_retained_graph(block: DenseBlock) -> None:
    x = an_input()
    z = block(x).sum()
    first = torch.autograd.grad(z, x, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(z, x), first)
    with pytest.raises(RuntimeError, match="second time"):
        z.backward()


class _Doubled(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def _doubled(conv: nn.Conv2d) -> nn.Conv2d:
    other = _Doubled(conv.in_channels, conv.out_channels, 3, padding=1).double()
    other.load_state_dict(conv.state_dict())
    return other


def _replace_call(conv: nn.Conv2d) -> None:
    forward = conv.forward
    conv.forward = lambda x: 2 * forward(x)  # type: ignore[method-assign]


@pytest.mark.parametrize(
    "watch",
    [
        lambda convs: convs[1].register_forward_hook(lambda module, given, y: 2 * y),
        lambda convs: convs[1].register_forward_pre_hook(lambda module, given: (2 * given[0],)),
        lambda convs: convs[1].register_full_backward_hook(lambda module, grads, of_y: (2 * grads[0],)),
        lambda convs: _replace_call(convs[1]),
        lambda convs: convs.__setitem__(1, _doubled(convs[1])),
        lambda convs: (
            setattr(convs[1], "padding_mode", "circular")
            or setattr(convs[1], "_reversed_padding_repeated_twice", [1, 1, 1, 1])
        ),
        lambda convs: setattr(convs[1], "bias", None),
        lambda convs: parametrizations.weight_norm(convs[1]),
    ],
)
def test_a_convolution_that_does_more_is_called(block: DenseBlock, watch: Callable[[nn.ModuleList], object]) -> None:
    watch(block.convs)
    x = an_input()
    y, expected = block(x), plain(block, x)
    torch.testing.assert_close(y, expected)
    parameters = list(block.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(y.sum(), [x, *parameters]), torch.autograd.grad(expected.sum(), [x, *parameters])
    )


def test_global_hooks_see_every_convolution(block: DenseBlock) -> None:
    seen: list[nn.Module] = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, given, y: seen.append(module))
    try:
        block(an_input())
    finally:
        handle.remove()
    assert seen == [*block.convs, block]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_computes_as_in_the_plain_form(block: DenseBlock, dtype: torch.dtype) -> None:
    block.float()
    x = an_input().detach().to(dtype).requires_grad_()
    found = []
    for call in (block, lambda x: plain(block, x)):
        with torch.autocast("cpu", torch.bfloat16):
            y = call(x)
        found.append((y, *torch.autograd.grad(y.float().square().sum(), [x, *block.parameters()])))
    assert torch.equal(found[0][0], found[1][0])
    assert [tensor.dtype for tensor in found[0]] == [tensor.dtype for tensor in found[1]]
    for own, other in zip(*found, strict=True):
        torch.testing.assert_close(own.float(), other.float(), rtol=0.03, atol=0.03 * other.abs().max().item())


def test_transforms_of_torch(block: DenseBlock) -> None:
    x, tangent = an_input().detach(), torch.randn(2, 6, 5, 5, dtype=torch.float64)
    parameters = {name: parameter.detach() for name, parameter in block.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(block, parameters, (x,)).square().sum()

    expected = torch.autograd.grad(plain(block, x).square().sum(), list(block.parameters()))
    torch.testing.assert_close(tuple(torch.func.grad(loss)(parameters, x).values()), expected)
    assert torch.func.functional_call(block, {name: 0 * p for name, p in parameters.items()}, (x,)).equal(x)
    each = torch.func.vmap(lambda x: block(x[None])[0])(x)
    torch.testing.assert_close(each, plain(block, x))
    with forward_ad.dual_level():
        y = block(forward_ad.make_dual(x, tangent))
        derivative = forward_ad.unpack_dual(y).tangent
    expected_derivative = torch.autograd.functional.jvp(lambda x: plain(block, x), x, tangent)[1]
    torch.testing.assert_close(derivative, expected_derivative)


def test_a_traced_block_takes_other_images(block: DenseBlock) -> None:
    traced = torch.jit.trace(block, an_input().detach())
    x = torch.randn(1, 6, 8, 3, dtype=torch.float64)
    torch.testing.assert_close(traced(x), plain(block, x))
