"""The PTX that nvcc makes of the kernels in features.cu, run on the CPU against what they are meant to compute."""

from __future__ import annotations

import functools
import struct
from pathlib import Path

import pytest
import torch

from tests.emulator import nvcc
from tests.emulator.ptx.module import PtxModule, ptx_module

ARCHITECTURES = (75, 80, 90, 120)
SOURCE = Path(__file__).parent / "features.cu"

pytestmark = pytest.mark.skipif(nvcc.unavailable() is not None, reason=str(nvcc.unavailable()))


@functools.cache
def features(architecture: int) -> PtxModule:
    return ptx_module(nvcc.compile_ptx(SOURCE, architecture))


@pytest.fixture(params=ARCHITECTURES)
def module(request: pytest.FixtureRequest) -> PtxModule:
    return features(request.param)


def test_reductions_through_shared_memory(module: PtxModule) -> None:
    x, out = torch.randn(2, 256), torch.full((2,), torch.nan)
    for order in ("ascending", "descending", "random"):
        module.launch("block_sum", (2,), (256,), 1024, [x, out], order=order, check_races=True)
        expected = (x.double() * torch.tensor([1, 2, 4, 8]).repeat(64)).sum(1)
        torch.testing.assert_close(out.double(), expected, rtol=0, atol=1e-4)


def test_double_buffered_copies(module: PtxModule) -> None:
    x, out = torch.randn(4, 512), torch.full((128,), torch.nan)
    module.launch("pipelined", (1,), (128,), 0, [x, out, 4], check_races=True)
    expected = (x.roll(-5, 1)[:, ::4].double() * torch.arange(1, 5)[:, None]).sum(0)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=1e-5)


def test_warp_operations(module: PtxModule) -> None:
    x, out = torch.randn(64), torch.full((64,), torch.nan)
    module.launch("warp_operations", (1,), (64,), 0, [x, out], check_races=True)
    expected = []
    for i in range(64):
        warp, lane = x[i // 32 * 32 :][:32], i % 32
        value = (warp > 0).sum() + warp[lane ^ 3] + warp[lane - 2 if lane % 16 >= 2 else lane] + warp[lane // 8 * 8 + 7]
        value += ((warp > 2).any() * 1) + ((warp > -9).all() * 2) + i * 7919 // 61 % 11
        first_bit = (i + 1 & -(i + 1)).bit_length()
        expected.append(value + 32 - (i + 1).bit_length() + first_bit + sum(range(i // 32 * 32, i // 32 * 32 + 32)))
    torch.testing.assert_close(out, torch.stack(expected), rtol=1e-6, atol=1e-5)


def test_half_precision(module: PtxModule) -> None:
    x, out = torch.randn(65), torch.full((64,), torch.nan)
    module.launch("halves", (1,), (64,), 0, [x, out])
    pair = x.half()
    product = ((pair.double() * pair.double() + 0.5).half() + pair).float()
    brain = x[:64].bfloat16()
    cubed = (brain.double() * brain.double() + brain.double()).bfloat16() * brain
    torch.testing.assert_close(out, product[:-1] + product[1:] + cubed.float(), rtol=1e-6, atol=1e-6)


def test_the_mathematical_library(module: PtxModule) -> None:
    x, out = torch.randn(64), torch.full((64,), torch.nan, dtype=torch.float64)
    module.launch("mathematics", (1,), (64,), 0, [x, out, 64])
    v = x.double()
    table = torch.stack([x.roll(-k) * k for k in range(16)]).double()
    picked = sum(table[((v.abs() * 7).int() + k % 9) & 15, torch.arange(64)] for k in range(16))
    large = (1e6 * x).double()
    expected = picked / 3 + large.sin() + (v.abs() + 1e-30).log() + v.abs() ** 1.7 + v.erf() + v.tanh()
    expected += (x * x).double().log1p() + v.exp() + v.abs().sqrt() + v.expm1()
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=3e-6)


def test_jump_tables_and_integer_atomics(module: PtxModule) -> None:
    n = 500
    x, out = torch.randn(n), torch.zeros(6, dtype=torch.int32)
    module.launch("branches", (4,), (128,), 0, [x, out, n], order="random", seed=3, check_races=True)
    value = (x * 1000).int().tolist()
    ored = xored = 0
    for i in range(n):
        ored |= 1 << i % 31 if i % 6 == 3 else 0
        xored ^= value[i] if i % 6 == 4 else 0
    expected = [max(0, *value[::6]), min(0, *value[1::6]), sum(value[2::6]), ored, xored]
    assert out[:5].tolist() == expected
    assert out[5].item() % 6 == 5  # one of the threads that tried


def test_structures_and_vectors(module: PtxModule) -> None:
    x, out = torch.randn(1000), torch.full((1000,), torch.nan)
    structure = struct.pack("<Qfi", x.data_ptr(), 1.5, 1000)
    trace = module.launch("scaled", (2,), (128,), 0, [structure, out], buffers=[x], trace=True)
    torch.testing.assert_close(out, 1.5 * x, rtol=0, atol=0)
    assert [(site.kind, site.bytes, site.sectors) for site in trace.memory] == [("load", 16, 125), ("store", 16, 125)]


@pytest.mark.parametrize("architecture", ARCHITECTURES[1:])
def test_matrix_instructions(architecture: int) -> None:
    a, b, out = torch.randn(16, 16).half(), torch.randn(16, 8).half(), torch.full((16, 8), torch.nan)
    features(architecture).launch("tensor_core", (1,), (32,), 0, [a, b, out], check_races=True)
    torch.testing.assert_close(out.double(), a.double() @ b.double(), rtol=1e-6, atol=1e-6)
