"""The host code of a library with nvcc's kernels: the same results as with those of the host compiler."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import torch

from tests.emulator import nvcc
from tests.emulator.source import host_library
from tests.emulator.through_ptx import through_ptx

pytestmark = pytest.mark.skipif(nvcc.unavailable() is not None, reason=str(nvcc.unavailable()))

SOURCE = Path(__file__).parent / "both_ways.cu"


def scale(library: Path, x: torch.Tensor) -> tuple[str | None, torch.Tensor]:
    function = ctypes.CDLL(str(library)).scale
    function.restype = ctypes.c_char_p
    out = torch.full(x.shape, torch.nan)
    pointers = ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(out.data_ptr())
    error = function(int(x.dtype == torch.float16), pointers[0], ctypes.c_double(1.5), x.numel(), pointers[1])
    return error.decode() if error else None, out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_the_host_compiler_and_nvcc_agree(dtype: torch.dtype) -> None:
    library = host_library("both_ways", [SOURCE])
    x = torch.randn(200).to(dtype)
    expected = 1.5 * x.float() + torch.arange(200) // 64
    assert scale(library, x)[0] is None
    torch.testing.assert_close(scale(library, x)[1], expected)
    with through_ptx(library, [nvcc.compile_ptx(SOURCE, 80)], check_races=True, trace=True) as launches:
        error, out = scale(library, x)
    assert error is None
    torch.testing.assert_close(out, expected)
    (launch,) = launches
    assert launch.name == f"both_ways::scale_kernel<{'__half' if dtype == torch.float16 else 'float'}>"
    assert launch.grid == (4, 1, 1)
    assert launch.trace.instructions["barrier"] == 256
    assert scale(library, x)[0] is None  # the redirection has ended
    assert len(launches) == 1


def test_a_kernel_without_ptx_is_an_error() -> None:
    with through_ptx(host_library("both_ways", [SOURCE]), []):
        error, _ = scale(host_library("both_ways", [SOURCE]), torch.zeros(8))
    assert error is not None
    assert "no PTX has a kernel both_ways::scale_kernel<float>" in error
