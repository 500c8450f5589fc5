"""States without elements, with odd strides or without memory: none ends the process, on any backend."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import PATIENCE, run_python
from under_test import each_kernels

from invflow import AffineForm, affine_coupling, channel_affine, flow_step, gaussian_split
from invflow.backends import cpu

FUZZ = Path(__file__).parents[1] / "support" / "odd_states.py"
EMPTY = [shape for shape in itertools.product((0, 2), (0, 4), (0, 2), (0, 3)) if 0 in shape]


def test_shapes_and_strides_of_any_kind_give_what_the_reference_gives():
    """In a process of its own: one that crashes is a failure with the example that crashed it."""
    command = [sys.executable, str(FUZZ), "400"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout == "all\n", f"exit status {done.returncode} at {done.stderr[-1500:]}"


def calls_on(shape, device, dtype=torch.float32):
    """Every operator in both directions, with the leaves that it takes."""
    batch, channels, height, width = shape

    def leaf(*size, given=dtype):
        return torch.ones(size, device=device, dtype=given).requires_grad_()

    x, half = leaf(*shape), channels // 2
    coupling, injector = leaf(batch, 2 * half, height, width), leaf(batch, 2 * channels, height, width)
    matrix, shift = leaf(channels, channels, given=torch.float32), leaf(channels, given=torch.float32)
    yield "channel_affine", [x, matrix, shift], lambda *t, **o: (channel_affine(*t, **o),)
    for inverse in (False, True):
        for form in (AffineForm(), AffineForm("exp")):
            call = {"form": form, "inverse": inverse}
            yield "affine_coupling", [x, coupling], lambda *t, call=call, **o: affine_coupling(*t, **call, **o)
        yield (
            "flow_step",
            [x, matrix, shift, coupling, injector],
            (lambda *t, inverse=inverse, **o: flow_step(*t, inverse=inverse, **o)),
        )
        yield "flow_step", [x, matrix, shift], lambda *t, inverse=inverse, **o: flow_step(*t, inverse=inverse, **o)
        yield "gaussian_split", [x, injector], lambda *t, inverse=inverse, **o: gaussian_split(*t, inverse=inverse, **o)


@each_kernels
@pytest.mark.parametrize("shape", EMPTY, ids=str)
@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
def test_states_without_elements(shape, autocast, kernels):
    device = kernels.device
    for backend in (kernels.backend, "reference"):
        for dtype in (torch.float32, torch.bfloat16):
            for name, leaves, call in calls_on(shape, device, dtype):
                with torch.autocast(device, torch.bfloat16, enabled=autocast):
                    y, *log_dets = call(*leaves, backend=backend)
                assert (y.shape, y.dtype) == (torch.Size(shape), dtype), name
                for log_det in log_dets:
                    assert (log_det.dtype, log_det.tolist()) == (torch.float32, [0.0] * shape[0]), name
                results = [result for result in (y, *log_dets) if result.requires_grad]
                found = torch.autograd.grad(
                    results, leaves, [torch.ones_like(r) for r in results], materialize_grads=True
                )
                for leaf, gradient in zip(leaves, found, strict=True):
                    assert gradient.tolist() == torch.zeros_like(leaf).tolist(), name


def test_a_state_without_pixels_can_be_differentiated_twice_and_transformed():
    x, matrix, shift = torch.zeros(1, 2, 0, 3).requires_grad_(), torch.eye(2).requires_grad_(), torch.zeros(2)
    (first,) = torch.autograd.grad(channel_affine(x, matrix, shift).sum(), matrix, create_graph=True)
    first.sum().backward()
    assert matrix.grad is None or matrix.grad.tolist() == torch.zeros(2, 2).tolist()
    samples = torch.zeros(3, 1, 2, 0, 3)
    mapped = torch.func.vmap(lambda x: channel_affine(x, torch.eye(2), shift))(samples)
    assert mapped.shape == samples.shape


@each_kernels
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("negated", ["x", "matrix", "shift", "coupling", "injector", "gradient"])
def test_a_negated_view_is_read_with_its_sign(negated, inverse, kernels):
    def negative(tensor):
        """The same numbers, in memory with the other sign."""
        return torch.complex(torch.zeros_like(tensor), -tensor).conj().imag

    shapes = {"x": (2, 4, 3, 5), "matrix": (4, 4), "shift": (4,), "coupling": (2, 4, 3, 5), "injector": (2, 8, 3, 5)}
    tensors = {name: torch.randn(shape, device=kernels.device) for name, shape in shapes.items()}
    tensors["gradient"] = torch.randn(2, 4, 3, 5, device=kernels.device)
    found = []
    for given in (tensors, tensors | {negated: negative(tensors[negated])}):
        *leaves, grad = given.values()
        leaves = [leaf if leaf.is_neg() else leaf.clone() for leaf in leaves]
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        y, log_det = flow_step(*leaves, inverse=inverse, backend=kernels.backend)
        found.append([y, log_det, *torch.autograd.grad([y, log_det], leaves, [grad, torch.ones_like(log_det)])])
    assert negative(tensors["x"]).is_neg()
    torch.testing.assert_close(*found)


def test_memory_that_is_not_there():
    x, h = torch.randn(1, 2, 3, 3), torch.randn(1, 4, 3, 3)
    zeros = torch._efficientzerotensor(tuple(x.shape))
    for given, plain in (((zeros, h), (torch.zeros_like(x), h)), ((x, zeros.repeat(1, 2, 1, 1)), (x, 0 * h))):
        torch.testing.assert_close(affine_coupling(*given), affine_coupling(*plain))
    for which in range(2):
        tensors = [x.clone(), h.clone()]
        tensors[which].untyped_storage().resize_(0)
        with pytest.raises(ValueError, match=r"every tensor must have memory, got one of shape \(1, \d, 3, 3\)"):
            affine_coupling(*tensors, backend="cpu")
    freed = torch.eye(2)
    freed.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match=r"every tensor must have memory, got one of shape \(2, 2\)"):
        channel_affine(x, freed, torch.zeros(2), backend="cpu")


needs_extension = pytest.mark.skipif(cpu.extension is None, reason="needs the extension invflow._C")

OUT_OF_MEMORY = """
import resource, torch
from invflow import affine_coupling
torch.set_num_threads({threads})
small = torch.zeros(2, 64, 16, 32)
affine_coupling(small, torch.zeros(2, 128, 16, 32), backend="cpu")
channels = 1_600_000  # each needs 240 bytes of scratch memory or more, with longer vectors, and 32 for its result
x, h = torch.zeros(1, channels, 1, 8), torch.zeros(1, 1, 1, 1).expand(1, 2 * channels, 1, 8)
used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (used * 1024 + 200_000_000,) * 2)
try:
    affine_coupling(x, h, backend="cpu")
except MemoryError as error:
    print("MemoryError")
y, _ = affine_coupling(small + 1, torch.zeros(2, 128, 16, 32), backend="cpu")
print(abs(float(y.min()) - 0.8809) < 1e-3)
"""


@needs_extension
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc and RLIMIT_AS")
@pytest.mark.parametrize("threads", [1, 2])
def test_scratch_memory_that_is_not_to_be_had_is_an_error(threads):
    """In a thread too, where an exception would end the process."""
    done = run_python(OUT_OF_MEMORY.format(threads=threads), OMP_NUM_THREADS=str(threads))
    assert done.stdout == "MemoryError\nTrue\n", f"exit status {done.returncode}: {done.stderr[-1500:]}"


SCRATCH = """
import torch
from invflow import affine_coupling, flow_step

def used():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")) / 1024

def call(channels):
    # every element is the same memory: only the kernel's own grows
    x, h = torch.ones(()).expand(1, channels, 4, 8), torch.zeros(()).expand(1, 2 * channels, 4, 8)
    y, log_det = affine_coupling(x, h, backend="cpu")
    expected = torch.sigmoid(torch.tensor(2.0)) + 1e-4
    assert (y - expected).abs().max() < 1e-6, channels
    return log_det

call(100)
before = used()
for channels in range(4000, 64001, 4000):
    call(channels)
grown = used() - before
for _ in range(200):
    call(64000)
    call(10)
print(grown, used() - before - grown)
"""


@needs_extension
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_scratch_memory_is_as_large_as_the_largest_call_needs_and_kept():
    # the C library gives memory of large tensors back at once, instead of keeping some for later
    done = run_python(SCRATCH, MALLOC_MMAP_THRESHOLD_="65536")
    assert done.returncode == 0, f"exit status {done.returncode}: {done.stderr[-1500:]}"
    grown, more = map(float, done.stdout.split())
    # 5 rows of 48 floats a channel are 59 MiB for the largest call, and 502 MiB for all of them
    assert 20 < grown < 150
    assert more < 10
