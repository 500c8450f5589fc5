"""Measurement of whole models: all variants of a workload in turn, in one process."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks import gpu
from benchmarks.markdown import markdown
from benchmarks.peaks import peak_of_workload
from benchmarks.spread import quartiles
from benchmarks.workloads import Variant, Work, Workload, Workshop

__all__ = ["ModelResult", "measure_models", "models_table"]

#: A call that takes longer than this many seconds is timed twice only.
_LONG = 60.0
#: A call that takes longer than this many seconds is not profiled.
_PROFILED = 2.0


@dataclass(frozen=True)
class ModelResult:
    """One variant of a workload.

    Attributes:
        workload, variant: names.
        number: images of the workload: those of a training step, or samples.
        threads: number of torch's threads.
        clock: "processor" for seconds of processor time, "wall" for seconds of a clock.
        median, low, high: seconds of the whole workload; low and high are the quartiles.
        rounds: timed calls.
        prepared: seconds of a clock until it was as fast as it will be: compilation, graphs, and first calls.
        difference: to the workload's first variant: root mean square, relative.
        peak_bytes: largest memory that a call had in use beyond that before it.
        launches: kernels and graphs that a call launches on a GPU.
        busy: seconds of a call for which the GPU computes.
        waits: synchronisations of a call on a GPU, by place in the source.
        heaviest: kernels that took longest, with their seconds and numbers.
        error: why it could not be measured; all figures are then zero.
    """

    workload: str
    variant: str
    number: int
    threads: int
    clock: str
    median: float = 0.0
    low: float = 0.0
    high: float = 0.0
    rounds: int = 0
    prepared: float = 0.0
    difference: float = 0.0
    peak_bytes: int | None = None
    launches: int | None = None
    busy: float | None = None
    waits: dict[str, int] | None = None
    heaviest: list[list[object]] = field(default_factory=list)
    error: str = ""


def measure_models(
    workload: Workload,
    variants: Sequence[Variant],
    device: str,
    rounds: int,
    *,
    with_peaks: bool = False,
    until: float = math.inf,
) -> list[ModelResult]:
    """Time the variants of a workload in turn.

    With one thread on a CPU the processor time counts, which a busy machine disturbs less; else the wall-clock time.

    Args:
        workload: what is computed.
        variants: ways to compute it; the others are compared with the first.
        device: "cpu" or "cuda".
        rounds: timed calls of each, at least 2, after one that does not count.
        with_peaks: measure the memory on a CPU too. On a GPU it is always measured.
        until: value of ``time.monotonic()`` after which no further variant is prepared, none is timed more than twice,
            and none is profiled. What has been measured by then is returned.
    """
    shop = Workshop(workload, device)
    threads = torch.get_num_threads()
    by_processor = device == "cpu" and threads == 1
    works: dict[Variant, Work] = {}
    failures: dict[Variant, str] = {}
    differences: dict[Variant, float] = {}
    prepared: dict[Variant, float] = {}
    truth: Tensor | None = None
    for variant in variants:
        if time.monotonic() > until:
            failures[variant] = "no time left"
            continue
        try:
            work, start = shop.work(variant), time.monotonic()
            checked = work.check().double()
            truth = checked if truth is None else truth
            differences[variant] = ((checked - truth).square().mean() / truth.square().mean()).sqrt().item()
            if workload.kind == "train" or device == "cuda":
                for _ in range(work.warm_up):  # makes gradients, the optimizer's state, graphs, and what libraries keep
                    work.call()
            gpu.synchronize(device)
            prepared[variant] = time.monotonic() - start
            works[variant] = work
        except RuntimeError as error:  # a capture that is not allowed, or too little memory
            failures[variant] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    times: dict[Variant, list[float]] = {variant: [] for variant in works}
    for round_number in range(rounds):
        if round_number >= 2 and time.monotonic() > until:
            break
        for variant, work in works.items():
            if round_number < 2 or times[variant][0] < _LONG:
                times[variant].append(_seconds(work.call, device, by_processor))
    results = []
    for variant in variants:
        names = workload.name, variant.name, workload.number, threads, "processor" if by_processor else "wall"
        if variant in failures:
            results.append(ModelResult(*names, error=failures[variant]))
            continue
        calls = works[variant].calls
        low, median, high = (calls * seconds for seconds in quartiles(times[variant]))
        profiled = device == "cuda" and time.monotonic() <= until
        figures = _on_gpu(variant, works[variant], times[variant][0]) if profiled else {}
        if with_peaks:
            figures["peak_bytes"] = peak_of_workload(workload, variant, threads)
        results.append(
            ModelResult(
                *names,
                median=median,
                low=low,
                high=high,
                rounds=len(times[variant]),
                prepared=prepared[variant],
                difference=differences[variant],
                **figures,
            )
        )
    return results


def _seconds(call: Callable[[], object], device: str, by_processor: bool) -> float:
    clock = time.process_time if by_processor else time.perf_counter
    gpu.synchronize(device)
    start = clock()
    call()
    gpu.synchronize(device)
    return clock() - start


def _on_gpu(variant: Variant, work: Work, seconds: float) -> dict[str, Any]:
    """Return memory, launches, kernels and waits of one call; those of a workload of several calls count as often.

    Calls that take longer than some seconds launch too many kernels to be profiled.
    """
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with gpu.waits() as places:
        work.call()
    found: dict[str, Any] = {
        # a graph has its memory for good
        "peak_bytes": None if variant.option == "graph" else torch.cuda.max_memory_allocated() - before,
        "waits": {place: work.calls * count for place, count in places.most_common()},
    }
    if seconds < _PROFILED:
        activity = gpu.activity_of(work.call)
        found["launches"] = work.calls * activity.launches
        found["busy"] = work.calls * activity.busy
        found["heaviest"] = [list(kernel) for kernel in activity.heaviest]
    return found


_HEAD = (
    "workload | threads | variant | seconds | quartiles | images/s | vs published | vs published, fp32 | peak MiB | "
    "difference | prepared | launches | waits | GPU busy"
)


def models_table(results: Sequence[ModelResult]) -> str:
    """Format a Markdown table.

    Ratios are times over that of the published composition: in the same precision, and in float32.
    """
    medians = {(r.workload, r.threads, r.variant): r.median for r in results}

    def ratio(r: ModelResult, precision: str) -> str:
        base = medians.get((r.workload, r.threads, f"published-{precision}"))
        return f"{r.median / base:.2f}" if base else ""

    rows = []
    for r in results:
        cells = [r.workload, str(r.threads), r.variant]
        if r.error:
            rows.append([*cells, r.error])
            continue
        cells += [
            f"{r.median:.4g}",
            f"{r.low:.4g} to {r.high:.4g}",
            f"{r.number / r.median:.3g}",
            ratio(r, r.variant.split("-")[1]),
            ratio(r, "fp32"),
            "" if r.peak_bytes is None else f"{r.peak_bytes / 2**20:.0f}",
            f"{r.difference:.0e}",
            f"{r.prepared:.3g}",
            "" if r.launches is None else str(r.launches),
            "" if r.waits is None else str(sum(r.waits.values())),
            "" if r.busy is None else f"{r.busy / r.median:.0%}",
        ]
        rows.append(cells)
    return markdown(_HEAD.split(" | "), rows)
