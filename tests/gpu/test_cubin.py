"""The gate on machine code: that it sees what it is for, and that the kernels pass it."""

from __future__ import annotations

import itertools
import re
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from tests.emulator import build, nvcc
from tests.emulator.drivers import cuda as cuda_driver
from tests.emulator.occupancy import MULTIPROCESSORS, resident_blocks
from tests.gates import machine_code
from tests.gates.cubin import Row, main, table, violations, with_joined_stores
from tests.gates.machine_code import MachineCode
from tests.gates.page import SECTIONS, write_section
from tests.gpu.marks import takes_minutes

needs_nvcc = pytest.mark.skipif(nvcc.unavailable() is not None, reason=str(nvcc.unavailable()))
needs_disassembler = pytest.mark.skipif(machine_code.unavailable() is not None, reason=f"{machine_code.unavailable()}")

KERNELS = """
// more than fits the registers of so many threads
extern "C" __global__ void __launch_bounds__(1024, 2) spills(const float* x, float* y, int turns) {
  float sum[64];
  for (int i = 0; i < 64; ++i) sum[i] = x[64 * threadIdx.x + i];
  for (int t = 0; t < turns; ++t)
    for (int i = 0; i < 64; ++i) sum[i] = sum[i] * sum[(i + 1) % 64] + x[t];
  for (int i = 0; i < 64; ++i) y[64 * threadIdx.x + i] = sum[i];
}
extern "C" __global__ void indexed(const int* x, int* y) {  // in no register: it has no address
  int values[64];
  for (int i = 0; i < 64; ++i) values[i] = 0;
  for (int i = 0; i < 64; ++i) values[x[i] & 63] = i;
  y[threadIdx.x] = values[y[threadIdx.x] & 63];
}
extern "C" __global__ void wide(const float4* x, float4* y) {
  __shared__ float4 rows[40];
  rows[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = rows[39 - threadIdx.x];
}
extern "C" __global__ void narrow(const short* x, short* y) { y[threadIdx.x] = x[threadIdx.x] + 1; }
"""


@needs_disassembler
@pytest.mark.parametrize("architecture", [80, 120])
def test_machine_code_is_read(tmp_path: Path, architecture: int) -> None:
    source = tmp_path / "kernels.cu"
    source.write_text(KERNELS)
    found = {code.kernel: code for code in machine_code.machine_code(source, architecture)}
    assert set(found) == {"spills", "indexed", "wide", "narrow"}
    spills, indexed, wide, narrow = (found[name] for name in ("spills", "indexed", "wide", "narrow"))
    assert spills.registers <= 64
    assert min(spills.spill_stores, spills.spill_loads, spills.stack, spills.local) > 0
    assert indexed.spill_stores == indexed.spill_loads == 0
    assert min(indexed.stack, indexed.local) > 0
    assert (wide.loads, wide.stores, wide.shared, wide.local, wide.stack) == ((128,), (128,), 640, 0, 0)
    assert (narrow.loads, narrow.stores, narrow.shared) == ((16,), (16,), 0)


GOOD = MachineCode(
    "invflow::cuda::flow_step_kernel<invflow::cuda::Vectors<4>, 12>", 80, 110, 0, 0, 0, 16, 0, (128,), (128,)
)
ROW = Row(GOOD, threads=128, shared=25360, ways=1.0)


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (replace(ROW, code=replace(GOOD, spill_stores=8)), "8 bytes of spill stores"),
        (replace(ROW, code=replace(GOOD, spill_loads=12)), "12 bytes of spill loads"),
        (replace(ROW, code=replace(GOOD, stack=16)), "16 bytes of stack"),
        (replace(ROW, code=replace(GOOD, local=2)), "2 instructions access local memory"),
        (replace(ROW, code=replace(GOOD, loads=(32, 64))), "no load of 128 bits, the widest is 64"),
        (replace(ROW, code=replace(GOOD, stores=())), "no store of 128 bits, the widest is 0"),
        (replace(ROW, code=replace(GOOD, registers=255)), ""),
        (replace(ROW, threads=256, code=replace(GOOD, registers=168)), ""),
        (replace(ROW, shared=100 << 10), "4 resident warps, fewer than 8"),
        (replace(ROW, shared=164 << 10), "167936 bytes of shared memory, but a block may have 166912"),
        (replace(ROW, ways=2.5), "2.5 passes through the banks of shared memory, more than 2"),
    ],
)
def test_violations_are_named(row: Row, text: str) -> None:
    assert violations(ROW) == []
    assert violations(row) == ([f"sm_80 flow_step_kernel<Vectors<4>, 12>: {text}"] if text else [])


OCCUPANCY = """
#include <cstdio>
#include <cstdlib>
#include "cuda_occupancy.h"
int main(int, char** given) {
  auto next = [&] { return atoi(*++given); };
  cudaOccDeviceProp device;
  const int architecture = next();
  device.computeMajor = architecture / 10, device.computeMinor = architecture % 10;
  device.maxThreadsPerBlock = 1024, device.warpSize = 32, device.numSms = 1;
  device.maxThreadsPerMultiprocessor = next();
  device.regsPerBlock = device.regsPerMultiprocessor = 65536;
  device.sharedMemPerBlock = 48 << 10;
  device.sharedMemPerMultiprocessor = next(), device.sharedMemPerBlockOptin = next();
  device.reservedSharedMemPerBlock = next();
  for (; given[1]; ) {
    cudaOccFuncAttributes kernel;
    kernel.maxThreadsPerBlock = 1024, kernel.numRegs = next(), kernel.sharedSizeBytes = 0;
    kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN, kernel.maxDynamicSharedSizeBytes = device.sharedMemPerBlockOptin;
    const int shared = next(), threads = next();
    cudaOccDeviceState state;
    state.carveoutConfig = 100;
    cudaOccResult result;
    const int error = cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, threads, shared);
    printf("%d\\n", error ? -error : result.activeBlocksPerMultiprocessor);
  }
}
"""


@needs_nvcc
def test_resident_blocks_are_those_of_nvidias_calculator(tmp_path: Path) -> None:
    folders = [Path(str(nvcc.nvcc())).resolve().parents[1] / "include", Path("/usr/local/cuda/include")]
    include = next((folder for folder in folders if (folder / "cuda_occupancy.h").is_file()), None)
    if include is None:
        pytest.skip(f"cuda_occupancy.h is in none of {', '.join(map(str, folders))}")
    program = build.compile_cached("occupancy", (), ["-w", f"-I{include}"], text=OCCUPANCY)
    kernels = list(itertools.product((16, 32, 63, 110, 168, 255), (0, 1000, 25360, 49000, 65000), (32, 96, 128, 256)))
    for architecture, chip in MULTIPROCESSORS.items():
        numbers = [architecture, chip.threads, chip.shared, chip.of_block, chip.reserved, *sum(kernels, ())]
        done = subprocess.run([str(program), *map(str, numbers)], capture_output=True, text=True, check=True)
        expected = dict(zip(kernels, map(int, done.stdout.split()), strict=True))
        assert {kernel: resident_blocks(architecture, *kernel) for kernel in kernels} == expected, f"sm_{architecture}"


def test_a_page_keeps_the_sections_of_others(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    for section in reversed(SECTIONS):
        write_section(page, section, f"old {section}\n")
    write_section(page, SECTIONS[1], "new")
    text = page.read_text()
    places = [text.index(line) for line in (f"old {SECTIONS[0]}", "\nnew\n", f"old {SECTIONS[2]}")]
    assert places == sorted(places)
    assert f"old {SECTIONS[1]}" not in text
    assert list(tmp_path.iterdir()) == [page]
    write_section(page, SECTIONS[1], f"{'word ' * 40}\n\n| {'cell ' * 40}|")
    assert sum(len(line) > 120 for line in page.read_text().splitlines()) == 1  # the table


def test_the_table_has_a_line_for_each_kernel() -> None:
    other = replace(ROW, code=replace(GOOD, architecture=90, registers=99))
    header, _, line = table([ROW, other]).splitlines()
    assert header.startswith("| kernel | sm_80 | sm_90 |")
    assert line == "| `flow_step_kernel<Vectors<4>, 12>` | 110, 16 | 99, 16 | 128 | 25360 | 0 | 128 | 1.00 |"


STORES = r"""
	st.shared.f32 	[%r1+16], %f1;
	st.shared.f32 	[%r1+20], %f2;
	st.shared.f32 	[%r1+24], %f3;
	st.shared.f32 	[%r1+28], %f4;
	st.shared.f32 	[%r1+32], %f5;
""".strip("\n")


def test_stores_that_ptxas_joins_are_counted_as_one() -> None:
    lines = with_joined_stores(STORES).split("\n")
    assert lines == ["\tst.shared.v4.f32 \t[%r1+16], {%f1, %f2, %f3, %f4};", "", "", "", STORES.split("\n")[4]]
    for changed in (STORES.replace("+16", "+12"), STORES.replace("%r1+24", "%r2+24"), STORES.replace("%f2", "%r2")):
        assert with_joined_stores(changed) == changed


@needs_disassembler
@pytest.mark.slow
@takes_minutes
@pytest.mark.parametrize("source", cuda_driver.KERNELS, ids=lambda source: source.stem)
def test_stores_to_shared_memory_are_as_wide_as_those_counted(source: Path) -> None:
    """Conflicts counted in PTX are then those of the machine code.

    There may be more of the widest accesses, in loops that ptxas unrolled.
    """
    ptx = with_joined_stores(nvcc.compile_ptx(source, 80, include=cuda_driver.INCLUDE))
    bits = {"16": 16, "32": 32, "64": 64}
    parts = re.split(r"\.entry (\S+)\(", ptx)
    counted = {
        symbol: Counter(
            int(vector or 1) * bits[size] for vector, size in re.findall(r"st\.shared\.(?:v(\d)\.)?[a-z](\d+)", body)
        )
        for symbol, body in zip(parts[1::2], parts[2::2], strict=True)
    }
    of_kernel = machine_code.instructions(source, 80, include=cuda_driver.INCLUDE)
    made = {
        symbol: Counter(machine_code.width(text) for text in texts if text.split(".")[0] == "STS")
        for symbol, texts in of_kernel.items()
    }
    for numbers in (*counted.values(), *made.values()):
        del numbers[128]
    assert counted == made


@needs_disassembler
@pytest.mark.slow
@takes_minutes
def test_kernels_pass_on_one_architecture(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--archs", "80", "--banks", "none", "--check"]) == 0, capsys.readouterr().out
    assert "40 kernels compiled, 0 violations" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--archs", "80,81"], "--archs must be among 75,80,86,90,100,120, got 81"),
        (["--markdown", "no/where.md"], "folder of --markdown no/where.md does not exist"),
    ],
)
@needs_disassembler
def test_arguments_are_checked(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err == f"cubin: {message}\n"
