"""Compiles all instances for all targets, and judges what came out."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

from invflow.backends.triton import tuning
from tests.gates.compile_report.compiling import TARGETS, Facts, Source, compile_for, facts_of, source_of
from tests.gates.compile_report.instances import Instance

#: Seconds of processor time that the compilation of a kernel may take.
SLOWEST = 10.0
#: Bits that the widest load of a contiguous float32 state has.
WIDEST = 128
#: Registers of a thread on one target from which another of the same maker may spill, of the 255 that there are. No two
#: NVIDIA targets differed by more than 48; shared memory and widths of loads were the same on all of them.
SCARCE = 192

_KERNELS = {kernel.__name__: kernel for kernel in tuning.CONFIGS}


class Row(NamedTuple):
    """A compiled kernel: which, for what, with which configuration, and what came of it."""

    kernel: str
    instance: str
    target: str
    configuration: str
    contiguous_float32: bool
    facts: Facts


def configurations_of(instance: Instance, target: str) -> list[Any]:
    """The configurations that a launch on the target chooses between; only the first, if the instance says so.

    Raises:
        ValueError: if there is none, so that a launch would fail.
    """
    configs = tuning.fitting(instance.kernel, instance.arguments, TARGETS[target].gpu.warp_size)
    if not configs:
        raise ValueError(f"no configuration of {instance.kernel.__name__} fits {instance.name} on {target}")
    return configs if instance.every_configuration else configs[:1]


def label(config: Any) -> str:
    """A configuration in a few words: pixels of a block and warps."""
    (pixels,) = config.kwargs.values()
    return f"{pixels} pixels, {config.num_warps} warp{'s' * (config.num_warps > 1)}"


def rows_that_may_differ(
    instances: Sequence[Instance], targets: Sequence[str], processes: int, progress: Callable[[int, int], None]
) -> list[Row]:
    """Compile everything for the first target of each maker, and for its others what may spill there.

    Args:
        instances, targets, processes, progress: as of :func:`rows`.
    """
    makers = [TARGETS[target].gpu.backend for target in targets]
    first = [target for number, target in enumerate(targets) if makers.index(makers[number]) == number]
    found = rows(instances, first, processes, progress)
    scarce = {row[:4] for row in found if row.facts.registers > SCARCE}

    def may_spill(kernel: str, instance: str, target: str, configuration: str) -> bool:
        of_maker = targets[makers.index(TARGETS[target].gpu.backend)]
        return (kernel, instance, of_maker, configuration) in scarce

    others = [target for target in targets if target not in first]
    return found + rows(instances, others, processes, progress, may_spill)


def rows(
    instances: Sequence[Instance],
    targets: Sequence[str],
    processes: int,
    progress: Callable[[int, int], None],
    wanted: Callable[[str, str, str, str], bool] = lambda *names: True,
) -> list[Row]:
    """Compile instances for targets; what two instances have in common is compiled once, for the first.

    Args:
        instances: what to compile.
        targets: keys of :data:`~tests.gates.compile_report.compiling.TARGETS`.
        processes: how many compile at once.
        progress: called with the number of finished compilations and of all.
        wanted: chooses by the names of kernel, instance, target and configuration.
    """
    jobs: dict[str, tuple[Instance, str, str, Source]] = {}
    for target in targets:
        for instance in instances:
            for config in configurations_of(instance, target):
                source = source_of(instance.kernel, instance.arguments, config, TARGETS[target])
                jobs.setdefault(f"{target} {source}", (instance, target, label(config), source))
    found = []
    chosen = [job for job in jobs.values() if wanted(job[3].kernel, job[0].name, *job[1:3])]
    for (instance, target, configuration, source), facts in zip(
        chosen, facts_of_jobs([(job[3], job[1]) for job in chosen], processes), strict=True
    ):
        found.append(Row(source.kernel, instance.name, target, configuration, instance.contiguous_float32, facts))
        progress(len(found), len(chosen))
    return found


def violations(row: Row) -> list[str]:
    """Return the violations of a compiled kernel, in words."""
    facts, allowed = row.facts, TARGETS[row.target].shared
    found = []
    if facts.spills:
        found.append(f"spills {facts.spills} bytes a thread")
    if facts.shared > allowed:
        found.append(f"needs {facts.shared} bytes of shared memory, {row.target} has {allowed}")
    if row.contiguous_float32 and facts.widest_load < WIDEST:
        found.append(f"loads at most {facts.widest_load} bits at once, not {WIDEST}")
    if facts.seconds > SLOWEST:
        found.append(f"took {facts.seconds:.1f} s to compile, more than {SLOWEST:.0f}")
    return [f"{row.kernel} ({row.instance}; {row.configuration}) for {row.target} {what}" for what in found]


def facts_of_jobs(jobs: list[tuple[Source, str]], processes: int) -> Iterator[Facts]:
    """Compile sources for targets, in order, each in one of so many processes."""
    if processes == 1:
        yield from map(_run, jobs)
        return
    # not fork: torch has threads
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_run, jobs)


def _run(job: tuple[Source, str]) -> Facts:
    source, target = job
    return facts_of(*compile_for(_KERNELS[source.kernel], source, TARGETS[target]))
