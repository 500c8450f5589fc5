"""Timing of implementations and of the machine's bounds, interleaved in one run."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.gpu import device_seconds
from benchmarks.spec import Case
from benchmarks.spread import quartiles

__all__ = ["Measurement", "measure"]


_COPY, _SGEMM = "machine: copy", "machine: sgemm"


@dataclass(frozen=True)
class Measurement:
    """One implementation of one case. Fields are ``None`` if the case has no roof.

    Attributes:
        case, implementation: names.
        threads: number of torch's threads.
        median, low, high: seconds; low and high are the quartiles.
        bytes_per_second: the case's least traffic over the median.
        share_of_copy: that speed, over the speed of copying as many bytes.
        flops_per_second: operations of the case's matrix product over the median.
        share_of_sgemm: that speed, over that of a product of matrices of 1024 x 1024 (on a GPU, 8192 x 8192).
        share_of_roof: least time that these two speeds allow, divided by the median.
        peak_bytes: largest memory that a call had in use beyond its inputs.
        error: largest absolute difference to float64, relative to the largest result.
    """

    case: str
    implementation: str
    threads: int
    median: float
    low: float
    high: float
    bytes_per_second: float | None
    share_of_copy: float | None
    flops_per_second: float | None
    share_of_sgemm: float | None
    share_of_roof: float | None
    peak_bytes: int | None
    error: float


def measure(case: Case, rounds: int, peaks: dict[str, int] | None = None) -> list[Measurement]:
    """Time every implementation ``rounds`` times, in turn, after two calls that do not count.

    Copying as much memory as the case moves is timed in the same rounds. It finds the caches as the implementations
    find them. A matrix product would empty the caches for everybody and is timed afterwards.

    Args:
        case: the case to time.
        rounds: at least 2.
        peaks: result of :func:`benchmarks.peaks.peak_memory` for the implementations.

    Returns:
        A measurement for every implementation.
    """
    exact = case.exact()
    errors: dict[str, float] = {}
    for name, compute in case.implementations.items():
        compute()
        truths = case.exact_of[name]() if name in case.exact_of else exact
        pairs = list(zip(compute(), truths, strict=True))
        errors[name] = max(
            ((actual - truth).abs().max() / truth.abs().max().clamp(min=1e-30)).item() for actual, truth in pairs
        )
    side = 1024 if case.device == "cpu" else 8192
    source = torch.zeros(max(case.bytes // 8, 1), device=case.device)
    factor = torch.randn(side, side, device=case.device)
    target, product = torch.empty_like(source), torch.empty_like(factor)
    times = _interleaved({**case.implementations, _COPY: lambda: target.copy_(source)}, rounds, case.device)
    sgemm = _interleaved({_SGEMM: lambda: torch.mm(factor, factor, out=product)}, 9, case.device)[_SGEMM]
    copy_speed = 8 * source.numel() / statistics.median(times.pop(_COPY))
    sgemm_speed = 2 * side**3 / statistics.median(sgemm)
    least = max(case.bytes / copy_speed, case.flops / sgemm_speed)
    results = []
    for name, seconds in times.items():
        low, median, high = quartiles(seconds)
        bandwidth, flops = case.bytes / median or None, case.flops / median or None
        results.append(
            Measurement(
                case=case.name,
                implementation=name,
                threads=torch.get_num_threads(),
                median=median,
                low=low,
                high=high,
                bytes_per_second=bandwidth,
                share_of_copy=bandwidth and bandwidth / copy_speed,
                flops_per_second=flops,
                share_of_sgemm=flops and flops / sgemm_speed,
                share_of_roof=least / median or None,
                peak_bytes=(peaks or {}).get(name),
                error=errors[name],
            )
        )
    return results


def _interleaved(calls: dict[str, Callable[[], object]], rounds: int, device: str) -> dict[str, list[float]]:
    """Return the seconds that every call takes, in every round. On a GPU launching counts if the GPU waits for it."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(device_seconds(call, device))
    return times
