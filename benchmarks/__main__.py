"""``python -m benchmarks run flow_step --json out.json`` and ``python -m benchmarks report out.json``.

Outside the source tree name this folder: ``python path/to/benchmarks run flow_step``. Both measure the tree's invflow.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
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

    from benchmarks.cases import IMPLEMENTATIONS
    from benchmarks.freia import measure_freia
    from benchmarks.neighbour import measure_neighbour
    from benchmarks.operators import call_once, operator_cases
    from benchmarks.overhead import measure_overhead, overhead_table
    from benchmarks.peaks import peaks_of
    from benchmarks.report import plot
    from benchmarks.run import KINDS, OPERATORS, run
    from benchmarks.vectors import measure_vectors
except ModuleNotFoundError as error:
    sys.exit(_to_install(error))


def _peaks(arguments: argparse.Namespace) -> None:
    print(json.dumps(peaks_of(arguments.request)))


def _check_rounds(arguments: argparse.Namespace) -> None:
    if arguments.rounds < 2:
        raise ValueError(f"--rounds must be at least 2, got {arguments.rounds}")


def _overhead(arguments: argparse.Namespace) -> None:
    _check_rounds(arguments)
    torch.set_num_threads(1)
    print(overhead_table(measure_overhead(arguments.rounds)))


def _vectors(arguments: argparse.Namespace) -> None:
    _check_rounds(arguments)
    torch.set_num_threads(1)
    print(measure_vectors(arguments.rounds))


def _freia(arguments: argparse.Namespace) -> None:
    _check_rounds(arguments)
    torch.set_num_threads(1)
    print(measure_freia(arguments.rounds))


def _anomalib(arguments: argparse.Namespace) -> None:
    _check_rounds(arguments)
    from benchmarks.anomalib import measure_anomalib

    torch.set_num_threads(1)
    try:
        print(measure_anomalib(arguments.rounds))
    except ModuleNotFoundError as error:
        raise ValueError(f"{error}: run pip install anomalib FrEIA") from error


def _neighbour(arguments: argparse.Namespace) -> None:
    _check_rounds(arguments)
    quiet, busy = measure_neighbour(arguments.rounds)
    bound = "bound to cores" if "OMP_PLACES" in os.environ else "not bound to cores"
    step = f"training step, {torch.get_num_threads()} threads {bound}"
    print(f"{step}: {quiet:.3f} s quiet, {busy:.3f} s beside a busy process, {busy / quiet:.1f} times as long")


def _crops(arguments: argparse.Namespace) -> None:
    _check_rounds(arguments)
    from benchmarks.crops import crops_table, measure_crops  # needs what the extra sr installs

    print(crops_table(measure_crops(arguments.rounds)))


def _once(arguments: argparse.Namespace) -> None:
    device = "cpu" if arguments.backend == "cpu" else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--backend {arguments.backend}: torch finds no CUDA or ROCm device")
    cases = [
        case for case in operator_cases(tiny=device == "cpu") if case.dtype == "float32" and case.layout == "contiguous"
    ]
    begin = time.monotonic()
    for number, case in enumerate(cases):
        if arguments.seconds is not None and time.monotonic() - begin > arguments.seconds:
            print(f"no time left for {len(cases) - number} of {len(cases)} cases", file=sys.stderr)
            return
        print(case.name, file=sys.stderr)
        call_once(case, arguments.backend, device)


def _report(arguments: argparse.Namespace) -> None:
    record = json.loads(arguments.json.read_text())
    result_class, table = KINDS[record.get("kind", "cases")]
    results = [result_class(**result) for result in record["results"]]
    facts = {**record["machine"], "command": f"`{record['command']}`"}
    print("\n".join(f"- {key}: {value}" for key, value in facts.items()), end="\n\n")
    print(table(results))
    if arguments.plot is not None:
        if record.get("kind", "cases") != "cases":
            raise ValueError(f"--plot draws operators measured on a CPU, got {arguments.json} of {record['kind']}")
        plot(results, arguments.plot)


def _add_run(commands: Any) -> None:
    parser = commands.add_parser(
        "run", help="measure, print the table and keep the figures", description=_RUN, formatter_class=_AsWritten
    )
    parser.add_argument("operator", choices=OPERATORS, metavar="WHAT", help=", ".join(OPERATORS))
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="PATTERN",
        help="cases by name, with * and ?; a pattern that matches none lists all",
    )
    parser.add_argument("--backends", help="implementations, separated by commas; default all that can run")
    default_device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default=default_device, help=f"where to measure; default {default_device}"
    )
    parser.add_argument(
        "--threads", type=int, nargs="+", help="thread counts to measure; default 1 and all, on a GPU torch's own"
    )
    parser.add_argument("--rounds", type=int, help="timed calls of every implementation; default 25, of models 5")
    parser.add_argument(
        "--seconds", type=float, help="begin no further case, nor a variant of a model, after so many seconds"
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes and two rounds, to see that it runs")
    parser.add_argument(
        "--peak-memory", action="store_true", help="measure the memory too, each case in a process of its own"
    )
    parser.add_argument("--json", type=Path, help="file for the figures, written after every case")
    parser.set_defaults(function=run)


_AsWritten = argparse.RawDescriptionHelpFormatter
_CHOICES = "\n".join(f"  {operator + ':':24}{','.join(names)}" for operator, names in IMPLEMENTATIONS.items())
_RUN = f"""Measure implementations in turn, and compare them.

WHAT is one of
  flow_step               actnorm, 1x1 convolution and coupling with given parameters; on a GPU by
                          CUDA graphs, on cold and warm caches, beside a copy of as many bytes
  flow_step_with_network  the same with the coupling's network
  training                a training step of a flow, by the memory that it takes
  models                  training steps and samples of srflow, srflow-da and ncsr, by ours and by the
                          published composition in plain PyTorch; on a GPU also launches and waits

--backends takes, separated by commas,
{_CHOICES}
                          on a GPU flow_step takes cuda,triton,reference,compile; other flow libraries
                          need pip install -e '.[peers]' and are measured only if they are named
  models:                 FLOW-PRECISION[-OPTION]: ours or published; fp32, bf16 and on a GPU tf32; of
                          ours also invert in training, and graph on a GPU. Example: ours-bf16-invert
                          compile (torch.compile of every layer, of ours in training only) takes minutes
                          and is measured only if it is named. Example: published-fp32-compile

For example
  python -m benchmarks run models --only 'srflow train*' 'srflow sample 1 *' --threads 1 --rounds 3
  python -m benchmarks run models --device cuda --only 'srflow *' --seconds 100 --json models.json
  python -m benchmarks run flow_step --device cuda --backends cuda,triton --seconds 100 --json steps.json
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(required=True)
    _add_run(commands)
    peaks = commands.add_parser("peaks")  # what --peak-memory starts
    peaks.add_argument("request")
    peaks.set_defaults(function=_peaks)
    once = commands.add_parser("once", help="call every case of flow_step once, for a profiler such as ncu")
    once.add_argument("--backend", choices=("cpu", "cuda", "triton"), default="cuda")
    once.add_argument("--seconds", type=float, help="call no further case after that time")
    once.set_defaults(function=_once)
    overhead = commands.add_parser("overhead", help="microseconds a call beyond networks and arithmetic, on one thread")
    overhead.add_argument("--rounds", type=int, default=15, help="of 50 calls each; default 15")
    overhead.set_defaults(function=_overhead)
    vectors = commands.add_parser("vectors", help="vectors and states of few pixels, beside plain PyTorch, one thread")
    vectors.add_argument("--rounds", type=int, default=15, help="measurements of each; default 15")
    vectors.set_defaults(function=_vectors)
    freia = commands.add_parser("freia", help="FrEIA's AllInOneBlock and ours in the same flows, one thread")
    freia.add_argument("--rounds", type=int, default=15, help="measurements of each; default 15")
    freia.set_defaults(function=_freia)
    anomalib = commands.add_parser("anomalib", help="models of anomalib with FrEIA's block and with ours, one thread")
    anomalib.add_argument("--rounds", type=int, default=5, help="measurements of each; default 5")
    anomalib.set_defaults(function=_anomalib)
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
