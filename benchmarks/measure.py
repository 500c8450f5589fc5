"""Timing of implementations and of the machine's bounds, interleaved in one run."""

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

from benchmarks.cases import build
from benchmarks.spec import Case, Spec
from sr_models.openmp import unbind

__all__ = ["Measurement", "measure", "peak_memory", "peaks_of"]


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
        peaks: result of :func:`peak_memory` for the implementations.

    Returns:
        A measurement for every implementation.
    """
    exact = case.exact()
    errors: dict[str, float] = {}
    for name, compute in case.implementations.items():
        compute()
        pairs = list(zip(compute(), exact, strict=True))
        errors[name] = max(
            ((actual - truth).abs().max() / truth.abs().max().clamp(min=1e-30)).item() for actual, truth in pairs
        )
    side = 1024 if case.device == "cpu" else 8192
    source = torch.zeros(max(case.bytes // 8, 1), device=case.device)
    factor = torch.randn(side, side, device=case.device)
    target, product = torch.empty_like(source), torch.empty_like(factor)
    seconds_of = _seconds_of_call if case.device == "cpu" else _seconds_on_gpu
    times = _interleaved({**case.implementations, _COPY: lambda: target.copy_(source)}, rounds, seconds_of)
    sgemm = _interleaved({_SGEMM: lambda: torch.mm(factor, factor, out=product)}, 9, seconds_of)[_SGEMM]
    copy_speed = 8 * source.numel() / statistics.median(times.pop(_COPY))
    sgemm_speed = 2 * side**3 / statistics.median(sgemm)
    least = max(case.bytes / copy_speed, case.flops / sgemm_speed)
    results = []
    for name, seconds in times.items():
        low, median, high = (case.calls.get(name, 1) * second for second in statistics.quantiles(seconds, n=4))
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


def _interleaved(
    calls: dict[str, Callable[[], object]], rounds: int, seconds_of: Callable[[Callable[[], object]], float]
) -> dict[str, list[float]]:
    """Return the seconds that every call takes, in every round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds_of(call))
    return times


def _seconds_of_call(call: Callable[[], object]) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start


def _seconds_on_gpu(call: Callable[[], object]) -> float:
    """Time a call between two events on the current stream. Launching counts if the GPU waits for it."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    call()
    end.record()
    end.synchronize()
    return 1e-3 * start.elapsed_time(end)


def peak_memory(spec: Spec, names: list[str], threads: int) -> dict[str, int]:
    """Measure the most bytes that a call of every implementation has in use beyond those before the call.

    A process of its own measures it, whose freed memory goes back to the system at once.

    Args:
        spec: the case.
        names: implementations.
        threads: number of torch's threads.

    Returns:
        Implementation -> bytes. It is empty if the system does not tell (not Linux).

    Raises:
        RuntimeError: the process failed; the message has the last line of its errors.
    """
    request = json.dumps({"spec": dataclasses.asdict(spec), "names": names, "threads": threads})
    # below this size memory comes from the heap, which keeps what is freed
    environment = {
        **os.environ,
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TOP_PAD_": "0",
        "MALLOC_TRIM_THRESHOLD_": "0",
    }
    command = [sys.executable, str(Path(__file__).parent), "peaks", request]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, preexec_fn=unbind)
    if done.returncode:
        raise RuntimeError(f"measuring the memory of {spec.name} failed: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def peaks_of(request: str) -> dict[str, int]:
    """Measure the memory for :func:`peak_memory`, in this process.

    Args:
        request: JSON with spec, names and threads.

    Returns:
        Implementation -> bytes.
    """
    wanted: dict[str, Any] = json.loads(request)
    torch.set_num_threads(wanted["threads"])
    spec = Spec(**{**wanted["spec"], "shape": tuple(wanted["spec"]["shape"])})
    if spec.device == "cuda":
        return _peaks_on_gpu(build(spec, wanted["names"]))
    if not Path("/proc/self/clear_refs").exists():
        return {}
    peaks = {}
    for name, compute in build(spec, wanted["names"]).implementations.items():
        compute()
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
        before = _kibibytes("VmRSS")
        compute()
        peaks[name] = 1024 * max(_kibibytes("VmHWM") - before, 0)
    return peaks


def _peaks_on_gpu(case: Case) -> dict[str, int]:
    peaks = {}
    for name, compute in case.implementations.items():
        compute()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        compute()
        peaks[name] = torch.cuda.max_memory_allocated() - before
    return peaks


def _kibibytes(key: str) -> int:
    match = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1])
