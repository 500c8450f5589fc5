r"""First-order model of a kernel's time, from the bytes it moves and the operations it does. Nothing was measured.

.. math:: t = \max\left(\frac{\text{bytes}}{\text{copy bandwidth}}, \frac{\text{flops}}{\text{peak}} q,
    \frac{\text{instructions}}{\text{issue rate}} q\right) + \text{launch},
    \qquad q = \lceil \text{programs} / \text{SMs} \rceil \cdot \text{SMs} / \text{programs}

where :math:`q` is the idleness of multiprocessors when the last programs run. Bytes count every tensor once, and the
operands of the matrix's gradient once for each tile of the matrix that reads them.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from torch import Tensor

from tests.gates.compile_report.compilations import configurations_of, facts_of_jobs
from tests.gates.compile_report.compiling import TARGETS, Facts, source_of
from tests.gates.compile_report.instances import Instance, flow_step, flow_step_backward

#: Share of the datasheet's bandwidth that a copy reaches. An assumption.
COPY_EFFICIENCY = 0.85
#: Seconds from the end of a kernel to the first instruction of the next one in its stream. An assumption.
LAUNCH = 3e-6

# Floating-point operations (a fused multiply-add is two) and all instructions of an element in the published form,
# counted in the machine code of affine_coupling_fwd_kernel and affine_coupling_bwd_kernel for sm_80, configuration 512
# pixels on 4 warps; the larger of the two directions.
_MAP = (64, 122)
_MAP_GRADIENT = (47, 98)


class Chip(NamedTuple):
    """A processor, and what its multiprocessors hold.

    Attributes:
        target: key of :data:`~tests.gates.compile_report.compiling.TARGETS`.
        bandwidth: of memory, bytes a second, datasheet.
        multiprocessors: datasheet.
        clock: boost, Hz, datasheet.
        lanes: float32 units of a multiprocessor; each does a multiply-add a cycle.
        threads, blocks, shared: that fit a multiprocessor. All have 65536 registers, given out to warps by 256, and
            four schedulers, which issue one instruction for 32 threads a cycle each.
    """

    target: str
    bandwidth: float
    multiprocessors: int
    clock: float
    lanes: int
    threads: int
    blocks: int
    shared: int


#: Datasheets "NVIDIA A100" (80 GB, SXM) and "NVIDIA H100" (SXM), whitepaper "NVIDIA Turing GPU Architecture" (reference
#: card); threads, blocks and shared memory: CUDA C++ Programming Guide, "Technical Specifications per Compute
#: Capability".
CHIPS = {
    "A100": Chip("sm_80", 2039e9, 108, 1.41e9, 64, 2048, 32, 164 << 10),
    "H100": Chip("sm_90", 3350e9, 132, 1.98e9, 128, 2048, 32, 228 << 10),
    "RTX 2080 Ti": Chip("sm_75", 616e9, 68, 1.545e9, 64, 1024, 16, 64 << 10),
}


#: (batch, channels, height, width) of the benchmarks: SRFlow's states with 160 pixel crops, and one whole HD image.
SHAPES = ((16, 12, 80, 80), (16, 48, 40, 40), (16, 192, 20, 20), (1, 12, 540, 960))


class Work(NamedTuple):
    """Work of a launch: bytes to and from memory, floating-point operations, instructions of threads, programs."""

    bytes: int
    flops: int
    instructions: int
    programs: int


class Prediction(NamedTuple):
    """Seconds, what bounds them (``"memory"``, ``"arithmetic"`` or ``"issue"``), and the share of a multiprocessor's
    threads that are resident."""

    seconds: float
    bound: str
    occupancy: float


class Predicted(NamedTuple):
    """A launch of a benchmark case with the configuration that it is predicted for; predictions by chip."""

    instance: Instance
    config: Any
    work: Work
    predictions: dict[str, Prediction]


def predicted(processes: int) -> list[Predicted]:
    """The kernels of the benchmark cases: flow steps with a coupling."""
    launches = []
    for shape in SHAPES:
        for call in (flow_step(shape, False, injector=False), flow_step(shape, True, injector=False)):
            launches += call
        launches += flow_step_backward(shape, False, injector=False)
    configs = [configurations_of(instance, "sm_80")[0] for instance in launches]
    jobs = [
        (source_of(instance.kernel, instance.arguments, config, TARGETS[chip.target]), chip.target)
        for instance, config in zip(launches, configs, strict=True)
        for chip in CHIPS.values()
    ]
    facts = facts_of_jobs(jobs, processes)
    found = []
    for instance, config in zip(launches, configs, strict=True):
        work = work_of(instance, config)
        predictions = {name: predict(work, next(facts), config.num_warps, chip) for name, chip in CHIPS.items()}
        batch, _, height, width = instance.arguments["x_ptr"].shape
        named = instance._replace(name=f"{instance.name}, {batch} x {height} x {width}")
        found.append(Predicted(named, config, work, predictions))
    return found


def work_of(instance: Instance, config: Any) -> Work:
    """The work of a launch with a configuration. Injectors are not modelled: the benchmarks have none."""
    arguments = {**instance.arguments, **config.kwargs}
    grid = (*instance.grid(arguments), 1, 1)[:3]
    kernel = instance.kernel.__name__
    moved = sum(
        tensor.numel() * tensor.element_size() * _times_read(kernel, name, arguments, grid)
        for name, tensor in arguments.items()
        if isinstance(tensor, Tensor)
    )
    pixels = arguments["x_ptr"].shape[0] * arguments["pixels"]
    products = _products_a_pixel(kernel, arguments, grid)
    maps, gradients = _maps_a_pixel(kernel, arguments, grid)
    flops = 2 * products + maps * _MAP[0] + gradients * _MAP_GRADIENT[0]
    instructions = products + maps * _MAP[1] + gradients * _MAP_GRADIENT[1]
    return Work(round(moved), pixels * flops, pixels * instructions, math.prod(grid))


def occupancy_of(facts: Facts, warps: int, chip: Chip) -> float:
    """Resident threads of a multiprocessor, of those that fit."""
    registers = warps * _round_up(32 * facts.registers, 256)
    # every block takes a kibibyte for itself since compute capability 8.0
    shared = facts.shared + (1 << 10 if chip.target != "sm_75" else 0)
    fitting = min(65536 // registers, chip.shared // max(shared, 1), chip.threads // (32 * warps), chip.blocks)
    return fitting * 32 * warps / chip.threads


def predict(work: Work, facts: Facts, warps: int, chip: Chip) -> Prediction:
    """The time of a launch on a chip."""
    idle = math.ceil(work.programs / chip.multiprocessors) * chip.multiprocessors / work.programs
    cycles = chip.multiprocessors * chip.clock
    bounds = {
        "memory": work.bytes / (COPY_EFFICIENCY * chip.bandwidth),
        "arithmetic": work.flops / (2 * chip.lanes * cycles) * idle,
        "issue": work.instructions / (4 * 32 * cycles) * idle,
    }
    bound = max(bounds, key=lambda name: bounds[name])
    return Prediction(bounds[bound] + LAUNCH, bound, occupancy_of(facts, warps, chip))


def _times_read(kernel: str, name: str, arguments: dict[str, Any], grid: tuple[int, ...]) -> float:
    if kernel == "matrix_gradient_kernel":
        if name == "grad_ptr":
            return grid[2]
        return grid[1] if name in ("x_ptr", "coupling_ptr") else 1
    # of x only what a map transforms has a use in the gradients
    if name == "x_ptr" and kernel in ("affine_coupling_bwd_kernel", "flow_step_bwd_kernel"):
        return arguments["COUNT"] / arguments["x_ptr"].shape[1]
    return 1


def _products_a_pixel(kernel: str, arguments: dict[str, Any], grid: tuple[int, ...]) -> int:
    """Multiply-adds, those of tiles that reach over the matrix included."""
    if kernel.startswith("affine_coupling"):
        return 0
    if "BLOCK_K" in arguments:
        return arguments["BLOCK_C"] * grid[1] * _round_up(arguments["C"], arguments["BLOCK_K"])
    if "BLOCK_C" in arguments:
        return arguments["BLOCK_C"] ** 2 * grid[1] * grid[2]
    return arguments["C"] ** 2


def _maps_a_pixel(kernel: str, arguments: dict[str, Any], grid: tuple[int, ...]) -> tuple[int, int]:
    """Channels for which the coupling is evaluated, and for which its gradients are; tiles do so for all channels."""
    if arguments.get("coupling_ptr", arguments.get("h_ptr")) is None:
        return 0, 0
    if kernel == "matrix_gradient_kernel":
        return arguments["BLOCK_C"] * grid[1] * grid[2], 0
    channels = arguments["COUNT"]
    if "_bwd_" in kernel:
        return 0, arguments.get("BLOCK_C", channels)
    return (_round_up(arguments["C"], arguments["BLOCK_K"]) if "BLOCK_K" in arguments else channels), 0


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
