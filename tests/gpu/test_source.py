"""CUDA C++ compiled for the CPU: kernels compute what they should, and each mistake is found by a mode."""

from __future__ import annotations

import ctypes
import functools
import re
from pathlib import Path

import pytest
import torch

from tests.emulator import build
from tests.emulator.ptx.module import KernelError
from tests.emulator.source import host_library, run_sanitized, sanitizer_unavailable

pytestmark = pytest.mark.skipif(build.unavailable() is not None, reason=str(build.unavailable()))

SOURCE = Path(__file__).parent / "host_kernels.cu"
MISTAKES = (
    "NONE",
    "NO_BARRIER",
    "NO_ATOMIC",
    "PAST_SHARED",
    "PAST_GLOBAL",
    "MISALIGNED",
    "DIVERGENT",
    "EARLY_EXIT",
    "WRONG_MASK",
)
ORDERS = ("ascending", "descending", "random:1")
COUNT = 700  # numbers: a last block that is not full


@functools.cache
def library(sanitize: str | None = None) -> Path:
    if sanitize and (reason := sanitizer_unavailable(sanitize)):
        pytest.skip(reason)
    return host_library("host_kernels", [SOURCE], sanitize=sanitize)


def call(function: str, *arguments: object) -> str | None:
    """The error message, or None."""
    kernel = getattr(ctypes.CDLL(str(library())), function)
    kernel.restype = ctypes.c_char_p
    error = kernel(*(ctypes.c_void_p(a.data_ptr()) if isinstance(a, torch.Tensor) else a for a in arguments))
    return error.decode() if error else None


@pytest.mark.parametrize("order", ORDERS)
def test_a_sum_through_shared_memory_and_shuffles(order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_ON_CPU_ORDER", order)
    x, out = torch.randn(COUNT), torch.zeros(1)
    assert call("sum", 0, x, out, COUNT) is None
    torch.testing.assert_close(out[0].double(), x.double().sum(), rtol=0, atol=1e-4)


def test_warp_operations() -> None:
    x, out = torch.randn(64), torch.full((64,), torch.nan)
    assert call("warp", x, out) is None
    for i in range(64):
        warp, lane = x[i // 32 * 32 :][:32], i % 32
        expected = (warp > 0).sum() + warp[lane ^ 3] + warp[lane - 2 if lane % 16 >= 2 else lane]
        expected += warp[lane // 8 * 8 + 7] + (warp > 2).any() * 1 + (warp > -9).all() * 2 + warp[min(lane + 1, 31)]
        torch.testing.assert_close(out[i], expected, rtol=1e-6, atol=1e-5)


def test_the_order_of_threads_is_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for order in (*ORDERS, "random:2"):
        monkeypatch.setenv("CUDA_ON_CPU_ORDER", order)
        out = torch.zeros(192, dtype=torch.int32)
        assert call("order", out, torch.zeros(1, dtype=torch.int32)) is None
        assert sorted(out.tolist()) == list(range(192))
        seen.append(out.tolist())
    assert seen[0] == list(range(192))
    assert seen[1] == seen[0][::-1]
    assert len({tuple(order) for order in seen}) == 4


def test_shared_memory_is_poisoned_for_every_block() -> None:
    out = torch.zeros(64)
    assert call("unwritten", out) is None
    assert out.isnan().all()


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("DIVERGENT", r"divergent barrier in block .*host_kernels.cu line \d+"),
        ("EARLY_EXIT", r"a thread exited before a barrier that others wait at .*host_kernels.cu line \d+"),
        ("WRONG_MASK", r"__shfl_down_sync reads lane 16, which is not in the mask .*host_kernels.cu line \d+"),
    ],
)
def test_broken_rules_of_synchronisation_are_errors(mistake: str, message: str) -> None:
    x, out = torch.randn(COUNT), torch.zeros(1)
    error = call("sum", MISTAKES.index(mistake), x, out, COUNT)
    assert error is not None
    assert re.search(message, error), error


_RUN = """
import ctypes
kernels = ctypes.CDLL({library!r})
kernels.sum.restype = ctypes.c_char_p
x, out = (ctypes.c_float * {count})(*range({count})), (ctypes.c_float * 1)()
error = kernels.sum({mistake}, x, out, {count})
print(error or out[0] - sum(x))
"""


def run_mistake(mistake: str, sanitize: str, order: str = "ascending") -> str:
    code = _RUN.format(library=str(library(sanitize)), count=COUNT, mistake=MISTAKES.index(mistake))
    return run_sanitized(code, sanitize, order=order).strip()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("sanitize", ["address", "thread"])
def test_sanitizers_find_nothing_in_correct_kernels(sanitize: str, order: str) -> None:
    assert run_mistake("NONE", sanitize, order) == "0.0"


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("PAST_SHARED", "heap-buffer-overflow"),
        ("PAST_GLOBAL", "heap-buffer-overflow"),
        ("MISALIGNED", "misaligned address"),
    ],
)
def test_address_sanitizer_finds_mistakes(mistake: str, message: str) -> None:
    with pytest.raises(KernelError, match=message):
        run_mistake(mistake, "address")


@pytest.mark.parametrize(
    ("mistake", "order"), [("NO_BARRIER", "ascending"), ("NO_BARRIER", "random:1"), ("NO_ATOMIC", "descending")]
)
def test_thread_sanitizer_finds_races(mistake: str, order: str) -> None:
    with pytest.raises(KernelError, match="ThreadSanitizer: data race"):
        run_mistake(mistake, "thread", order)
