"""On a CUDA device: layers give what they give on the CPU, and kernels are accurate at the sizes of real images.

Every test of an operator runs there as well, at small sizes: see tests/support/under_test.py.
"""

import pytest
import torch
from accuracy import assert_as_accurate
from layer_cases import LAYERS, latents_of
from under_test import GPU_BACKENDS

from invflow import affine_coupling, channel_affine, flow_step
from invflow.backends import _cuda
from invflow.testing import assert_invertible

pytestmark = pytest.mark.gpu
each_backend = pytest.mark.parametrize("backend", GPU_BACKENDS)

#: The states of SRFlow at 4x and 8x with 160 pixel crops, one whole HD image, and many channels.
SHAPES = [
    *((4, 12, 80, 80), (16, 12, 80, 80), (16, 48, 40, 40), (16, 192, 20, 20), (1, 12, 540, 960)),
    *((2, 96, 28, 28), (1, 256, 12, 12), (1, 288, 12, 12), (1, 384, 12, 12)),
]


@pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.name)
def test_results_are_those_of_the_cpu(case):
    layer, (x, context) = case.build(torch.float64), case.inputs(dtype=torch.float64)
    expected, expected_log_det = layer(x, context)
    x, context = x.cuda(), None if context is None else context.cuda()
    layer.cuda()
    z, log_det = layer(x, context)
    torch.testing.assert_close([latent.cpu() for latent in latents_of(z)], latents_of(expected))
    torch.testing.assert_close(log_det.cpu(), expected_log_det)
    assert_invertible(layer, x, context)


def step_on_gpu(shape):
    """x, matrix, shift, coupling and injector, always the same."""
    torch.manual_seed(0)
    batch, channels, height, width = shape
    sizes = [channels, 2 * (channels // 2), 2 * channels]
    x, coupling, injector = (torch.randn(batch, c, height, width, device="cuda") for c in sizes)
    matrix = torch.linalg.qr(torch.randn(channels, channels, device="cuda"))[0]
    return [x, matrix, torch.randn(channels, device="cuda"), coupling, injector]


@each_backend
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
def test_a_step_of_real_size_is_as_accurate_as_plain_pytorch(shape, inverse, backend):
    tensors = step_on_gpu(shape)
    found = {}
    runs = {"actual": (backend, torch.float32), "plain": ("reference", torch.float32)}
    for run, (name, dtype) in (runs | {"exact": ("reference", torch.float64)}).items():
        leaves = [tensor.to(dtype).requires_grad_() for tensor in tensors]
        y, log_det = flow_step(*leaves, inverse=inverse, backend=name)
        found[run] = [y, log_det, *torch.autograd.grad(y.square().sum() + log_det.sum(), leaves)]
    terms = shape[0] * shape[2] * shape[3]
    for actual, plain, exact in zip(found["actual"], found["plain"], found["exact"], strict=True):
        # independent roundings of sums over pixels add up like a random walk
        assert_as_accurate(actual, plain, exact, magnitude=10 * terms**0.5 if exact.dim() < 4 else 0.0)


@each_backend
@pytest.mark.parametrize("shape", [(2, 12, 80, 80), (2, 48, 40, 40), (2, 96, 28, 28), (2, 192, 20, 20)], ids=str)
def test_calls_can_be_captured_in_a_cuda_graph(shape, backend):
    leaves = [tensor.requires_grad_() for tensor in step_on_gpu(shape)]

    def values_and_gradients():
        """Compute a step with and without a coupling: the same kernels need more shared memory and less."""
        found = []
        for maps in ({"coupling": leaves[3], "injector": leaves[4]}, {"injector": leaves[4]}):
            y, log_det = flow_step(*leaves[:3], **maps, backend=backend)
            wanted = [*leaves[:3], *maps.values()]
            # detached, so that the graph of the warm-up, with its stream, does not live on in the capture
            found += [y.detach(), log_det.detach(), *torch.autograd.grad(y.square().sum() + log_det.sum(), wanted)]
        return found

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # before a capture, kernels are loaded and configurations are timed
        expected = values_and_gradients()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        actual = values_and_gradients()
    for tensor in actual:
        tensor.zero_()
    graph.replay()
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_a_call_after_one_that_cuda_refused(monkeypatch):
    x, matrix, shift = (torch.randn(size, device="cuda") for size in ((1, 8000, 4, 4), (8000, 8000), (8000,)))
    with pytest.raises(RuntimeError, match=r"has shared memory for \d+ channels of torch.float32, got 8000"):
        channel_affine(x, matrix, shift, backend="cuda")
    monkeypatch.setattr(_cuda, "_most_channels", {x.device.index: {}})
    with pytest.raises(RuntimeError, match="flow_step_kernel cannot run for a state of 1 samples, 8000 channels"):
        channel_affine(x, matrix, shift, backend="cuda")
    y = channel_affine(x[:, :12], matrix[:12, :12], shift[:12], backend="cuda")
    torch.testing.assert_close(y, channel_affine(x[:, :12], matrix[:12, :12], shift[:12], backend="reference"))


@each_backend
def test_a_stream_of_its_own_and_another_device(backend):
    device = torch.device("cuda", torch.cuda.device_count() - 1)
    x, h = torch.randn(2, 4, 64, 64, device=device), torch.randn(2, 8, 64, 64, device=device)
    expected = affine_coupling(x, h, backend="reference")
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        y, log_det = affine_coupling(x, h, backend=backend)
    stream.synchronize()
    assert y.device == device
    torch.testing.assert_close((y, log_det), expected)
    torch.cuda.set_device(0)  # not that of the tensors, if there are two
    torch.testing.assert_close(affine_coupling(x, h, backend=backend), expected)
    assert torch.cuda.current_device() == 0


@each_backend
def test_repeated_calls_give_the_same_bits(backend):
    first, second = (flow_step(*step_on_gpu((4, 12, 80, 80)), backend=backend) for _ in range(2))
    assert all(map(torch.equal, first, second))


def test_the_reference_is_not_computed_in_tf32():
    """PyTorch's convolutions are computed in TF32, unless they are told not to be."""
    x, matrix, shift = step_on_gpu((4, 48, 40, 40))[:3]
    exact = channel_affine(x.double(), matrix.double(), shift.double(), backend="reference")
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=False, allow_tf32=True):
        y = channel_affine(x, matrix, shift, backend="reference")
    torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-5)
