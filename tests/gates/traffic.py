"""``python -m tests.gates.traffic``: what the CUDA kernels ask of memory, counted while they run on the CPU."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tests.emulator.drivers import cuda as cuda_driver
from tests.emulator.drivers.cuda import cuda_on_cpu
from tests.emulator.ptx.module import MemorySite, Trace
from tests.emulator.through_ptx import HostLaunch

from .launches import CHANNELS, Call
from .page import add_markdown_option, check_markdown, markdown_table, write_section

SECTOR = 32  # bytes, the least that is moved

#: Most traffic that a step may have, over its floor.
MOST_TRAFFIC = 1.15

#: The same of a backward pass of the inverse beyond 12 channels. Its block has no room for x and h, and asks for them
#: again after the product, when the L2 still has them. On an H200 these kernels take about a third of the general ones'
#: time.
MOST_TRAFFIC_OF_TWO_READS = 1.7

#: Batch and side of states that fill the blocks of a backward pass on a GPU of a single multiprocessor.
FULL_BLOCKS = {12: (2, 64), 24: (1, 64), 48: (2, 32), 96: (1, 32), 192: (1, 32)}

#: Multiprocessors of an A100.
MULTIPROCESSORS = 108

#: Sides of square states of about the size of SRFlow's with 16 crops of 160 pixels, by channels.
SIDES = {12: 80, 24: 56, 48: 40, 96: 28, 192: 20}


class Chip(NamedTuple):
    """A GPU's memory ``bandwidth``, bytes a second, and its float32 additions and multiplications a second."""

    bandwidth: float
    operations: float


#: Datasheets: whitepaper "NVIDIA Turing GPU Architecture" (reference card), "NVIDIA A100" (80 GB, SXM), "NVIDIA H100"
#: (SXM).
CHIPS = {"RTX 2080 Ti": Chip(616e9, 13.45e12), "A100": Chip(2039e9, 19.5e12), "H100": Chip(3350e9, 66.9e12)}

_DESCRIPTION = """\
Run nvcc's PTX of flow_step (float32, contiguous, coupling and injector) on the CPU, count the sectors of 32 bytes that
it reads and writes, and compare them with the fewest that any implementation must. With --check, exit with 1 if a step
moves more than 1.15 times its floor; of backward passes, one whose blocks have as many tiles as they may.
"""

_TEXT = """## What they ask of memory

`python -m tests.gates.traffic --markdown docs/kernels/cuda.md` wrote this section. It ran nvcc's PTX for sm_80 on the
CPU: flow steps with coupling and injector, float32 and contiguous.

The floor of a forward step is x, the outputs h of both networks and y, once each. The floor of a backward pass is the
gradient of y, x and h, and the gradients of x and h.

Traffic is every sector of 32 bytes that is asked for, as if there were no cache. Matrix and shift are the exception:
they count once, because they stay in the caches. They have 147 KB at most, and the smallest L2 of the three GPUs has
5.5 MB. A column of its own shows all reads of them. A request is an access of a warp; 16 sectors are 128 bits for each
of its lanes.

Backward traffic includes the partial sums of the gradients of matrix and shift. Every block writes its own, and they
are read once. The work is divided as for the 108 multiprocessors of an A100. A block then has few tiles of states of
this size, so with many channels the partial sums weigh. "Full blocks" have as many tiles as for larger states: 16, or
32 with 192 channels. The states of these lines fill one or two blocks.

No forward step and no backward pass with full blocks may move more than {most} times the floor. A backward pass of the
inverse beyond 12 channels may ask for {two} times the floor: it reads x and h again, from the L2 cache.

"""

_FLOORS = """
### A floor, not a measurement

The time is that of the floor's bytes at the bandwidth of the datasheet. No kernel can be faster. Nobody has measured
how much slower these are. "arithmetic" is the time of the matrix product alone, at the datasheet's float32 rate without
tensor cores. If it is the longer one, it is the floor.

"""


@dataclass(frozen=True)
class Traffic:
    """Traffic of one call.

    Attributes:
        call: the flow step.
        full_blocks: the work was divided as for a GPU with a single multiprocessor, whose blocks have most tiles.
        floor: bytes that any implementation must move.
        moved: bytes moved without a cache, except that matrix and shift count once.
        of_matrix: bytes read of matrix and shift.
        sectors_per_request: mean over the accesses to tensors.
        instructions: number of instructions of threads, by kind.
        narrow: instructions that access less than 16 bytes of tensors in a thread, if more than one in a hundred.
    """

    call: Call
    full_blocks: bool
    floor: int
    moved: int
    of_matrix: int
    sectors_per_request: float
    instructions: Counter[str]
    narrow: list[str]

    @property
    def ratio(self) -> float:
        return self.moved / self.floor


def floor_of(call: Call) -> int:
    """Return the bytes of the tensors that a flow step must read and write."""
    half = call.channels - call.channels // 2
    state, h = call.channels, 2 * half + 2 * call.channels
    channels = 3 * state + 2 * h if call.backward else 2 * state + h
    return channels * call.batch * call.side**2 * call.dtype.itemsize


def traffic_of(call: Call, full_blocks: bool = False) -> Traffic:
    """Run a flow step twice, the second time with matrix and shift half a sector further.

    The instructions whose sectors change are those that read matrix and shift.
    """
    x, coupling, matrix, shift, injector = call.tensors()
    multiprocessors = 1 if full_blocks else MULTIPROCESSORS
    launches = _traced(call, [x, coupling, _at(matrix, 0), _at(shift, 0), injector], multiprocessors)
    moved = _traced(call, [x, coupling, _at(matrix, SECTOR // 2), _at(shift, SECTOR // 2), injector], multiprocessors)
    of_tensors: list[MemorySite] = []
    of_matrix = 0
    for before, after in zip(launches, moved, strict=True):
        for site, other in zip(_global(before.trace), _global(after.trace), strict=True):
            assert site.line == other.line
            if site.kind == "load" and site.sectors != other.sectors:
                of_matrix += SECTOR * site.sectors
            else:
                of_tensors.append(site)
    sectors, requests = sum(site.sectors for site in of_tensors), sum(site.requests for site in of_tensors)
    once = (matrix.numel() + shift.numel()) * matrix.itemsize
    return Traffic(
        call,
        full_blocks,
        floor_of(call),
        SECTOR * sectors + once,
        of_matrix,
        sectors / requests,
        sum((launch.trace.instructions for launch in launches if launch.trace), Counter()),
        [site.text for site in of_tensors if site.bytes < 16 and site.sectors > sectors / 100],
    )


def _traced(call: Call, tensors: Sequence[Tensor], multiprocessors: int) -> list[HostLaunch]:
    """The launches of the forward pass, or of the backward pass alone."""
    with cuda_on_cpu(80, multiprocessors=multiprocessors, trace=True) as launches:
        call.run("cuda", tensors)
    first = next((i for i, launch in enumerate(launches) if "backward" in launch.name), 0)
    return launches[first:]


def _global(trace: Trace | None) -> list[MemorySite]:
    """Accesses to global memory; parameters, which are in the bank of constants, are not."""
    assert trace is not None
    return [site for site in trace.memory if site.space == "global" and ".param" not in site.text]


def _at(tensor: Tensor, offset: int) -> Tensor:
    """A copy of a tensor, ``offset`` bytes after the beginning of a sector."""
    memory = torch.empty(tensor.nbytes + 2 * SECTOR, dtype=torch.uint8)
    first = -memory.data_ptr() % SECTOR + offset
    return memory[first : first + tensor.nbytes].view(tensor.dtype).reshape(tensor.shape).copy_(tensor)


def every_traffic(batch: int) -> list[Traffic]:
    """Return the traffic of both directions, forward and backward, for every number of channels with own kernels."""
    directions = [(inverse, c) for inverse in (False, True) for c in CHANNELS]
    found = []
    for backward in (False, True):
        calls = [Call(c, batch=batch, side=SIDES[c], inverse=inverse, backward=backward) for inverse, c in directions]
        found += [traffic_of(call) for call in calls]
    return found + [traffic_of(full_blocks(c, inverse), full_blocks=True) for inverse, c in directions]


def full_blocks(channels: int, inverse: bool) -> Call:
    """A backward pass that fills blocks on a GPU of a single multiprocessor."""
    batch, side = FULL_BLOCKS[channels]
    return Call(channels, batch=batch, side=side, inverse=inverse, backward=True)


def violations(traffic: Traffic) -> list[str]:
    """Return the violations, one line each."""
    wrong = [f"less than 16 bytes of a thread: {text}" for text in traffic.narrow if not traffic.call.backward]
    call = traffic.call
    most = MOST_TRAFFIC_OF_TWO_READS if call.backward and call.inverse and call.channels > 12 else MOST_TRAFFIC
    if (traffic.full_blocks or not call.backward) and traffic.ratio > most:
        wrong.append(f"{traffic.ratio:.3f} times the floor is moved, more than {most}")
    return [f"{_label(traffic)}: {text}" for text in wrong]


def table(found: Sequence[Traffic]) -> str:
    """One line a call, as Markdown."""
    header = ["flow step", "floor, MB", "moved, MB", "ratio", "of matrix, MB", "sectors a request", "instructions"]
    return markdown_table(header, [_cells(traffic) for traffic in found])


def floor_table(found: Sequence[Traffic]) -> str:
    header = ["flow step", "floor, MB", "product, GFLOP"]
    for name in CHIPS:
        header += [f"{name}, us", "arithmetic, us"]
    lines = []
    for traffic in (traffic for traffic in found if not traffic.full_blocks):
        call = traffic.call
        # backward: the product again, with its transpose, and the gradient of the matrix
        operations = 2 * call.channels**2 * call.batch * call.side**2 * (3 if call.backward else 1)
        times = [t * 1e6 for c in CHIPS.values() for t in (traffic.floor / c.bandwidth, operations / c.operations)]
        figures = [f"{traffic.floor / 1e6:.1f}", f"{operations / 1e9:.2f}", *(f"{time:.1f}" for time in times)]
        lines.append([_label(traffic), *figures])
    return markdown_table(header, lines)


def _cells(traffic: Traffic) -> list[str]:
    total = sum(traffic.instructions.values())
    shares = [f"{kind} {count / total:.0%}" for kind, count in traffic.instructions.most_common(5)]
    return [
        _label(traffic),
        f"{traffic.floor / 1e6:.2f}",
        f"{traffic.moved / 1e6:.2f}",
        f"{traffic.ratio:.3f}",
        f"{traffic.of_matrix / 1e6:.2f}",
        f"{traffic.sectors_per_request:.1f}",
        ", ".join(shares),
    ]


def _label(traffic: Traffic) -> str:
    call = traffic.call
    kind = "inverse" if call.inverse else "forward"
    if call.backward:
        kind = "inverse backward" if call.inverse else "backward"
    kind += ", full blocks" * traffic.full_blocks
    return f"{kind}, {call.batch} x {call.channels} x {call.side} x {call.side}"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status: 1 if ``--check`` found something, 2 if it cannot run."""
    parser = argparse.ArgumentParser(
        prog="traffic", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="samples of a state; default: 16")
    parser.add_argument("--check", action="store_true", help="name every violation and exit 1 if there is one")
    add_markdown_option(parser)
    given = parser.parse_args(arguments)
    if given.batch < 1:
        parser.exit(2, f"traffic: --batch must be positive, got {given.batch}\n")
    if reason := cuda_driver.unavailable(80):
        parser.exit(2, f"traffic: {reason}\n")
    check_markdown(parser, given.markdown)
    found = every_traffic(given.batch)
    print(f"{table(found)}\nA floor, not a measurement:\n\n{floor_table(found)}")
    if given.markdown is not None:
        write_section(
            given.markdown,
            "traffic",
            _TEXT.format(most=MOST_TRAFFIC, two=MOST_TRAFFIC_OF_TWO_READS)
            + table(found)
            + _FLOORS
            + floor_table(found),
        )
    wrong = [violation for traffic in found for violation in violations(traffic)]
    if given.check:
        print("\n".join([*wrong, f"{len(found)} steps, {len(wrong)} violation{'s' * (len(wrong) != 1)}"]))
    return 1 if given.check and wrong else 0


if __name__ == "__main__":
    sys.exit(main())
