"""Memory formats, copies and threads: what the kernels read where it is, and what depends on the number of threads."""

from __future__ import annotations

import pytest
import torch
from copies import Copies
from op_cases import laid_out
from under_test import each_kernels

from invflow import Squeeze, affine_coupling, channel_affine, flow_step, gaussian_split
from invflow.backends import cpu
from invflow.backends.protocol import Call, Form, Settings

NCHW, CHANNELS_LAST = torch.contiguous_format, torch.channels_last
STEP = Settings(
    Form("sigmoid", 1e-4, "shift_then_scale", "cross"), Form("exp", 0.0, "scale_then_shift", "split"), 1, False
)
NATIVE = ["contiguous", "channels_last", "sliced channels", "expanded", "batch last"]


def in_layout(layout, *shape):
    return laid_out(layout, torch.randn(shape))


@pytest.mark.parametrize("layout", [*NATIVE, "sliced pixels", "transposed"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_only_layouts_whose_rows_do_not_line_up_are_copied_and_once(layout, direction):
    x, h, injector, grad_y = (in_layout(layout, 2, channels, 5, 7) for channels in (3, 4, 6, 3))
    call = Call(x, torch.eye(3), torch.zeros(3), h, injector, STEP)
    with Copies() as copies:
        if direction == "forward":
            cpu.flow_step(call)
        else:
            cpu.flow_step_backward(grad_y, torch.ones(2), call)
    assert copies.count == (0 if layout in NATIVE else 3 if direction == "forward" else 4)


@each_kernels
@pytest.mark.parametrize("channels", [6, 40])
@pytest.mark.parametrize("given", [NCHW, CHANNELS_LAST], ids=str)
def test_results_and_gradients_keep_the_memory_format(given, channels, kernels):
    x, h, injector = (
        torch.randn(2, count, 4, 6, device=kernels.device).to(memory_format=given).requires_grad_()
        for count in (channels, channels, 2 * channels)
    )
    matrix = torch.randn(channels, channels, device=kernels.device) / channels**0.5
    shift = torch.randn(channels, device=kernels.device)
    calls = {
        "channel_affine": lambda backend: channel_affine(x, matrix, shift, backend=backend),
        "affine_coupling": lambda backend: affine_coupling(x, h, backend=backend)[0],
        "flow_step": lambda backend: flow_step(x, matrix, shift, h, injector, backend=backend)[0],
        "gaussian_split": lambda backend: gaussian_split(x, injector, backend=backend)[0],
    }
    for name, call in calls.items():
        y, expected = call(kernels.backend), call("reference")
        assert y.is_contiguous(memory_format=given), name
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
        for leaf in (x, h, injector):
            leaf.grad = None
        y.square().sum().backward()
        gradients = [leaf.grad for leaf in (x, h, injector) if leaf.grad is not None]
        assert gradients
        for gradient in gradients:
            assert gradient.is_contiguous(memory_format=given), name


def test_results_of_some_channels_of_a_channels_last_state_are_channels_last():
    x = torch.randn(2, 9, 4, 6).to(memory_format=CHANNELS_LAST)[:, 2:8]
    assert not x.is_contiguous(memory_format=CHANNELS_LAST)
    for backend in ("cpu", "reference"):
        y = channel_affine(x, torch.eye(6), torch.zeros(6), backend=backend)
        assert torch.equal(y, x)
        assert y.is_contiguous(memory_format=CHANNELS_LAST)
        assert channel_affine(x[:, :, :1, :1], torch.eye(6), torch.zeros(6), backend=backend).is_contiguous()


@each_kernels
@pytest.mark.parametrize("inner", ["contiguous", "channels_last", "transposed", "expanded"])
def test_every_tensor_may_have_a_layout_of_its_own(inner, kernels):
    x, h, grad_y = (torch.randn(2, channels, 9, 33, device=kernels.device) for channels in (5, 4, 5))
    matrix, shift = torch.randn(5, 5, device=kernels.device), torch.randn(5, device=kernels.device)

    def run(x, h, grad_y):
        leaves = [x.detach().requires_grad_(), h.detach().requires_grad_()]
        y, log_det = flow_step(leaves[0], matrix, shift, leaves[1], backend=kernels.backend)
        return y, log_det, *torch.autograd.grad([y, log_det], leaves, [grad_y, torch.ones_like(log_det)])

    if inner == "expanded":
        x, h, grad_y = x[:1].repeat(2, 1, 1, 1), h[:1].repeat(2, 1, 1, 1), grad_y[:1].repeat(2, 1, 1, 1)
    expected = run(x, h, grad_y)
    for which in range(3):
        tensors = [laid_out(inner, t) if i == which else t for i, t in enumerate((x, h, grad_y))]
        torch.testing.assert_close(run(*tensors), expected, rtol=1e-6, atol=1e-6)


SHAPES = [(1, 12, 40, 70), (3, 48, 20, 21), (2, 5, 1, 3), (5, 3, 64, 64)]


def step_and_gradients(shape, threads, dtype=torch.float32):
    torch.set_num_threads(threads)
    batch, channels, height, width = shape
    generator = torch.Generator().manual_seed(3)

    def random(*size):
        return torch.randn(size, generator=generator, dtype=dtype).requires_grad_()

    x, matrix, shift = random(*shape), random(channels, channels), random(channels)
    h, injector = random(batch, 2 * (channels // 2), height, width), random(1, 2 * channels, height, width)
    leaves = [x, matrix, shift, h, injector]
    y, log_det = flow_step(*leaves, backend="cpu")
    return [y, log_det, *torch.autograd.grad(y.sum() + log_det.sum(), leaves)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_state_and_log_det_do_not_depend_on_the_number_of_threads(shape):
    one, *more = (step_and_gradients(shape, threads) for threads in (1, 2, 3, 5))
    names = ["y", "log_det", "gradient of x", "of matrix", "of shift", "of coupling", "of injector"]
    for other in more:
        for name, expected, actual in zip(names, one, other, strict=True):
            if name in ("of matrix", "of shift"):
                # sums over all pixels, which threads share
                torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
            else:
                assert torch.equal(actual, expected), name


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_result_is_the_same_in_every_run(shape, threads):
    first, second = (step_and_gradients(shape, threads) for _ in range(2))
    for expected, actual in zip(first, second, strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.skipif(cpu.extension is None, reason="needs the extension invflow._C")
@pytest.mark.parametrize("size", [(512, 520), (517, 517)], ids=["aligned rows", "rows of an odd length"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_results_larger_than_the_caches(dtype, size):
    """More than 4 MiB are written past the caches, by instructions that end the process at unaligned addresses."""
    x, h, matrix, shift = (torch.randn(shape, dtype=dtype) for shape in ((1, 4, *size), (1, 4, *size), (4, 4), (4,)))
    found = []
    for backend in ("cpu", "reference"):
        leaves = [tensor.clone().requires_grad_() for tensor in (x, matrix, shift, h)]
        y, log_det = flow_step(*leaves, backend=backend)
        grads = torch.autograd.grad([y, log_det], leaves, [x, torch.ones_like(log_det)])
        found.append([y, log_det / x[0].numel(), *(grad / grad.abs().max() for grad in grads)])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels", [slice(None), slice(0, 3), slice(2, 5)], ids=str)
@pytest.mark.parametrize("factor", [2, 3])
def test_a_squeeze_keeps_the_memory_format(channels, factor):
    squeeze, plain = Squeeze(factor), torch.randn(2, 5, 6, 12)[:, channels].clone()
    whole = torch.randn(2, 5, 6, 12).contiguous(memory_format=CHANNELS_LAST)
    whole[:, channels] = plain
    x = whole[:, channels].requires_grad_()
    z, _ = squeeze(x)
    expected, _ = squeeze(plain)
    assert expected.is_contiguous()
    assert z.is_contiguous(memory_format=CHANNELS_LAST)
    assert torch.equal(z, expected)
    back, _ = squeeze.inverse(z)
    assert back.is_contiguous(memory_format=CHANNELS_LAST)
    assert torch.equal(back, plain)
    torch.testing.assert_close(torch.autograd.grad((z * expected).sum(), x)[0], plain)
