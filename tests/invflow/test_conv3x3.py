"""The 3x3 convolution by Winograd's algorithm, against float64 convolutions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import invflow
from invflow.backends import cpu
from invflow.ops import _conv3x3 as operator
from invflow.ops import conv3x3, conv3x3_gradients

pytestmark = pytest.mark.skipif(cpu.extension is None, reason="the extension is not built")

#: Batch, inputs, outputs, height, width: single pixels, ragged tiles, channels beside the vectors' width, wide images.
SHAPES = [
    (1, 1, 1, 1, 1),
    (2, 5, 7, 9, 11),
    (3, 16, 32, 5, 3),
    (1, 64, 48, 1, 70),
    (1, 24, 33, 17, 40),
    (1, 3, 64, 33, 230),
    (2, 80, 20, 20, 20),
]
#: The largest error that a result may have, in units of the root mean square of the results.
TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the kernel for all shapes, not only where it is faster."""
    monkeypatch.setattr(operator, "_pays", lambda x, weight: x.numel() > 0 and weight.numel() > 0)


def tensors_of(shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    batch, inputs, outputs, height, width = shape
    torch.manual_seed(seed)
    weight = torch.randn(outputs, inputs, 3, 3) / (3 * inputs**0.5)
    return torch.randn(batch, inputs, height, width), weight, torch.randn(outputs)


def assert_near(actual: Tensor, truth: Tensor) -> None:
    assert actual.dtype == torch.float32
    assert actual.shape == truth.shape
    scale = truth.square().mean().sqrt().item()
    assert (actual.double() - truth).abs().max().item() <= TOLERANCE * scale


def in_layout(x: Tensor, layout: str) -> Tensor:
    if layout == "channels_last":
        return x.to(memory_format=torch.channels_last)
    if layout == "slice":
        whole = torch.full((x.shape[0], x.shape[1] + 3, *x.shape[2:]), torch.nan)
        whole[:, 2:-1] = x
        return whole[:, 2:-1]
    if layout == "rows apart":
        whole = torch.full((*x.shape[:3], x.shape[3] + 2), torch.nan)
        whole[..., 1:-1] = x
        return whole[..., 1:-1]
    if layout == "transposed":
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    return x


def calls_of_kernel(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows with every call of the kernel."""
    calls: list[str] = []
    for name in ("conv3x3", "weight_gradient"):
        kernel = getattr(operator.kernels, name)

        def counted(*args: object, _name: str = name, _kernel: object = kernel) -> Tensor:
            calls.append(_name)
            return _kernel(*args)  # type: ignore[operator]

        monkeypatch.setattr(operator.kernels, name, counted)
    return calls


def plain(x: Tensor, weight: Tensor, bias: Tensor | None, repeat: int = 1) -> Tensor:
    return F.conv2d(x.repeat_interleave(repeat, 2).repeat_interleave(repeat, 3), weight, bias, padding=1)


@pytest.mark.parametrize("repeat", [1, 2, 4])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "slice", "rows apart", "transposed"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(
    shape: tuple[int, ...], layout: str, repeat: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = calls_of_kernel(monkeypatch)
    x, weight, bias = tensors_of(shape)
    grad = torch.randn(shape[0], shape[2], repeat * shape[3], repeat * shape[4])
    leaves = [tensor.double().requires_grad_() for tensor in (x, weight, bias)]
    truth = plain(*leaves, repeat)
    true_grads = torch.autograd.grad(truth, leaves, grad.double())
    leaves = [tensor.requires_grad_() for tensor in (in_layout(x, layout), weight, bias)]
    y = conv3x3(*leaves, repeat=repeat)
    found = torch.autograd.grad(y, leaves, in_layout(grad, layout))
    assert calls == ["conv3x3", "conv3x3", "weight_gradient"]
    for result, of in ((y, x), (found[0], grad)):
        last = layout == "channels_last"
        assert result.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format), of.shape
    assert_near(y.detach(), truth.detach())
    for actual, expected in zip(found, true_grads, strict=True):
        assert_near(actual, expected)


@pytest.mark.parametrize("repeat", [2, 3, 4])
def test_repetition_in_plain_pytorch(repeat: int) -> None:
    tensors = [tensor.double().requires_grad_() for tensor in tensors_of((2, 3, 4, 5, 6))]
    y, expected = conv3x3(*tensors, repeat=repeat), plain(*tensors, repeat)
    torch.testing.assert_close(y, expected)
    grads = conv3x3_gradients(torch.ones_like(y), *tensors[:2], (True, True, True), repeat=repeat)
    torch.testing.assert_close(grads, torch.autograd.grad(expected.sum(), tensors))


def test_repetition_rounds_like_a_direct_sum() -> None:
    x, weight, bias = tensors_of((1, 64, 32, 12, 12))
    truth = plain(x.double(), weight.double(), bias.double(), 2)
    error, usual = (
        (y.double() - truth).norm().item() for y in (conv3x3(x, weight, bias, repeat=2), plain(x, weight, bias, 2))
    )
    assert error <= 1.5 * usual


@pytest.mark.parametrize("inputs", [32, 192])
def test_error_is_that_of_the_algorithm(inputs: int) -> None:
    x, weight, bias = tensors_of((1, inputs, 32, 24, 24))
    truth = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    error, usual = (
        (y.double() - truth).norm().item() for y in (conv3x3(x, weight, bias), F.conv2d(x, weight, bias, padding=1))
    )
    assert error <= 4 * usual
    assert error <= 8e-7 * truth.norm().item()


def test_bias_may_be_left_out() -> None:
    x, weight, bias = tensors_of((1, 3, 20, 6, 7))
    torch.testing.assert_close(conv3x3(x, weight) + bias[:, None, None], conv3x3(x, weight, bias))


def test_no_images() -> None:
    leaves = [tensor.requires_grad_() for tensor in tensors_of((0, 3, 6, 4, 5))]
    y = conv3x3(*leaves)
    assert y.shape == (0, 6, 4, 5)
    y.sum().backward()
    assert [leaf.grad.abs().sum().item() for leaf in leaves if leaf.grad is not None] == [0, 0, 0]


def test_result_is_written_where_it_is_wanted() -> None:
    x, weight, bias = tensors_of((2, 5, 20, 9, 18))
    whole = torch.zeros(2, 30, 9, 18)
    found = conv3x3(x, weight, bias, out=whole[:, 4:24])
    assert found.data_ptr() == whole[:, 4:].data_ptr()
    assert torch.equal(whole[:, 4:24], conv3x3(x, weight, bias))
    assert not whole[:, :4].any()
    assert not whole[:, 24:].any()
    with invflow.use_backend("reference"):
        conv3x3(x, weight, bias, out=whole[:, :20])
    torch.testing.assert_close(whole[:, :20], F.conv2d(x, weight, bias, padding=1))


def test_defaults_of_torch_do_not_touch_the_result() -> None:
    x, weight, bias = (tensor.requires_grad_() for tensor in tensors_of((2, 5, 20, 9, 18)))

    def results() -> list[Tensor]:
        y = conv3x3(x, weight, bias)
        return [y, *torch.autograd.grad(y.sum(), [x, weight])]

    expected = results()
    try:
        torch.set_default_dtype(torch.float64)
        with torch.device("meta"):
            found = results()
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_what_is_not_finite_stays_near(value: float) -> None:
    x, weight, _ = tensors_of((1, 3, 2, 20, 20))
    expected = conv3x3(x, weight)
    x[0, 1, 9, 10] = value
    y = conv3x3(x, weight)
    assert not y[0, :, 8:11, 9:12].isfinite().any()
    far = torch.ones(20, 20, dtype=torch.bool)
    far[4:15, 5:16] = False
    assert torch.equal(y[..., far], expected[..., far])


def test_threads_do_not_change_a_bit() -> None:
    x, weight, bias = tensors_of((2, 40, 40, 30, 50))
    threads = torch.get_num_threads()
    found = []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            y = conv3x3(x, weight, bias)
            found.append((y, *conv3x3_gradients(y, x, weight, (True, True, False))[:2]))
    finally:
        torch.set_num_threads(threads)
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


@pytest.mark.parametrize("repeat", [1, 2])
def test_second_derivative(repeat: int) -> None:
    tensors = [tensor.requires_grad_() for tensor in tensors_of((1, 2, 3, 4, 5))]
    found = []
    for function in (conv3x3, plain):
        grads = torch.autograd.grad(function(*tensors, repeat=repeat).square().sum(), tensors, create_graph=True)
        found.append(torch.autograd.grad(sum(grad.square().sum() for grad in grads), tensors))
    for actual, expected in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_other_calls_are_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = calls_of_kernel(monkeypatch)
    x, weight, bias = tensors_of((2, 3, 4, 5, 6))
    expected = F.conv2d(x, weight, bias, padding=1)
    doubles = [tensor.double() for tensor in (x, weight, bias)]
    assert torch.equal(conv3x3(*doubles), F.conv2d(*doubles, padding=1))
    with invflow.use_backend("reference"):
        assert torch.equal(conv3x3(x, weight, bias), expected)
    with torch.autocast("cpu"):
        assert conv3x3(x, weight, bias).dtype == torch.bfloat16
    assert torch.equal(torch.func.vmap(conv3x3, (0, None, None))(x[:, None], weight, bias)[:, 0], expected)
    torch.testing.assert_close(
        torch.func.jvp(lambda t: conv3x3(t, weight), (x,), (x,))[1], expected - bias[:, None, None]
    )
    assert conv3x3(x.to("meta"), weight.to("meta")).shape == expected.shape
    assert calls == []


def test_rule_leaves_small_images_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    calls = calls_of_kernel(monkeypatch)
    conv3x3(*tensors_of((1, 64, 64, 2, 2)))
    conv3x3(*tensors_of((1, 1, 1, 40, 40)))
    assert calls == []
    conv3x3(*tensors_of((1, 64, 32, 40, 40)))
    assert calls == ["conv3x3"]


def test_opcheck() -> None:
    x, weight, bias = tensors_of((2, 3, 4, 5, 6))
    ops = torch.ops.invflow
    for images in (x, x.to(memory_format=torch.channels_last)):
        torch.library.opcheck(ops.conv3x3.default, (images, weight, bias, 2, False))
        torch.library.opcheck(ops.conv3x3.default, (images, weight.transpose(0, 1), None, 1, True))
        torch.library.opcheck(ops.conv3x3_weight_gradient.default, (images, torch.randn(2, 4, 5, 6), 1))


def test_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    found = []
    for function in (conv3x3, torch.compile(conv3x3, backend="aot_eager", fullgraph=True)):
        leaves = [tensor.requires_grad_() for tensor in tensors_of((2, 3, 4, 5, 6))]
        y = function(*leaves)
        found.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
    torch.testing.assert_close(*found)


def test_compiled_code_runs_the_kernel() -> None:
    torch.compiler.reset()
    called: list[object] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        called.extend(node.target for node in graph.graph.nodes)
        return graph

    torch.compile(conv3x3, backend=backend, fullgraph=True)(*tensors_of((2, 3, 4, 5, 6)))
    assert torch.ops.invflow.conv3x3 in called or torch.ops.invflow.conv3x3.default in called


@pytest.mark.parametrize(
    ("x", "weight", "bias", "error", "message"),
    [
        (torch.ones(1, 2, 3), torch.ones(1, 2, 3, 3), None, ValueError, "x must have 4 dimensions"),
        (
            torch.ones(1, 2, 3, 3),
            torch.ones(4, 2, 5, 5),
            None,
            ValueError,
            r"weight must have shape \(outputs, 2, 3, 3\)",
        ),
        (torch.ones(1, 2, 3, 3), torch.ones(4, 3, 3, 3), None, ValueError, "for x with 2 channels"),
        (torch.ones(1, 2, 3, 3), torch.ones(4, 2, 3, 3), torch.ones(3), ValueError, r"bias must have shape \(4,\)"),
        (torch.ones(1, 2, 3, 3).int(), torch.ones(4, 2, 3, 3), None, TypeError, "x must have a floating-point dtype"),
    ],
)
def test_errors(x: Tensor, weight: Tensor, bias: Tensor | None, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        conv3x3(x, weight, bias)


def test_errors_of_out() -> None:
    x, weight, bias = tensors_of((1, 2, 3, 4, 5))
    with pytest.raises(ValueError, match=r"out must have shape \(1, 3, 4, 5\)"):
        conv3x3(x, weight, bias, out=torch.empty(1, 3, 5, 4))
    with pytest.raises(RuntimeError, match="out must be None where a gradient is required"):
        conv3x3(x, weight.requires_grad_(), bias, out=torch.empty(1, 3, 4, 5))
