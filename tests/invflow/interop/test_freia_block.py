"""``AllInOneBlock`` stands in for FrEIA's: the same outputs, gradients, state dicts, and models built of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from all_in_one_cases import OPTIONS, SHAPES, subnet
from torch import Tensor, nn

pytest.importorskip("FrEIA", reason="FrEIA is not installed: make peers")

from FrEIA import modules
from FrEIA.framework import SequenceINN

from invflow.interop.freia import AllInOneBlock, convert, layer_of


def both(shape: tuple[int, ...], conditions: int, **options: Any) -> tuple[nn.Module, nn.Module]:
    dims_c = [[2, *shape[1:]]] * conditions
    theirs, ours = (
        kind([list(shape)], dims_c, subnet_constructor=subnet(len(shape) - 1), **options).double()
        for kind in (modules.AllInOneBlock, AllInOneBlock)
    )
    torch.testing.assert_close(ours.global_scale, theirs.global_scale, atol=1e-6, rtol=0.0)
    with torch.no_grad():
        theirs.global_scale.add_(0.3 * torch.randn_like(theirs.global_scale))
        theirs.global_offset.normal_()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return theirs, ours


def run(block: nn.Module, x: Tensor, c: list[Tensor], *, rev: bool) -> list[Any]:
    x = x.clone().requires_grad_()
    (y,), log_det = block((x,), c, rev=rev)
    trained = [x, *(parameter for parameter in block.parameters() if parameter.requires_grad)]
    loss = (y.sin().flatten(1).sum(1) + log_det.square()).sum()
    grads = torch.autograd.grad(loss, trained, allow_unused=True, materialize_grads=True)
    return [y, log_det, *grads]


@pytest.mark.parametrize("conditions", [0, 2])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("option", OPTIONS)
def test_same_outputs_and_gradients(shape: tuple[int, ...], option: str, conditions: int) -> None:
    torch.manual_seed(0)
    theirs, ours = both(shape, conditions, **OPTIONS[option])
    x = torch.randn(3, *shape, dtype=torch.float64)
    c = [torch.randn(3, 2, *shape[1:], dtype=torch.float64) for _ in range(conditions)]
    for rev in (False, True):
        found, expected = run(ours, x, c, rev=rev), run(theirs, x, c, rev=rev)
        torch.testing.assert_close(found[:2], expected[:2], atol=1e-10, rtol=1e-10)
        torch.testing.assert_close(found[2:], expected[2:], atol=1e-9, rtol=1e-9)


def test_a_seed_makes_the_same_block_of_a_hard_permutation() -> None:
    states = []
    for kind in (modules.AllInOneBlock, AllInOneBlock):
        torch.manual_seed(3)
        np.random.seed(3)  # noqa: NPY002 -- FrEIA's generator
        states.append(kind([[6]], subnet_constructor=subnet(0), learned_householder_permutation=2).state_dict())
    torch.testing.assert_close(states[1], states[0])


def fast_flow(kind: type[nn.Module], shape: tuple[int, int, int], blocks: int = 4) -> nn.Module:
    """Return a flow of FastFlow (Yu et al., 2021): subnets of 3x3 and 1x1 convolutions in turn, padded by layers."""

    def net(size: int) -> Any:
        width = size // 2
        return lambda inputs, outputs: nn.Sequential(
            nn.ZeroPad2d(width),
            nn.Conv2d(inputs, inputs, size),
            nn.ReLU(),
            nn.ZeroPad2d(width),
            nn.Conv2d(inputs, outputs, size),
        )

    inn = SequenceINN(*shape)
    for index in range(blocks):
        size = 1 if index % 2 else 3
        inn.append(kind, subnet_constructor=net(size), affine_clamping=2.0, permute_soft=False)
    made: nn.Module = inn
    return made


def test_fast_flow_scores_and_trains_the_same() -> None:
    torch.manual_seed(0)
    theirs, ours = (fast_flow(kind, (32, 16, 16)) for kind in (modules.AllInOneBlock, AllInOneBlock))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x, maps = torch.randn(2, 32, 16, 16), []
    for inn in (theirs, ours):
        optimizer = torch.optim.SGD(inn.parameters(), 1e-3)
        for _ in range(3):
            optimizer.zero_grad()
            z, log_det = inn(x)
            (0.5 * z.square().sum((1, 2, 3)) - log_det).mean().backward()
            optimizer.step()
        with torch.no_grad():
            maps.append((-0.5 * inn(x)[0].square().mean(1)).exp())
    torch.testing.assert_close(maps[1], maps[0], atol=1e-5, rtol=1e-5)


def test_it_is_converted_and_adapted_as_theirs_is() -> None:
    torch.manual_seed(0)
    inn = SequenceINN(5)
    for _ in range(2):
        inn.append(AllInOneBlock, subnet_constructor=subnet(0), permute_soft=True)
    x = torch.randn(3, 5)
    torch.testing.assert_close(convert(inn).transform(x), inn(x))
    assert not [name for name, _ in convert(inn).named_modules() if name.endswith("module")]
    torch.testing.assert_close(layer_of(inn)(x), inn(x))
