"""The command ``run``: chooses cases, measures them one after the other, and keeps every result as it comes."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

import invflow
from benchmarks.cases import IMPLEMENTATIONS, build, runnable, specs_of
from benchmarks.gpu import tf32
from benchmarks.measure import Measurement, measure
from benchmarks.models import ModelResult, measure_models, models_table
from benchmarks.operators import OperatorResult, measure_operator, operator_cases, operators_table
from benchmarks.peaks import peak_memory
from benchmarks.report import table
from benchmarks.steps import missing_libraries
from benchmarks.workloads import compiled_variants_of, variants_of, workloads
from sr_models.io.files import write_text

__all__ = ["KINDS", "OPERATORS", "run"]

#: What can be measured.
OPERATORS = (*IMPLEMENTATIONS, "models")

#: By kind of result: its class, and the function that formats a table of it.
KINDS: dict[str, tuple[type, Callable[[Sequence[Any]], str]]] = {
    "cases": (Measurement, table),
    "models": (ModelResult, models_table),
    "operators": (OperatorResult, operators_table),
}


@dataclass(frozen=True)
class _Task:
    """A case to measure.

    Attributes:
        name: what ``--only`` chooses by.
        threads: number of torch's threads.
        measure: measures it.
    """

    name: str
    threads: int
    measure: Callable[[], Sequence[Any]]


def run(arguments: argparse.Namespace) -> None:
    """Measure, print a table, and write the figures after every case.

    Raises:
        ValueError, FileNotFoundError: options that are wrong or do not fit each other.
    """
    _check(arguments)
    kind = _kind(arguments)
    make = {"models": _model_tasks, "operators": _operator_tasks, "cases": _case_tasks}[kind]
    patterns = arguments.only or ["*"]
    tasks = [task for task in make(arguments) if any(fnmatchcase(task.name, pattern) for pattern in patterns)]
    if not tasks:
        known = ", ".join(dict.fromkeys(f"'{task.name}'" for task in make(arguments)))
        raise ValueError(f"--only must match a case, got {' '.join(arguments.only)}; the cases are {known}")
    record: dict[str, Any] = {"machine": _machine(arguments.device), "command": _command(), "kind": kind}
    record |= {"not_measured": [], "results": []}
    results: list[Any] = []
    begin = time.monotonic()
    for number, task in enumerate(tasks, 1):
        if arguments.seconds is not None and time.monotonic() - begin > arguments.seconds:
            record["not_measured"].append(task.name)
            continue
        print(f"{task.threads} threads, {number}/{len(tasks)}: {task.name}", file=sys.stderr)
        torch.set_num_threads(task.threads)
        results += task.measure()
        record["results"] = [dataclasses.asdict(result) for result in results]
        _write(arguments.json, record)
    _write(arguments.json, record)
    print(KINDS[kind][1](results))
    if record["not_measured"]:
        print(f"no time left for {len(record['not_measured'])} of {len(tasks)} cases", file=sys.stderr)


def _kind(arguments: argparse.Namespace) -> str:
    """Return the key of :data:`KINDS`. On a GPU no step is large enough to see kernels behind the host's time."""
    if arguments.operator == "models":
        return "models"
    return (
        "operators"
        if arguments.operator == "flow_step" and (arguments.device == "cuda" or arguments.quick)
        else "cases"
    )


def _check(arguments: argparse.Namespace) -> None:
    """Check options, and fill in those that were not given."""
    operator, device = arguments.operator, arguments.device
    if arguments.json is not None and not arguments.json.parent.is_dir():
        raise FileNotFoundError(f"folder of --json {arguments.json} does not exist")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no CUDA or ROCm device")
    if arguments.quick and operator not in ("models", "flow_step"):
        raise ValueError(f"--quick must be used with models or flow_step, got {operator}")
    allowed, names = _implementations(arguments)
    if arguments.backends is None and device == "cpu" and "cpu" in allowed and "cpu" not in names:
        _say_why_the_kernels_are_left_out()
    arguments.names = names if arguments.backends is None else arguments.backends.split(",")
    if unknown := [name for name in arguments.names if name not in allowed]:
        raise ValueError(f"--backends must be among {','.join(allowed)}, got {','.join(unknown)}")
    if missing := missing_libraries(arguments.names):
        root = Path(__file__).resolve().parents[1]
        raise ValueError(f"--backends {','.join(missing)}: not installed: run pip install -e '.[peers]' in {root}")
    if arguments.rounds is None:
        arguments.rounds = 2 if arguments.quick else 5 if operator == "models" else 25
    if arguments.rounds < 2:
        raise ValueError(f"--rounds must be at least 2, got {arguments.rounds}")
    if arguments.threads is None:
        cores = os.cpu_count() or 1
        arguments.threads = list(dict.fromkeys([1, cores])) if device == "cpu" else [torch.get_num_threads()]
    if min(arguments.threads) < 1:
        raise ValueError(f"--threads must be at least 1, got {min(arguments.threads)}")


def _implementations(arguments: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Return the names that ``--backends`` may have, and those that it has by default."""
    operator, device = arguments.operator, arguments.device
    if operator == "models":
        kinds = ("train", "sample")
        names = list(dict.fromkeys(v.name for kind in kinds for v in variants_of(kind, device)))
        compiled = dict.fromkeys(v.name for kind in kinds for v in compiled_variants_of(kind, device))
        return [*names, *compiled], names
    names = runnable(operator, device)
    if _kind(arguments) == "operators":
        return [*invflow.BACKENDS, "compile"], [name for name in names if name in invflow.BACKENDS]
    return list(IMPLEMENTATIONS[operator]), names


def _case_tasks(arguments: argparse.Namespace) -> Iterator[_Task]:
    for threads in arguments.threads:
        for spec in specs_of(arguments.operator, arguments.device):

            def measured(spec: Any = spec, threads: int = threads) -> Sequence[Any]:
                peaks = peak_memory(spec, arguments.names, threads) if arguments.peak_memory else None
                return measure(build(spec, arguments.names), arguments.rounds, peaks)

            yield _Task(spec.name, threads, measured)


def _operator_tasks(arguments: argparse.Namespace) -> Iterator[_Task]:
    for case in operator_cases(tiny=arguments.quick):

        def measured(case: Any = case) -> Sequence[Any]:
            with tf32(False):
                return measure_operator(case, arguments.names, arguments.device, arguments.rounds)

        yield _Task(case.name, arguments.threads[0], measured)


def _model_tasks(arguments: argparse.Namespace) -> Iterator[_Task]:
    until = math.inf if arguments.seconds is None else time.monotonic() + arguments.seconds
    for threads in arguments.threads:
        for workload in workloads(arguments.device, tiny=arguments.quick):
            known = [make(workload.kind, arguments.device) for make in (variants_of, compiled_variants_of)]
            variants = [v for v in [*known[0], *known[1]] if v.name in arguments.names]
            if not variants:
                continue

            def measured(workload: Any = workload, variants: Any = variants, threads: int = threads) -> Sequence[Any]:
                with_peaks = arguments.peak_memory and arguments.device == "cpu"
                return measure_models(
                    workload, variants, arguments.device, arguments.rounds, with_peaks=with_peaks, until=until
                )

            yield _Task(workload.name, threads, measured)


def _say_why_the_kernels_are_left_out() -> None:
    try:
        invflow.can_run("cpu", "flow_step", torch.empty(1, 1, 1, 1), raise_error=True)
    except RuntimeError as error:
        root = Path(__file__).resolve().parents[1]
        print(f"benchmarks: {error}: run pip install -e . in {root} to measure it", file=sys.stderr)


def _write(path: Path | None, record: dict[str, Any]) -> None:
    if path is not None:
        write_text(path, json.dumps(record, indent=1))


def _command() -> str:
    """Return the command that the user typed, without the interpreter's own path."""
    return shlex.join(["python", *sys.orig_argv[1:]])


def _machine(device: str) -> dict[str, str]:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    flags = ""
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
        flags = next((line.split(":")[1] for line in lines if line.startswith("flags")), "")
    found = [name for flag, name in _INSTRUCTIONS.items() if flag in flags.split()]
    gpu = {"GPU": f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"} if device == "cuda" else {}
    return {
        **gpu,
        "processor": f"{model}, {os.cpu_count()} cores, {', '.join(found) or 'unknown instructions'}",
        "torch": torch.__version__,
        "invflow": invflow.__version__,
        "python": platform.python_version(),
    }


#: Instructions that decide how fast a processor is at float32 and bfloat16.
_INSTRUCTIONS = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "AVX512-BF16", "amx_bf16": "AMX"}
