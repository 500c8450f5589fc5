"""The computation of ``AllInOneBlock`` without FrEIA: inverses, log-determinants, GIN, state dicts, subnets."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from all_in_one_cases import OPTIONS, SHAPES, subnet
from torch import Tensor, nn

from invflow.interop._all_in_one import AllInOne, _rotation
from invflow.interop._hard_permutation import order_of, permuted
from invflow.interop._subnets import shift_and_scale


def block_of(shape: tuple[int, ...], conditions: int = 0, **options: Any) -> AllInOne:
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 -- the generator that the block draws from, as FrEIA's does
    dims_c = [[2, *shape[1:]]] * conditions
    block = AllInOne([list(shape)], dims_c, subnet(len(shape) - 1), **options).double()
    # a float32 rotation is orthogonal to float32 only: its determinant, which is taken as 1, would show
    if options.get("permute_soft"):
        exact = torch.from_numpy(_rotation(shape[0])).view(block.w_perm.shape)
        block.w_perm.data.copy_(exact)
        block.w_perm_inv.data.copy_(exact.transpose(0, 1))
    with torch.no_grad():
        block.global_scale.add_(0.3 * torch.randn_like(block.global_scale))
        block.global_offset.normal_()
    return block


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("option", OPTIONS)
def test_inverts_and_knows_its_jacobian(shape: tuple[int, ...], option: str) -> None:
    block = block_of(shape, 2, **OPTIONS[option])
    x = torch.randn(2, *shape, dtype=torch.float64)
    c = [torch.randn(2, 2, *shape[1:], dtype=torch.float64) for _ in range(2)]
    (z,), log_det = block((x,), c)
    (back,), reverse = block((z,), c, rev=True)
    tolerance = {"atol": 1e-3 if option == "large clamp" else 1e-9, "rtol": 1e-9}
    torch.testing.assert_close(back, x, **tolerance)
    torch.testing.assert_close(reverse, -log_det, **tolerance)

    def run(one: Tensor) -> Tensor:
        result: Tensor = block((one[None],), [each[:1] for each in c])[0][0]
        return result

    jacobian: Any = torch.autograd.functional.jacobian(run, x[0])
    expected = jacobian.reshape(x[0].numel(), -1).slogdet()[1]
    torch.testing.assert_close(log_det[0], expected, atol=1e-9, rtol=1e-9)


def test_gin_keeps_volume_and_has_no_global_scale() -> None:
    block = block_of((4, 3, 3), gin_block=True)
    x = torch.randn(3, 4, 3, 3, dtype=torch.float64)
    (z,), log_det = block((x,))
    torch.testing.assert_close(log_det, torch.zeros_like(log_det), atol=1e-12, rtol=0.0)
    with torch.no_grad():
        block.global_scale.add_(1.0)
    torch.testing.assert_close(block((x,))[0][0], z)


def test_one_channel_is_scaled_and_moved() -> None:
    block = block_of((1,))
    x = torch.randn(3, 1, dtype=torch.float64)
    (z,), log_det = block((x,))
    scale = block.global_scale_activation(block.global_scale)
    torch.testing.assert_close(z, x * scale + block.global_offset)
    torch.testing.assert_close(log_det, scale.log().flatten().expand(3))
    torch.testing.assert_close(block((z,), rev=True)[0][0], x)


def test_names_and_shapes_of_the_state_dict() -> None:
    names = {"global_scale": (1, 4, 1, 1), "global_offset": (1, 4, 1, 1)}
    fixed = {key: tuple(value.shape) for key, value in block_of((4, 2, 2)).state_dict().items() if "subnet" not in key}
    assert fixed == {**names, "w_perm": (4, 4, 1, 1), "w_perm_inv": (4, 4, 1, 1)}
    block = block_of((4, 2, 2), learned_householder_permutation=2)
    block((torch.randn(1, 4, 2, 2, dtype=torch.float64),))
    learned = {key: tuple(value.shape) for key, value in block.state_dict().items() if "subnet" not in key}
    assert learned == {**names, "w_0": (4, 4), "vk_householder": (2, 4)}
    trained = {name for name, parameter in block.named_parameters() if parameter.requires_grad}
    assert "vk_householder" in trained
    assert "w_0" not in trained


def test_copies_and_pickles_compute_the_same() -> None:
    block = AllInOne([[4]], (), nn.Linear, permute_soft=True)
    x = torch.randn(3, 4)
    for made in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        torch.testing.assert_close(made((x,)), block((x,)), atol=0.0, rtol=0.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    block = block_of((4, 3, 3), permute_soft=True).to(dtype)
    (z,), _ = block((torch.randn(2, 4, 3, 3, dtype=dtype),))
    assert z.dtype == dtype
    assert z.isfinite().all()


def paddings(size: int) -> dict[str, nn.Module]:
    width = size // 2
    return {
        "own": nn.Sequential(nn.Conv2d(12, 16, size, padding=width), nn.ReLU(), nn.Conv2d(16, 14, size, padding=width)),
        "same": nn.Sequential(nn.Conv2d(12, 16, size, padding="same"), nn.Tanh(), nn.Conv2d(16, 14, 1, bias=False)),
        "layer": nn.Sequential(
            nn.ZeroPad2d(width), nn.Conv2d(12, 16, size), nn.ReLU(), nn.ZeroPad2d(width), nn.Conv2d(16, 14, size)
        ),
        "both": nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(12, 14, size, padding=width)),
        "uneven": nn.Sequential(nn.ZeroPad2d((1, 0, 0, 1)), nn.Conv2d(12, 14, 2)),
        "strange": nn.Sequential(
            nn.Conv2d(12, 16, 3, padding=2, dilation=2), nn.Conv2d(16, 14, size, padding=width, padding_mode="reflect")
        ),
        "before another": nn.Sequential(nn.ZeroPad2d(1), nn.Sigmoid(), nn.Conv2d(12, 14, 3)),
        "nested": nn.Sequential(nn.Sequential(nn.Conv2d(12, 16, 3, padding=1), nn.ReLU()), nn.Conv2d(16, 14, 1)),
        "norm": nn.Sequential(nn.Conv2d(12, 14, 3, padding=1), nn.BatchNorm2d(14)),
        "none": nn.Conv2d(12, 14, 3, padding=1),
    }


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("kind", paddings(1))
def test_subnets_compute_what_their_modules_do(kind: str, size: int) -> None:
    torch.manual_seed(0)
    net, x = paddings(size)[kind], torch.randn(2, 12, 12, 12)
    scale, shift = net(x).chunk(2, 1)
    expected = 0.1 * torch.cat([shift, scale], 1)
    torch.testing.assert_close(shift_and_scale(net, x), expected, atol=1e-5, rtol=1e-5)
    weights = list(net.parameters())
    grads = torch.autograd.grad(shift_and_scale(net, x).square().sum(), weights)
    torch.testing.assert_close(grads, torch.autograd.grad(expected.square().sum(), weights), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("part", ["net", "convolution", "padding"])
def test_hooks_of_a_subnet_are_called(part: str) -> None:
    net = paddings(3)["layer"]
    module = {"net": net, "convolution": net[4], "padding": net[0]}[part]  # type: ignore[index]
    calls: list[nn.Module] = []
    module.register_forward_hook(lambda module, inputs, output: calls.append(module))
    shift_and_scale(net, torch.randn(1, 12, 12, 12))
    assert calls == [module]


def test_a_permutation_is_an_order_and_nothing_else_is() -> None:
    matrix, images = torch.eye(4)[[2, 0, 3, 1]], torch.randn(2, 4, 3, 3)
    order = order_of(matrix, images)
    assert order is not None
    torch.testing.assert_close(permuted(images, order), torch.einsum("oi,bihw->bohw", matrix, images))
    assert torch.autograd.gradgradcheck(permuted, (images.double().requires_grad_(), order))
    assert order_of(matrix, images[:, :, 0, 0]) is None  # vectors go to a product of matrices
    others = [2 * matrix, -matrix, matrix + 0.01, matrix[[0, 0, 1, 2]], matrix.clone().requires_grad_()]
    assert all(order_of(other, images) is None for other in others)


def test_a_matrix_that_is_replaced_unseen_is_used() -> None:
    block, x = block_of((4, 3, 3)), torch.randn(2, 4, 3, 3, dtype=torch.float64)
    before = block((x,))[0][0]
    block.w_perm.data.copy_(block.w_perm.data.roll(1, 0))
    torch.testing.assert_close(block((x,))[0][0], before.roll(1, 1))


class Scores(nn.Module):
    """Anomaly scores of feature maps, as FastFlow's: two blocks, and the mean of squares over channels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        subnets = (paddings(size)["layer"] for size in (3, 1))
        self.blocks = nn.ModuleList(
            AllInOne([[14, 12, 12]], (), lambda a, b, net=net: _fitted(net, a)) for net in subnets
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(x.shape[0])
        for block in self.blocks:
            (x,), log_det = block((x,))
            total = total + log_det
        return x.square().mean(1), total


def _fitted(net: nn.Module, inputs: int) -> nn.Module:
    """Return a subnet of 12 inputs behind a convolution that makes them."""
    return nn.Sequential(nn.Conv2d(inputs, 12, 1), net)


def test_onnx_scores_the_same() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model, x = Scores().eval(), torch.randn(2, 14, 12, 12)
    program: Any = torch.onnx.export(model, (x,), dynamo=True, dynamic_shapes=({0: "batch"},), verbose=False)
    assert {imported.domain for imported in program.model_proto.opset_import} == {""}
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for state in (x, torch.randn(5, 14, 12, 12)):
        found = session.run(None, {session.get_inputs()[0].name: state.numpy()})
        expected = [each.detach() for each in model(state)]
        torch.testing.assert_close([torch.from_numpy(each) for each in found], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dims_in": [[2, 3, 3, 3, 3]]}, r"dims_in must hold a shape of 1 to 4 dimensions, got \(2, 3, 3, 3, 3\)"),
        ({"dims_in": [[2], [2]]}, "dims_in must have one shape, got 2"),
        ({"dims_c": [[2, 3]]}, r"dims_c must have the sizes of dims_in beyond channels, \(\), got \(2, 3\)"),
        ({"subnet_constructor": None}, "subnet_constructor must be a function"),
        ({"global_affine_type": "exp"}, "global_affine_type must be one of SIGMOID, SOFTPLUS, EXP, got 'exp'"),
        ({"global_affine_init": 0.0}, "global_affine_init must be positive"),
        ({"global_affine_type": "SIGMOID", "global_affine_init": 11.0}, "between 0 and 10, exclusive, for SIGMOID"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AllInOne(**{"dims_in": [[4]], "subnet_constructor": nn.Linear, **arguments})
