"""``python -m benchmarks run flow_step --json out.json`` and ``python -m benchmarks report out.json``.

Outside the source tree name this folder: ``python path/to/benchmarks run flow_step``. Both measure the tree's invflow.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[1]
if not __package__:  # run by path: Python has put this folder on its path instead of the one that holds it
    sys.path[0] = str(_ROOT)


def _to_install(error: ModuleNotFoundError) -> str:
    if str(error.name).split(".")[0] in ("benchmarks", "invflow", "sr_models"):
        raise error
    return f"benchmarks: error: {error}: run pip install -e '.[sr]' in {_ROOT}"


# glibc keeps what is freed: page faults would otherwise take as long as the kernels
_ALLOCATOR = {
    "MALLOC_TOP_PAD_": "268435456",
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "1099511627776",
}

if __name__ == "__main__":
    from sr_models.openmp import bind_threads

    # before torch is loaded, which reads both once
    bind_threads()
    if "run" in sys.argv[1:2] and not _ALLOCATOR.keys() & os.environ.keys():
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **_ALLOCATOR})

try:
    import torch

    import invflow
    from benchmarks import sampling
    from benchmarks.cases import IMPLEMENTATIONS, build, runnable, specs_of
    from benchmarks.measure import Measurement, measure, peak_memory, peaks_of
    from benchmarks.neighbour import measure_neighbour
    from benchmarks.overhead import measure_overhead, overhead_table
    from benchmarks.report import plot, table
    from sr_models.io.files import write_text
except ModuleNotFoundError as error:
    sys.exit(_to_install(error))


def _run(arguments: argparse.Namespace) -> None:
    if arguments.json is not None and not arguments.json.parent.is_dir():
        raise FileNotFoundError(f"folder of --json {arguments.json} does not exist")
    allowed, device = IMPLEMENTATIONS[arguments.operator], arguments.device
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no CUDA or ROCm device")
    if device == "cuda" and arguments.operator == "sampling":
        raise ValueError("--device must be cpu for sampling, got cuda")
    names = runnable(arguments.operator, device) if arguments.backends is None else arguments.backends.split(",")
    if unknown := [name for name in names if name not in allowed]:
        raise ValueError(f"--backends must be among {','.join(allowed)}, got {','.join(unknown)}")
    if arguments.backends is None and "cpu" in allowed and device == "cpu" and "cpu" not in names:
        _say_why_the_kernels_are_left_out()
    if arguments.rounds is None:
        arguments.rounds = sampling.ROUNDS if arguments.operator == "sampling" else 25
    if arguments.rounds < 2:
        raise ValueError(f"--rounds must be at least 2, got {arguments.rounds}")
    if arguments.threads is None:
        arguments.threads = [1, os.cpu_count() or 1] if device == "cpu" else [torch.get_num_threads()]
    if min(arguments.threads) < 1:
        raise ValueError(f"--threads must be at least 1, got {min(arguments.threads)}")
    results: list[Measurement] = []
    specs = list(specs_of(arguments.operator, device))
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for number, spec in enumerate(specs, 1):
            print(f"{threads} threads, {number}/{len(specs)}: {spec.name}", file=sys.stderr)
            peaks = peak_memory(spec, names, threads) if arguments.peak_memory else None
            results += measure(build(spec, names), arguments.rounds, peaks)
    print(table(results))
    if arguments.json is not None:
        record: dict[str, Any] = {"machine": _machine(device), "command": _command()}
        record["results"] = [dataclasses.asdict(result) for result in results]
        write_text(arguments.json, json.dumps(record, indent=1))


def _say_why_the_kernels_are_left_out() -> None:
    try:
        invflow.can_run("cpu", "flow_step", torch.empty(1, 1, 1, 1), raise_error=True)
    except RuntimeError as error:
        print(f"benchmarks: {error}: run pip install -e . in {_ROOT} to measure it", file=sys.stderr)


def _command() -> str:
    """Return the command that the user typed, without the interpreter's own path."""
    return " ".join(["python", *sys.orig_argv[1:]])


def _peaks(arguments: argparse.Namespace) -> None:
    print(json.dumps(peaks_of(arguments.request)))


def _overhead(arguments: argparse.Namespace) -> None:
    if arguments.rounds < 2:
        raise ValueError(f"--rounds must be at least 2, got {arguments.rounds}")
    torch.set_num_threads(1)
    print(overhead_table(measure_overhead(arguments.rounds)))


def _neighbour(arguments: argparse.Namespace) -> None:
    if arguments.rounds < 2:
        raise ValueError(f"--rounds must be at least 2, got {arguments.rounds}")
    quiet, busy = measure_neighbour(arguments.rounds)
    bound = "bound to cores" if "OMP_PLACES" in os.environ else "not bound to cores"
    step = f"training step, {torch.get_num_threads()} threads {bound}"
    print(f"{step}: {quiet:.3f} s quiet, {busy:.3f} s beside a busy process, {busy / quiet:.1f} times as long")


def _crops(arguments: argparse.Namespace) -> None:
    if arguments.rounds < 2:
        raise ValueError(f"--rounds must be at least 2, got {arguments.rounds}")
    from benchmarks.crops import crops_table, measure_crops  # needs what the extra sr installs

    print(crops_table(measure_crops(arguments.rounds)))


def _report(arguments: argparse.Namespace) -> None:
    record = json.loads(arguments.json.read_text())
    results = [Measurement(**result) for result in record["results"]]
    print("\n".join(f"{key}: {value}" for key, value in {**record["machine"], "command": record["command"]}.items()))
    print(table(results))
    if arguments.plot is not None:
        plot(results, arguments.plot)


def _machine(device: str) -> dict[str, str]:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        model = next((line.split(":")[1].strip() for line in cpuinfo.open() if line.startswith("model name")), model)
    gpu = {"GPU": f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"} if device == "cuda" else {}
    return {
        **gpu,
        "processor": f"{model}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "invflow": invflow.__version__,
        "python": platform.python_version(),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run", help="measure, print the table and optionally keep the figures")
    run.add_argument("operator", choices=list(IMPLEMENTATIONS))
    choices = "; ".join(f"{operator}: {','.join(names)}" for operator, names in IMPLEMENTATIONS.items())
    run.add_argument("--backends", help=f"implementations, separated by commas; default all that can run ({choices})")
    default_device = "cuda" if torch.cuda.is_available() else "cpu"
    run.add_argument(
        "--device", choices=("cpu", "cuda"), default=default_device, help=f"where to measure; default {default_device}"
    )
    run.add_argument(
        "--threads", type=int, nargs="+", help="thread counts to measure; default 1 and all, on a GPU torch's own"
    )
    run.add_argument("--rounds", type=int, help="timed calls of every implementation; default 25, of sampling 5")
    run.add_argument(
        "--peak-memory", action="store_true", help="measure the memory too, each case in a process of its own"
    )
    run.add_argument("--json", type=Path, help="file for the figures")
    run.set_defaults(function=_run)
    peaks = commands.add_parser("peaks")  # what --peak-memory starts
    peaks.add_argument("request")
    peaks.set_defaults(function=_peaks)
    overhead = commands.add_parser("overhead", help="microseconds a call beyond networks and arithmetic, on one thread")
    overhead.add_argument("--rounds", type=int, default=15, help="of 50 calls each; default 15")
    overhead.set_defaults(function=_overhead)
    neighbour = commands.add_parser(
        "neighbour", help="seconds of a training step on a quiet machine, and beside a process that keeps one core busy"
    )
    neighbour.add_argument("--rounds", type=int, default=9, help="timed steps of each; default 9")
    neighbour.set_defaults(function=_neighbour)
    crops = commands.add_parser("crops", help="processor time of a training crop from files and from a pack")
    crops.add_argument("--rounds", type=int, default=15, help="timed crops of each; default 15")
    crops.set_defaults(function=_crops)
    report = commands.add_parser("report", help="print the table of a file, and optionally plot it")
    report.add_argument("json", type=Path)
    report.add_argument("--plot", type=Path, help="PNG or SVG file (needs matplotlib)")
    report.set_defaults(function=_report)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run a command. Bad input ends in one line on standard error.

    Args:
        arguments: the command and its options; ``None`` for those of the process.

    Returns:
        The exit code: 0, or 2 after an error.
    """
    parsed = _parser().parse_args(arguments)
    try:
        parsed.function(parsed)
    except ModuleNotFoundError as error:
        print(_to_install(error), file=sys.stderr)
        return 2
    except (ValueError, OSError, KeyError, RuntimeError) as error:
        print(f"benchmarks: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
