"""Triton kernels, compiled for CUDA by Triton as ever, run on the CPU through their PTX."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import torch

from tests.emulator import build

triton = pytest.importorskip("triton", minversion="3.4")
tl = pytest.importorskip("triton.language")
from tests.emulator.drivers.triton import triton_on_cpu  # noqa: E402
from tests.emulator.ptx.module import KernelError, PtxError  # noqa: E402

pytestmark = [
    pytest.mark.skipif(build.unavailable() is not None, reason=str(build.unavailable())),
    pytest.mark.skipif(triton.knobs.runtime.interpret, reason="TRITON_INTERPRET=1: Triton compiles nothing"),
]

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@triton.jit
def elementwise_kernel(x, y, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    v = tl.load(x + offsets, mask=mask, other=1.0)
    if v.dtype != tl.float64:
        v = v.to(tl.float32)
    result = tl.exp2(v) + tl.log2(tl.abs(v) + 1) + v / (2 + v * v) + tl.sqrt(tl.abs(v)) + tl.where(v > 0, tl.exp(-v), v)
    tl.store(y + offsets, result.to(y.dtype.element_ty), mask=mask)


@triton.jit
def halve(a, b):
    return a * 0.5, b * 0.5


@triton.jit
def row_kernel(inputs, output, columns, eps, BLOCK: tl.constexpr):
    """output[row] = log-sum-exp of half the sum of two matrices: a loop, tuples, reductions, an atomic operation"""
    row = tl.program_id(0)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, columns, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        mask = offsets < columns
        a = tl.load(inputs[0] + row * columns + offsets, mask=mask, other=float("-inf"))
        b = tl.load(inputs[1] + row * columns + offsets, mask=mask, other=0.0)
        a, b = halve(a, b)
        total += tl.exp(a + b)
    tl.atomic_add(output + row, tl.log(tl.sum(total, 0) + eps))


@triton.jit
def matmul_kernel(a, b, c, M, N, K, PRECISION: tl.constexpr, TILE: tl.constexpr):
    rows = tl.program_id(0) * TILE + tl.arange(0, TILE)
    columns = tl.program_id(1) * TILE + tl.arange(0, TILE)
    sums = tl.zeros((TILE, TILE), c.dtype.element_ty)
    for start in range(0, K, TILE):
        k = start + tl.arange(0, TILE)
        left = tl.load(a + rows[:, None] * K + k[None, :], mask=(rows[:, None] < M) & (k[None, :] < K), other=0.0)
        right = tl.load(
            b + k[:, None] * N + columns[None, :], mask=(k[:, None] < K) & (columns[None, :] < N), other=0.0
        )
        sums = tl.dot(left, right, sums, input_precision=PRECISION)
    tl.store(c + rows[:, None] * N + columns[None, :], sums, mask=(rows[:, None] < M) & (columns[None, :] < N))


@triton.jit
def library_kernel(x, sums, ordered, random, place, seed, BLOCK: tl.constexpr):
    """Scan, sort, argmax and random numbers of Triton's library; hints to the caches."""
    offsets = tl.arange(0, BLOCK)
    v = tl.load(x + offsets, eviction_policy="evict_last")
    tl.store(sums + offsets, tl.cumsum(v, 0), eviction_policy="evict_first")
    tl.store(ordered + offsets, tl.sort(v), cache_modifier=".cs")
    tl.store(random + offsets, tl.rand(seed, offsets))
    tl.store(place, tl.argmax(v, 0))


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_elementwise(dtype: torch.dtype, capability: int) -> None:
    x = torch.randn(1500).to(dtype)
    y = torch.full_like(x, torch.nan)
    with triton_on_cpu(capability, trace=True) as launches:
        elementwise_kernel[(2,)](x, y, x.numel(), BLOCK=1024)
    v = x.double()
    expected = (
        torch.exp2(v) + torch.log2(v.abs() + 1) + v / (2 + v * v) + v.abs().sqrt() + torch.where(v > 0, (-v).exp(), v)
    )
    rounding = {torch.float32: 1e-6, torch.float64: 4e-15}.get(dtype, torch.finfo(dtype).eps)
    torch.testing.assert_close(y.double(), expected, rtol=rounding, atol=rounding)
    (launch,) = launches
    assert (launch.name, launch.grid, launch.threads) == ("elementwise_kernel", (2, 1, 1), 128)
    assert launch.trace.instructions["memory"] > 0


@pytest.mark.parametrize("order", ["ascending", "descending", "random"])
@pytest.mark.parametrize("capability", [80, 90])
def test_loops_tuples_and_reductions(capability: int, order: str) -> None:
    a, b, out = torch.randn(3, 700), torch.randn(3, 700), torch.zeros(3)
    with triton_on_cpu(capability, order=order, check_races=True):
        row_kernel[(3,)]((a, b), out, 700, 1e-6, BLOCK=256, num_warps=2)
    expected = ((a + b).double() / 2).logsumexp(1)
    torch.testing.assert_close(out.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(
    ("dtype", "precision", "error"),
    [
        (torch.float32, "ieee", 1e-6),
        (torch.float32, "tf32", 2e-3),
        (torch.float32, "tf32x3", 1e-6),
        (torch.float16, "ieee", 1e-6),
        (torch.bfloat16, "ieee", 1e-6),
        (torch.float64, "ieee", 1e-15),
    ],
    ids=str,
)
def test_matrix_products(dtype: torch.dtype, precision: str, error: float, capability: int) -> None:
    m, n, k = 40, 48, 80
    a, b = torch.randn(m, k).to(dtype), torch.randn(k, n).to(dtype)
    c = torch.full((m, n), torch.nan, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    with triton_on_cpu(capability, check_races=True):
        matmul_kernel[(2, 2)](a, b, c, m, n, k, PRECISION=precision, TILE=32)
    expected = a.double() @ b.double()
    assert ((c.double() - expected).norm() / expected.norm()).item() < error
    if precision == "tf32":  # the products do see 10 bits only
        assert ((c.double() - expected).norm() / expected.norm()).item() > 1e-5


@pytest.mark.parametrize("capability", [75, 80, 90, 100, 120])
def test_the_library_on_every_architecture(capability: int) -> None:
    x = torch.randn(512)
    sums, ordered, random = (torch.full_like(x, torch.nan) for _ in range(3))
    place = torch.zeros(1, dtype=torch.int32)
    with triton_on_cpu(capability, check_races=True):
        library_kernel[(1,)](x, sums, ordered, random, place, 42, BLOCK=512)
    torch.testing.assert_close(sums.double(), x.double().cumsum(0), rtol=0, atol=1e-4)
    assert torch.equal(ordered, x.sort().values)
    assert place.item() == x.argmax().item()
    assert 0 <= random.min().item() < 0.02 < 0.98 < random.max().item() < 1
    assert abs(random.mean().item() - 0.5) < 0.06  # five times the deviation of a mean of 512


def test_a_mask_that_is_too_wide_is_an_error() -> None:
    x, y = torch.randn(1000), torch.randn(1000)
    with triton_on_cpu(), pytest.raises(KernelError, match=r"store of .* bytes at global address"):
        elementwise_kernel[(1,)](x, y[:999], 1000, BLOCK=1024)


def test_wgmma_is_refused_by_name() -> None:
    a = torch.randn(64, 64).half()
    with triton_on_cpu(90), pytest.raises(PtxError, match="unknown opcode wgmma"):
        matmul_kernel[(1, 1)](a, a, torch.empty(64, 64), 64, 64, 64, PRECISION="ieee", TILE=64)


def test_the_example_of_the_readme_finds_a_missing_mask(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (Path(build.__file__).parent / "README.md").read_text(), re.DOTALL)
    path = tmp_path / "example.py"
    path.write_text(example)
    assert torch.equal(runpy.run_path(str(path))["x"], torch.full((1000,), 2.0))
    assert example.count("2 * tl.load(x + i, mask=i < n), mask=i < n)") == 1
    path.write_text(example.replace("mask=i < n), mask=i < n)", "mask=i < n))"))
    with pytest.raises(KernelError, match="store of 4 bytes at global address"):
        runpy.run_path(str(path))
