"""Blocks of vectors in one call each way: the same as layer by layer, whoever looks on."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from all_in_one_cases import subnet
from torch import Tensor, nn

import invflow
from invflow.interop._all_in_one import AllInOne, _rotation
from invflow.interop._subnets import perceptron_of
from invflow.interop._vector_block import VectorBlock

CALLS = ("forward", "inverse")


def block_of(width: int = 5, conditions: int = 0, **options: Any) -> AllInOne:
    torch.manual_seed(0)
    block = AllInOne([[width]], [[2]] * conditions, subnet(0), permute_soft=True, **options).double()
    exact = torch.from_numpy(_rotation(width))
    block.w_perm.data, block.w_perm_inv.data = exact, exact.T.contiguous()
    with torch.no_grad():
        for parameter in (block.global_scale, block.global_offset, *block.subnet.parameters()):
            parameter.add_(0.3 * torch.randn_like(parameter))
    return block


def general(block: AllInOne, x: Tensor, c: Any = (), *, rev: bool = False) -> tuple[Tensor, Tensor]:
    """Return the block's outputs by plain PyTorch."""
    with invflow.use_backend("reference"):
        (y,), log_det = block((x,), c, rev=rev)
    return y, log_det


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the calls that the kernel took."""
    made: list[str] = []
    for name in CALLS:
        real = getattr(VectorBlock, name)

        def record(*given: Any, name: str = name, real: Any = real) -> Any:
            found = real(*given)
            if found is not None:
                made.append(name)
            return found

        monkeypatch.setattr(VectorBlock, name, record)
    return made


@pytest.mark.parametrize("kind", ["SOFTPLUS", "SIGMOID", "EXP"])
@pytest.mark.parametrize("conditions", [0, 1, 2])
def test_same_as_plain_pytorch(calls: list[str], kind: str, conditions: int) -> None:
    block = block_of(7, conditions, global_affine_type=kind)
    x = torch.randn(7, 6, dtype=torch.float64).t().requires_grad_()  # rows that are not side by side
    c = [torch.randn(6, 2, dtype=torch.float64, requires_grad=True) for _ in range(conditions)]
    inputs = [x, *c, *(parameter for parameter in block.parameters() if parameter.requires_grad)]
    results = []
    for backend in ("auto", "reference"):
        with invflow.use_backend(backend):
            (y,), log_det = block((x,), c)
        results.append([y, log_det, *torch.autograd.grad((y.sin().sum(1) * log_det).sum(), inputs)])
    assert calls == ["forward"]
    torch.testing.assert_close(results[0], results[1], atol=1e-11, rtol=1e-11)
    with torch.no_grad():
        (back,), log_det = block((results[0][0],), c, rev=True)
    assert calls == ["forward", "inverse"]
    torch.testing.assert_close([back, log_det], [x.detach(), -results[0][1].detach()], atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_many_rows_are_computed_in_parts(calls: list[str], dtype: torch.dtype) -> None:
    block, batch, width = block_of(33, 1).to(dtype), 1030, 33
    x = torch.randn(batch, width, dtype=dtype, requires_grad=True)
    c = torch.randn(2, batch, dtype=dtype).t().requires_grad_()  # rows that are not side by side
    inputs = [x, c, *(parameter for parameter in block.parameters() if parameter.requires_grad)]
    grads = torch.randn(1, width, dtype=dtype).expand(batch, width), torch.randn(2 * batch, dtype=dtype)[::2]
    results = []
    for backend in ("auto", "reference"):
        with invflow.use_backend(backend):
            (y,), log_det = block((x,), [c])
        results.append([y, log_det, *torch.autograd.grad((y, log_det), inputs, grads)])
    assert calls == ["forward"]
    tolerance = 1e-11 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(results[0], results[1], atol=tolerance, rtol=tolerance)


def test_numbers_that_are_not_finite_stay_in_their_rows(calls: list[str]) -> None:
    block, x = block_of(5), torch.randn(9, 5, dtype=torch.float64)
    x[1, 0], x[2, 4], x[4, 1], x[5, 3] = torch.inf, torch.nan, torch.nan, -torch.inf
    for rev in (False, True):
        with torch.no_grad():
            (y,), log_det = block((x,), rev=rev)
        torch.testing.assert_close((y, log_det), general(block, x, rev=rev), equal_nan=True)
    x.requires_grad_()
    y, log_det = block((x,))[0][0], block((x,))[1]
    expected_y, expected_log_det = general(block, x)
    (found,) = torch.autograd.grad(y.sum() + log_det.sum(), [x])
    (expected,) = torch.autograd.grad(expected_y.sum() + expected_log_det.sum(), [x])
    finite = [0, 3, 6, 7, 8]
    torch.testing.assert_close(found[finite], expected[finite])
    assert calls == ["forward", "inverse", "forward", "forward"]


@pytest.mark.parametrize("shift", [-60.0, 0.0, 60.0])
@pytest.mark.parametrize("kind", ["SOFTPLUS", "SIGMOID", "EXP"])
def test_scales_of_any_size(kind: str, shift: float) -> None:
    block, x = block_of(4, global_affine_type=kind), torch.randn(3, 4, dtype=torch.float64)
    with torch.no_grad():
        block.global_scale.add_(shift)
    found, expected = block((x,)), general(block, x)
    torch.testing.assert_close((found[0][0], found[1]), expected, atol=1e-10, rtol=1e-10)
    (of_raw,) = torch.autograd.grad(found[0][0].sum() + found[1].sum(), [block.global_scale])
    (expected_of_raw,) = torch.autograd.grad(expected[0].sum() + expected[1].sum(), [block.global_scale])
    torch.testing.assert_close(of_raw, expected_of_raw, atol=1e-9, rtol=1e-9)


def test_what_the_kernel_declines_goes_the_general_way(calls: list[str]) -> None:
    x = torch.randn(3, 4, dtype=torch.float64)
    deep = [layer for _ in range(20) for layer in (nn.Linear(2, 2), nn.ReLU())]
    narrow = nn.Linear(4, 2).double()
    turned = block_of(4)
    net: Any = turned.subnet
    net[0].weight = nn.Parameter(net[0].weight.detach().t().contiguous().t())
    many = block_of(4)
    many.subnet = nn.Sequential(*deep, nn.Linear(2, 4)).double()
    learned = block_of(4)
    learned.w_perm.requires_grad_()
    for block in (turned, many, learned):
        (y,), log_det = block((x,))
        torch.testing.assert_close((y, log_det), general(block, x))
    assert not calls
    many.subnet = nn.Sequential(narrow)
    with pytest.raises(RuntimeError):
        many((x,))


def test_the_inverse_with_gradients_goes_the_general_way(calls: list[str]) -> None:
    block, y = block_of(), torch.randn(3, 5, dtype=torch.float64)
    (x,), log_det = block((y,), rev=True)
    assert x.requires_grad
    assert log_det.requires_grad
    assert not calls
    block.requires_grad_(False)
    (same,), _ = block((y,), rev=True)
    torch.testing.assert_close(same, x.detach())
    assert calls == ["inverse"]


def test_the_inverse_takes_the_matrix_that_is_stored_for_it() -> None:
    block, y = block_of(), torch.randn(3, 5, dtype=torch.float64)
    block.w_perm_inv.data.mul_(2.0)
    with torch.no_grad():
        (x,), _ = block((y,), rev=True)
    torch.testing.assert_close(x, general(block, y, rev=True)[0])


def test_gradients_of_gradients() -> None:
    block, x = block_of(4), torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    weights = [block.global_scale, *block.subnet.parameters()]

    def run(x: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
        (y,), log_det = block((x,))
        return y, log_det

    assert torch.autograd.gradcheck(run, (x, *weights))
    assert torch.autograd.gradgradcheck(run, (x, *weights))


def test_only_gradients_that_are_wanted() -> None:
    block, x = block_of(4), torch.randn(3, 4, dtype=torch.float64)
    block.requires_grad_(False)
    weight: Any = block.subnet[2].weight  # type: ignore[index]
    weight.requires_grad_()
    (found,) = torch.autograd.grad(block((x,))[0][0].square().sum(), [weight])
    (expected,) = torch.autograd.grad(general(block, x)[0].square().sum(), [weight])
    torch.testing.assert_close(found, expected)
    x.requires_grad_()
    weight.requires_grad_(False)
    (of_x,) = torch.autograd.grad(block((x,))[0][0].square().sum(), [x])
    (of_x_too,) = torch.autograd.grad(general(block, x)[0].square().sum(), [x])
    torch.testing.assert_close(of_x, of_x_too)


def test_transforms_see_plain_operations(calls: list[str]) -> None:
    block, x = block_of(4), torch.randn(3, 4, dtype=torch.float64)

    def run(one: Tensor) -> Tensor:
        result: Tensor = block((one[None],))[0][0][0]
        return result

    expected = general(block, x)[0]
    torch.testing.assert_close(torch.vmap(run)(x), expected)
    jacobian: Any = torch.func.jacrev(run)(x[0])
    torch.testing.assert_close(torch.func.jacfwd(run)(x[0]), jacobian)
    assert not calls
    batched: Any = torch.autograd.functional.jacobian(run, x[0], vectorize=True)
    torch.testing.assert_close(batched, jacobian)
    assert calls


@pytest.mark.parametrize("part", [0, 1, 2, None])
def test_hooks_of_the_perceptron_are_called(part: int | None) -> None:
    block, x = block_of(4), torch.randn(3, 4, dtype=torch.float64)
    net: Any = block.subnet
    seen: list[nn.Module] = []
    module = net if part is None else net[part]
    module.register_forward_hook(lambda module, *_: seen.append(module))
    block((x,))
    assert seen == [module]


def test_an_overwritten_weight_is_noticed() -> None:
    block, x = block_of(4), torch.randn(3, 4, dtype=torch.float64)
    (y,), _ = block((x,))
    with torch.no_grad():
        block.global_scale.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_perceptron_is_nothing_else() -> None:
    linear, relu = nn.Linear(2, 2), nn.ReLU()
    assert perceptron_of(nn.Sequential(linear)) is not None
    assert perceptron_of(nn.Sequential(nn.Sequential(linear, relu), nn.Linear(2, 4))) is not None
    normed = torch.nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    others = [
        nn.Sequential(),
        nn.Sequential(linear, relu),
        nn.Sequential(relu, linear),
        nn.Sequential(linear, linear),
        nn.Sequential(linear, nn.GELU(), linear),
        nn.Sequential(nn.Linear(2, 2, bias=False)),
        nn.Sequential(normed),
        linear,
    ]
    assert [perceptron_of(other) for other in others] == [None] * len(others)


class Mapped(nn.Module):
    """One direction of a block, as a model for export."""

    def __init__(self, width: int, *, rev: bool) -> None:
        super().__init__()
        self.block, self.rev = block_of(width).float(), rev

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        (y,), log_det = self.block((x,), rev=self.rev)
        return y, log_det


@pytest.mark.filterwarnings("ignore")  # of the older exporter, which torch calls deprecated
@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize("rev", [False, True])
@pytest.mark.parametrize("width", [4, 5])
def test_onnx_takes_any_batch(width: int, rev: bool, dynamo: bool) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model, x, file = Mapped(width, rev=rev).eval(), torch.randn(2, width), io.BytesIO()
    if dynamo:
        program: Any = torch.onnx.export(model, (x,), dynamo=True, dynamic_shapes=({0: "batch"},), verbose=False)
        file.write(program.model_proto.SerializeToString())
    else:
        torch.onnx.export(model, (x,), file, dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "batch"}})
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    for state in (x, torch.randn(7, width)):
        found = session.run(None, {session.get_inputs()[0].name: state.numpy()})
        expected = [each.detach() for each in model(state)]
        torch.testing.assert_close([torch.from_numpy(each) for each in found], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("width", [4, 5])
def test_autocast_leaves_the_state_in_its_dtype(width: int) -> None:
    block = block_of(width).float()
    x = torch.randn(3, width)
    with torch.autocast("cpu", torch.bfloat16):
        (y,), log_det = block((x,))
    (expected,), _ = block((x,))
    assert (y.dtype, log_det.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(y, expected, atol=0.05, rtol=0.05)
