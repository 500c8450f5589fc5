"""Timing: implementations interleaved in one run, and the two speeds of the machine that bound them."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from time import perf_counter

import torch

from benchmarks.cases import Case

__all__ = ["Machine", "Measurement", "machine_speeds", "measure"]


@dataclass(frozen=True)
class Machine:
    """What this machine reaches with this number of threads: copying a state of a given size, and multiplying matrices.

    Attributes:
        copy_bytes_per_second: bytes read and bytes written, added.
        sgemm_flops_per_second: of a 1024 x 1024 float32 product.
    """

    copy_bytes_per_second: float
    sgemm_flops_per_second: float


@dataclass(frozen=True)
class Measurement:
    """One implementation of one case.

    Attributes:
        case, implementation: names.
        threads: of torch.
        median, low, high: seconds; low and high are the quartiles.
        bytes_per_second: of the case's least traffic.
        flops_per_second: of the case's matrix product.
        share_of_roof: least time that the machine's speeds allow, divided by the median.
        error: largest absolute difference to float64, relative to the largest result.
    """

    case: str
    implementation: str
    threads: int
    median: float
    low: float
    high: float
    bytes_per_second: float
    flops_per_second: float
    share_of_roof: float
    error: float


def machine_speeds(traffic: int) -> Machine:
    """Measure the machine, copying as much memory as the case moves, so that a case that fits a cache is compared with
    that cache's speed."""
    source = torch.zeros(max(traffic // 8, 1024))
    target = torch.empty_like(source)
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    product = torch.empty_like(a)
    copy = _median_seconds(lambda: target.copy_(source), 15)
    multiply = _median_seconds(lambda: torch.mm(a, b, out=product), 7)
    return Machine(8 * source.numel() / copy, 2 * 1024**3 / multiply)


def measure(case: Case, rounds: int) -> list[Measurement]:
    """Time every implementation ``rounds`` times, in turn, after two calls that do not count."""
    exact = case.exact()
    errors: dict[str, float] = {}
    for name, compute in case.implementations.items():
        compute()
        pairs = list(zip(compute(), exact, strict=True))
        errors[name] = max(
            ((actual - truth).abs().max() / truth.abs().max().clamp(min=1e-30)).item() for actual, truth in pairs
        )
    times: dict[str, list[float]] = {name: [] for name in case.implementations}
    for _ in range(rounds):
        for name, compute in case.implementations.items():
            start = perf_counter()
            compute()
            times[name].append(perf_counter() - start)
    machine = machine_speeds(case.bytes)
    least = max(case.bytes / machine.copy_bytes_per_second, case.flops / machine.sgemm_flops_per_second)
    results = []
    for name, seconds in times.items():
        low, median, high = statistics.quantiles(seconds, n=4)
        results.append(
            Measurement(
                case=case.name,
                implementation=name,
                threads=torch.get_num_threads(),
                median=median,
                low=low,
                high=high,
                bytes_per_second=case.bytes / median,
                flops_per_second=case.flops / median,
                share_of_roof=least / median,
                error=errors[name],
            )
        )
    return results


def _median_seconds(call: object, rounds: int) -> float:
    assert callable(call)
    call()
    seconds = []
    for _ in range(rounds):
        start = perf_counter()
        call()
        seconds.append(perf_counter() - start)
    return statistics.median(seconds)
