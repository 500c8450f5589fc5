"""``python -m tests.gates.cubin``: a report on the machine code of the CUDA kernels, and its checks."""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from tests.emulator import nvcc
from tests.emulator.drivers.cuda import INCLUDE, KERNELS, cuda_on_cpu, library
from tests.emulator.occupancy import MULTIPROCESSORS, resident_blocks
from tests.emulator.ptx.module import Trace
from tests.emulator.through_ptx import through_ptx

from .launches import Call, every_kernel, launches_of
from .machine_code import MachineCode, machine_code, unavailable
from .page import add_markdown_option, check_markdown, markdown_table, short, write_section

#: Conflicts of shared memory: passes of a warp's access through the banks, over those that its width needs.
MOST_WAYS = 2.0
#: The same of channels_last kernels: the channels of a pixel, which a thread reads together, lie in rows of their own
#: in shared memory. On an H200 they take as long as the contiguous kernels forward, and up to 1.3 times backward.
MOST_WAYS_OF_CHANNELS_LAST = 8.0

#: Fewest warps that a multiprocessor must hold, forward and backward, of kernels with vectors and a known number of
#: channels. There are two for each of its four schedulers if shared memory has room for two blocks, so that one warp
#: computes while the other waits; else one. The other kernels must have one block.
FLOORS = {75: (4, 4), 80: (8, 8), 86: (8, 4), 90: (8, 8), 100: (8, 8), 120: (8, 4)}

_DESCRIPTION = """\
Compile the CUDA kernels for GPUs that need not be there, and print what can be read from the machine code: registers
of a thread, the warps that a multiprocessor holds with them and with the shared memory that the operators ask for, and
the widths of accesses to global memory. Bank conflicts are counted while nvcc's PTX for sm_80 runs on the CPU.
Compiled code is kept in build/; the first time takes a minute of processor time for each architecture.
"""

_TEXT = """## What ptxas made of them

`python -m tests.gates.cubin --markdown docs/kernels/cuda.md` wrote this section, from {version}. With `--check` the
command fails on any of these:

- registers spilled to memory, a stack, or an instruction that accesses local memory;
- a kernel with `Vectors`, or a `known` one, without any access of 128 bits to global memory;
- more shared memory than the architecture has;
- more than {ways:.0f} passes through the banks of shared memory for each pass that an access needs, or {last:.0f} of a
  channels_last kernel;
- fewer resident warps, forward and backward, in kernels with `Vectors` and a known number of channels:
{floors}.

A cell holds the registers of a thread and the warps that a multiprocessor holds. Shared memory is the most that a block
asks for, over the shapes tried; backward passes ask for more where there is more. Ways are the passes of the worst
instruction through the banks, over those needed.

"""


@dataclass(frozen=True)
class Row:
    """A kernel for one architecture, as it is launched.

    ``threads`` and ``shared`` bytes are those of a block, the most of all launches. ``ways`` is ``None`` if nothing was
    run.
    """

    code: MachineCode
    threads: int
    shared: int
    ways: float | None

    @property
    def resident_warps(self) -> int:
        code = self.code
        return resident_blocks(code.architecture, code.registers, self.shared, self.threads) * self.threads // 32


def rows(architectures: Sequence[int], calls: Sequence[Call], ways: Mapping[str, float]) -> list[Row]:
    """A row for each kernel and architecture with enough shared memory for it. Raises ``RuntimeError`` if ``calls`` do
    not launch every kernel."""
    found = []
    anywhere = {launch.name for call in calls for launch in launches_of(call, 90)}
    for architecture in architectures:
        launches = [launch for call in calls for launch in launches_of(call, architecture)]
        for code in (code for source in KERNELS for code in machine_code(source, architecture, include=INCLUDE)):
            own = [launch for launch in launches if launch.name == code.kernel]
            if not own and code.kernel in anywhere:
                continue  # it needs more shared memory than a block has here
            if not own:
                raise RuntimeError(f"no call of launches.every_kernel launches {code.kernel}")
            shared = code.shared + max(launch.shared_bytes for launch in own)
            found.append(Row(code, own[0].block[0], shared, ways.get(code.kernel)))
    return found


def bank_ways(calls: Iterable[Call]) -> dict[str, float]:
    """The worst conflicts of every kernel that the ``calls`` launch, in PTX for sm_80."""
    worst: dict[str, float] = defaultdict(lambda: 1.0)
    ptx = [with_joined_stores(nvcc.compile_ptx(source, 80, include=INCLUDE)) for source in KERNELS]
    for call in calls:
        with cuda_on_cpu(), through_ptx(library(), ptx, trace=True) as launches:
            call.run("cuda")
        for launch in launches:
            assert launch.trace is not None
            worst[launch.name] = max(worst[launch.name], ways_of(launch.trace))
    return dict(worst)


def with_joined_stores(ptx: str) -> str:
    """PTX in which four stores of 32 bits to successive places of shared memory, aligned to 16 bytes, are one of 128.

    ptxas joins them, though nvcc did not; the executor raises an error if they are not aligned. Line numbers stay.
    """
    store = r"\tst\.shared\.(?:f32|u32|b32) \t\[(%r\d+)\+?(\d*)\], (%\w+);"
    lines = ptx.split("\n")
    for i in range(len(lines) - 3):
        found = [match for line in lines[i : i + 4] if (match := re.fullmatch(store, line))]
        if len(found) < 4:
            continue
        base, offset = found[0].group(1), int(found[0].group(2) or 0)
        places = [(match.group(1), int(match.group(2) or 0)) for match in found]
        values = [match.group(3) for match in found]
        alike = len({re.sub(r"\d", "", value) for value in values}) == 1
        if alike and offset % 16 == 0 and places == [(base, offset + 4 * n) for n in range(4)]:
            kind = "f32" if values[0].startswith("%f") else "b32"
            lines[i : i + 4] = [f"\tst.shared.v4.{kind} \t[{base}+{offset}], {{{', '.join(values)}}};", "", "", ""]
    return "\n".join(lines)


def ways_of(trace: Trace) -> float:
    """Passes over those needed, of the worst instruction that accesses shared memory; 1 without any."""
    sites = [site for site in trace.memory if site.space == "shared"]
    return max((site.wavefronts / site.fewest_wavefronts for site in sites), default=1.0)


def violations(row: Row) -> list[str]:
    """Return the violations of a kernel, one line each."""
    code, wrong = row.code, []
    for name, bytes_ in (("spill stores", code.spill_stores), ("spill loads", code.spill_loads), ("stack", code.stack)):
        if bytes_:
            wrong.append(f"{bytes_} bytes of {name}")
    if code.local:
        wrong.append(f"{code.local} instructions access local memory")
    vectors = "Vectors<" in code.kernel or "_known_kernel<" in code.kernel
    for name, widths in (("load", code.loads), ("store", code.stores)):
        if vectors and max(widths, default=0) < 128:
            wrong.append(f"no {name} of 128 bits, the widest is {max(widths, default=0)}")
    chip = MULTIPROCESSORS[code.architecture]
    if row.shared > chip.of_block:
        wrong.append(f"{row.shared} bytes of shared memory, but a block may have {chip.of_block}")
    elif row.resident_warps < (floor := _floor(code)):
        wrong.append(f"{row.resident_warps} resident warps, fewer than {floor}")
    most = MOST_WAYS_OF_CHANNELS_LAST if "_last_kernel<" in code.kernel else MOST_WAYS
    if row.ways is not None and row.ways > most:
        wrong.append(f"{row.ways:.1f} passes through the banks of shared memory, more than {most:.0f}")
    return [f"sm_{code.architecture} {short(code.kernel)}: {text}" for text in wrong]


def _floor(code: MachineCode) -> int:
    if not re.search(r"Vectors<|flow_step\w*_known_kernel<", code.kernel) or code.kernel.endswith(", 0>"):
        return 1
    return FLOORS[code.architecture]["backward" in code.kernel]


def table(found: Sequence[Row]) -> str:
    """One line a kernel, as Markdown."""
    architectures = list(dict.fromkeys(row.code.architecture for row in found))
    by_kernel: dict[str, list[Row]] = defaultdict(list)
    for row in found:
        by_kernel[row.code.kernel].append(row)
    lines = []
    for kernel, own in sorted(by_kernel.items(), key=lambda item: _order(item[0])):
        codes = [row.code for row in own]
        spilled = sum(code.spill_stores + code.spill_loads + code.stack + code.local for code in codes)
        widest = min(min(max(code.loads, default=0), max(code.stores, default=0)) for code in codes)
        ways = "" if own[0].ways is None else f"{own[0].ways:.2f}"
        shared = " to ".join(map(str, sorted({min(row.shared for row in own), max(row.shared for row in own)})))
        cells = [f"{row.code.registers}, {row.resident_warps}" for row in own]
        lines.append([f"`{short(kernel)}`", *cells, str(own[0].threads), shared, str(spilled), str(widest), ways])
    header = ["kernel", *(f"sm_{architecture}" for architecture in architectures)]
    return markdown_table([*header, "threads", "shared, bytes", "spilled", "widest access, bits", "ways"], lines)


def _order(kernel: str) -> tuple[object, ...]:
    name, _, arguments = kernel.partition("<")
    return (name, *(int(part) if part.isdigit() else part for part in arguments.replace(">", "").split(", ")))


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status: 1 if ``--check`` found something, 2 if it cannot run."""
    parser = argparse.ArgumentParser(
        prog="cubin", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = ",".join(map(str, MULTIPROCESSORS))
    parser.add_argument("--archs", default=known, metavar="LIST", help=f"comma-separated; default: {known}")
    parser.add_argument(
        "--banks",
        choices=("all", "float32", "none"),
        default="all",
        help="of which kernels to count bank conflicts: all, those of contiguous float32 states, or none",
    )
    parser.add_argument("--check", action="store_true", help="name every violation and exit 1 if there is one")
    add_markdown_option(parser)
    given = parser.parse_args(arguments)
    architectures = given.archs.split(",")
    if wrong := [name for name in architectures if name not in known.split(",")]:
        parser.exit(2, f"cubin: --archs must be among {known}, got {','.join(wrong)}\n")
    if reason := unavailable() or nvcc.unavailable():
        parser.exit(2, f"cubin: {reason}\n")
    check_markdown(parser, given.markdown)
    calls = every_kernel()
    if given.banks == "none":
        traced = []
    else:
        plain = [c for c in calls if c.dtype == torch.float32 and c.contiguous and not (c.channels_last or c.h_dtype)]
        traced = calls if given.banks == "all" else plain
        # in the other direction, other instructions run
        traced = [*traced, *(replace(call, inverse=True) for call in traced if call.channels == 12)]
    found = rows([int(name) for name in architectures], calls, bank_ways(traced))
    print(table(found))
    if given.markdown is not None:
        version = nvcc.version().strip().splitlines()[-1]
        floors = ", ".join(f"{forward} and {backward} on sm_{arch}" for arch, (forward, backward) in FLOORS.items())
        floors = textwrap.fill(floors, 119, initial_indent="  ", subsequent_indent="  ")
        text = _TEXT.format(version=version, ways=MOST_WAYS, last=MOST_WAYS_OF_CHANNELS_LAST, floors=floors)
        write_section(given.markdown, "machine code", text + table(found))
    wrong = [violation for row in found for violation in violations(row)]
    if given.check:
        print("\n".join([*wrong, f"{len(found)} kernels compiled, {len(wrong)} violation{'s' * (len(wrong) != 1)}"]))
    return 1 if given.check and wrong else 0


if __name__ == "__main__":
    sys.exit(main())
