"""The largest memory that a call has in use, measured in a process of its own."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import build
from benchmarks.spec import Spec
from benchmarks.workloads import Variant, Workload, Workshop
from sr_models.openmp import unbind

__all__ = ["peak_memory", "peak_of_workload", "peaks_of"]


def peak_memory(spec: Spec, names: list[str], threads: int) -> dict[str, int]:
    """Measure the most bytes that a call of every implementation has in use beyond those before the call.

    Args:
        spec: the case.
        names: implementations.
        threads: number of torch's threads.

    Returns:
        Implementation -> bytes. It is empty if the system does not tell (not Linux).

    Raises:
        RuntimeError: the process failed; the message has the last line of its errors.
    """
    return _in_process({"spec": dataclasses.asdict(spec), "names": names, "threads": threads}, spec.name)


def peak_of_workload(workload: Workload, variant: Variant, threads: int) -> int | None:
    """Measure the same for a variant of a whole model's work, on the CPU; ``None`` if the system does not tell.

    Raises:
        RuntimeError: as :func:`peak_memory`.
    """
    request = {"workload": dataclasses.asdict(workload), "variant": dataclasses.asdict(variant), "threads": threads}
    return _in_process(request, f"{workload.name}, {variant.name}").get(variant.name)


def _in_process(request: dict[str, Any], name: str) -> dict[str, int]:
    """Run :func:`peaks_of` in a process whose freed memory goes back to the system at once."""
    # below this size memory comes from the heap, which keeps what is freed
    environment = {
        **os.environ,
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TOP_PAD_": "0",
        "MALLOC_TRIM_THRESHOLD_": "0",
    }
    command = [sys.executable, str(Path(__file__).parent), "peaks", json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, preexec_fn=unbind)
    if done.returncode:
        raise RuntimeError(f"measuring the memory of {name} failed: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def peaks_of(request: str) -> dict[str, int]:
    """Measure the memory in this process, which has done nothing else.

    Args:
        request: JSON of a spec and names, or of a workload and a variant, and of the number of threads.

    Returns:
        Implementation or variant -> bytes.
    """
    wanted: dict[str, Any] = json.loads(request)
    torch.set_num_threads(wanted["threads"])
    if "workload" in wanted:
        workload = Workload(**{**wanted["workload"], "size": tuple(wanted["workload"]["size"])})
        variant = Variant(**wanted["variant"])
        work = Workshop(workload, "cpu").work(variant)
        # gradients and the optimizer's state stay, and are none of a step's memory
        first = work.call if workload.kind == "train" else work.check
        return _peaks_of_calls({variant.name: (first, work.call)})
    spec = Spec(**{**wanted["spec"], "shape": tuple(wanted["spec"]["shape"])})
    implementations = build(spec, wanted["names"]).implementations
    calls: dict[str, tuple[Callable[[], object], Callable[[], object]]]
    calls = {name: (compute, compute) for name, compute in implementations.items()}
    return _peaks_on_gpu(calls) if spec.device == "cuda" else _peaks_of_calls(calls)


def _peaks_of_calls(calls: dict[str, tuple[Callable[[], object], Callable[[], object]]]) -> dict[str, int]:
    """Make the first call of each, and measure the second."""
    if not Path("/proc/self/clear_refs").exists():
        return {}
    peaks = {}
    for name, (first, call) in calls.items():
        first()
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
        before = _kibibytes("VmRSS")
        call()
        peaks[name] = 1024 * max(_kibibytes("VmHWM") - before, 0)
    return peaks


def _peaks_on_gpu(calls: dict[str, tuple[Callable[[], object], Callable[[], object]]]) -> dict[str, int]:
    peaks = {}
    for name, (first, call) in calls.items():
        first()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        peaks[name] = torch.cuda.max_memory_allocated() - before
    return peaks


def _kibibytes(key: str) -> int:
    match = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1])
