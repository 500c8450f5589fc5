"""Timing: implementations interleaved in one run, and the two speeds of the machine that bound them."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from benchmarks.cases import Case, Spec, build

__all__ = ["Machine", "Measurement", "machine_speeds", "measure", "peak_memory", "peaks_of"]


@dataclass(frozen=True)
class Machine:
    """What this machine reaches with this number of threads.

    Attributes:
        copy_bytes_per_second: bytes read and bytes written, added.
        sgemm_flops_per_second: of a 1024 x 1024 float32 product.
    """

    copy_bytes_per_second: float
    sgemm_flops_per_second: float


@dataclass(frozen=True)
class Measurement:
    """One implementation of one case. ``None`` where a case has no roof.

    Attributes:
        case, implementation: names.
        threads: of torch.
        median, low, high: seconds; low and high are the quartiles.
        bytes_per_second: of the case's least traffic.
        share_of_copy: that, in relation to the machine's copying.
        flops_per_second: of the case's matrix product.
        share_of_sgemm: that, in relation to the machine's matrix product.
        share_of_roof: least time that the machine's speeds allow, divided by the median.
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


def measure(case: Case, rounds: int, peaks: dict[str, int] | None = None) -> list[Measurement]:
    """Time every implementation ``rounds`` times, in turn, after two calls that do not count.

    Args:
        case: what to time.
        rounds: at least 2.
        peaks: what :func:`peak_memory` found for the implementations.
    """
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
                share_of_copy=bandwidth and bandwidth / machine.copy_bytes_per_second,
                flops_per_second=flops,
                share_of_sgemm=flops and flops / machine.sgemm_flops_per_second,
                share_of_roof=least / median or None,
                peak_bytes=(peaks or {}).get(name),
                error=errors[name],
            )
        )
    return results


def peak_memory(spec: Spec, names: list[str], threads: int) -> dict[str, int]:
    """Bytes that a call of every implementation has in use at most beyond what there was before, measured in a process
    of its own whose freed memory goes back to the system at once. Empty where the system does not tell (not Linux)."""
    request = json.dumps({"spec": dataclasses.asdict(spec), "names": names, "threads": threads})
    # below this size memory comes from the heap, which keeps what is freed
    environment = {
        **os.environ,
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TOP_PAD_": "0",
        "MALLOC_TRIM_THRESHOLD_": "0",
    }
    command = [sys.executable, "-m", "benchmarks", "peaks", request]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"measuring the memory of {spec.name} failed: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def peaks_of(request: str) -> dict[str, int]:
    """What :func:`peak_memory` asks its process for."""
    wanted: dict[str, Any] = json.loads(request)
    if not Path("/proc/self/clear_refs").exists():
        return {}
    torch.set_num_threads(wanted["threads"])
    spec = Spec(**{**wanted["spec"], "shape": tuple(wanted["spec"]["shape"])})
    peaks = {}
    for name, compute in build(spec, wanted["names"]).implementations.items():
        compute()
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
        before = _kibibytes("VmRSS")
        compute()
        peaks[name] = 1024 * max(_kibibytes("VmHWM") - before, 0)
    return peaks


def _kibibytes(key: str) -> int:
    match = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1])


def _median_seconds(call: Callable[[], object], rounds: int) -> float:
    call()
    seconds = []
    for _ in range(rounds):
        start = perf_counter()
        call()
        seconds.append(perf_counter() - start)
    return statistics.median(seconds)
