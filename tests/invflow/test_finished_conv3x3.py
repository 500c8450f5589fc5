"""A 3x3 convolution with what comes after it, in one pass, against separate operators in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import invflow
from invflow.backends import cpu
from invflow.ops import _finished_conv3x3 as operator
from invflow.ops._finished_conv3x3 import NOTHING, Finish, Pointwise, finished_conv3x3

pytestmark = pytest.mark.skipif(cpu.extension is None, reason="the extension is not built")

#: Batch, inputs, outputs, outputs of the 1x1 convolution, height, width: numbers of channels beside the vectors' width;
#: ragged tiles; several blocks.
SHAPES = [
    (2, 1, 3, 5, 1, 1),
    (2, 6, 64, 64, 33, 70),
    (4, 8, 20, 33, 5, 230),
    (2, 9, 17, 16, 9, 11),
    (4, 40, 64, 20, 17, 40),
]
FORMATS = [torch.contiguous_format, torch.channels_last]


@pytest.fixture(autouse=True)
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the kernel for all shapes, not only where it is faster."""
    monkeypatch.setattr(operator, "_pays", lambda x, weight: True)


def activated(x: Tensor, slope: float) -> Tensor:
    return torch.where(x < 0, slope * x, x)


def truth_of(
    x: Tensor, weight: Tensor, bias: Tensor | None, finish: Finish, pointwise: Pointwise | None, repeat: int = 1
) -> Tensor:
    enlarged = x.double().repeat_interleave(repeat, 2).repeat_interleave(repeat, 3)
    y = F.conv2d(enlarged, weight.double(), None if bias is None else bias.double(), padding=1) * finish.share
    if finish.addend is not None:
        y = y + finish.addend.double().repeat_interleave(len(y) // len(finish.addend), 0)
    y = activated(y, finish.slope)
    if pointwise is None:
        return y
    return activated(F.conv2d(y, pointwise.weight.double(), pointwise.bias.double()), pointwise.slope)


def assert_near(actual: Tensor, truth: Tensor) -> None:
    assert actual.dtype == torch.float32
    assert actual.shape == truth.shape
    assert (actual.double() - truth).abs().max() <= 1e-5 * truth.square().mean().sqrt()


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("slope", [1.0, 0.2, 0.0])
@torch.no_grad()
def test_everything_together(shape: tuple[int, ...], slope: float, memory_format: torch.memory_format) -> None:
    batch, inputs, outputs, last, height, width = shape
    torch.manual_seed(0)
    x = torch.randn(batch, inputs, height, width).to(memory_format=memory_format)
    weight, bias = torch.randn(outputs, inputs, 3, 3) / (3 * inputs**0.5), torch.randn(outputs)
    pointwise = Pointwise(torch.randn(last, outputs, 1, 1) / outputs**0.5, torch.randn(last), slope)
    for images in (batch, batch // 2):
        addend = torch.randn(images, outputs, height, width)
        for finish in (NOTHING, Finish(addend.to(memory_format=memory_format), 0.3, slope), Finish(addend[:, :], 1.0)):
            for bias_or_none in (bias, None):
                for after in (None, pointwise):
                    truth = truth_of(x, weight, bias_or_none, finish, after)
                    found = finished_conv3x3(x, weight, bias_or_none, finish=finish, pointwise=after)
                    assert_near(found, truth)


@pytest.mark.parametrize("size", [(7, 33), (2, 200)], ids=["blocks of rows", "blocks of columns"])
@pytest.mark.parametrize("repeat", [2, 4])
@torch.no_grad()
def test_enlarged_images(repeat: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 20, *size), torch.randn(18, 20, 3, 3) / 13, torch.randn(18)
    for memory_format in FORMATS:
        addend = torch.randn(1, 18, size[0] * repeat, size[1] * repeat).to(memory_format=memory_format)
        finish = Finish(addend, 0.3, 0.2)
        found = finished_conv3x3(x, weight, bias, repeat=repeat, finish=finish)
        assert_near(found, truth_of(x, weight, bias, finish, None, repeat))


@torch.no_grad()
def test_where_the_result_is_written() -> None:
    torch.manual_seed(0)
    buffer = torch.randn(2, 50, 9, 21).to(memory_format=torch.channels_last)
    before, weight = buffer.clone(), torch.randn(12, 20, 3, 3) / 13
    truth = truth_of(before[:, :20], weight, None, Finish(slope=0.2), None)
    out = buffer[:, 30:42]
    assert finished_conv3x3(buffer[:, :20], weight, finish=Finish(slope=0.2), out=out) is out
    assert_near(out, truth)
    torch.testing.assert_close(buffer[:, :30], before[:, :30], rtol=0, atol=0)
    torch.testing.assert_close(buffer[:, 42:], before[:, 42:], rtol=0, atol=0)
    for memory_format in FORMATS:
        y = finished_conv3x3(buffer[:, :20], weight, memory_format=memory_format)
        assert y.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("repeat", [1, 2])
@torch.no_grad()
def test_a_result_of_any_strides_is_written_where_it_is(repeat: int) -> None:
    torch.manual_seed(0)
    x, weight, finish = torch.randn(2, 12, 8, 10), torch.randn(9, 12, 3, 3) / 10, Finish(slope=0.2)
    height, width = 8 * repeat, 10 * repeat
    truth = truth_of(x, weight, None, finish, None, repeat)
    for buffer, out in [
        (rows := torch.zeros(2, 9, width, height), rows.transpose(2, 3)),
        (pixels := torch.zeros(2, 9, height, 2 * width), pixels[..., ::2]),
        (images := torch.zeros(9, height, width, 2), images.permute(3, 0, 1, 2)),
    ]:
        assert finished_conv3x3(x, weight, repeat=repeat, finish=finish, out=out) is out
        assert_near(out, truth)
        assert buffer.count_nonzero() == out.count_nonzero()


@torch.no_grad()
def test_an_image_may_be_overwritten_by_its_result() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(1, 12, 60, 70), torch.randn(12, 12, 3, 3) / 10
    truth = truth_of(x, weight, None, NOTHING, None)
    assert finished_conv3x3(x, weight, out=x) is x
    assert_near(x, truth)


@pytest.mark.parametrize(
    "wrong",
    [
        {"weight": torch.ones(12, 13, 3, 3)},
        {"bias": torch.ones(11)},
        {"finish": Finish(torch.ones(2, 11, 20, 20))},
        {"finish": Finish(torch.ones(2, 12, 10, 20))},
        {"finish": Finish(torch.ones(3, 12, 20, 20))},
        {"pointwise": Pointwise(torch.ones(4, 13, 1, 1), torch.ones(4))},
        {"pointwise": Pointwise(torch.ones(4, 12, 1, 1), torch.ones(5))},
    ],
    ids=["weight", "bias", "channels of addend", "size of addend", "images of addend", "pointwise", "pointwise bias"],
)
@torch.no_grad()
def test_what_does_not_fit_is_refused_and_nothing_beyond_a_tensor_is_read(wrong: dict[str, Any]) -> None:
    with pytest.raises((RuntimeError, ValueError)):
        finished_conv3x3(torch.ones(2, 12, 20, 20), **{"weight": torch.ones(12, 12, 3, 3), **wrong})


@torch.no_grad()
def test_infinite_numbers_are_rectified_as_by_torch() -> None:
    """A ReLU of minus infinity is 0, not 0 times infinity."""
    x, weight = torch.zeros(1, 2, 4, 4), torch.ones(3, 2, 3, 3)
    addend = torch.tensor([-torch.inf, torch.inf, torch.nan])[None, :, None, None].expand(1, 3, 4, 4)
    y = finished_conv3x3(x, weight, finish=Finish(addend.contiguous(), 1.0, 0.0))
    assert y[0, 0].eq(0).all()
    assert y[0, 1].eq(torch.inf).all()
    assert y[0, 2].isnan().all()


def test_any_number_of_threads_gives_the_same_bits() -> None:
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    finish, pointwise = Finish(torch.randn(1, 20, 40, 50), 1.0, 0.0), Pointwise(torch.randn(8, 20, 1, 1), torch.ones(8))
    try:
        for inputs in (6, 24):
            x, weight = torch.randn(3, inputs, 40, 50), torch.randn(20, inputs, 3, 3)
            results = []
            for number in (1, 3):
                torch.set_num_threads(number)
                with torch.no_grad():
                    results.append(finished_conv3x3(x, weight, finish=finish, pointwise=pointwise))
            torch.testing.assert_close(*results, rtol=0, atol=0)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_composition(dtype: torch.dtype) -> None:
    """Other dtypes, other backends and gradients take PyTorch's operators."""
    torch.manual_seed(0)
    x, weight, bias = torch.randn(4, 6, 9, 11), torch.randn(8, 6, 3, 3) / 8, torch.randn(8)
    addend, pointwise = torch.randn(2, 8, 9, 11), Pointwise(torch.randn(5, 8, 1, 1), torch.randn(5), 0.0)
    for finish in (NOTHING, Finish(slope=0.2), Finish(addend, 0.3, 0.0), Finish(torch.randn(4, 8, 9, 11), 0.3)):
        truth = truth_of(x, weight, bias, finish, pointwise)
        addend = None if finish.addend is None else finish.addend.to(dtype)
        arguments = [tensor.to(dtype) for tensor in (x, weight, bias)]
        after = Pointwise(pointwise.weight.to(dtype), pointwise.bias.to(dtype), 0.0)
        with invflow.use_backend("reference"):
            found = finished_conv3x3(*arguments, finish=finish._replace(addend=addend), pointwise=after)
        torch.testing.assert_close(found.double(), truth, rtol=1e-4, atol=1e-5)
    weight.requires_grad_()
    finished_conv3x3(x, weight, bias, finish=Finish(slope=0.2)).sum().backward()
    expected = torch.autograd.grad(truth_of(x, weight, bias, Finish(slope=0.2), None).sum(), weight)[0]
    torch.testing.assert_close(weight.grad, expected, rtol=1e-4, atol=1e-3)
