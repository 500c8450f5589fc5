"""``python -m tests.gates.compile_report``: compiles the kernels for GPUs that need not be there."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import NoReturn

from invflow.backends.triton import is_interpreting

__all__ = ["main"]

_TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")

_DESCRIPTION = """\
Compile every Triton kernel with every configuration for GPUs that need not be there, and print what the compilers
say of the result: registers of a thread, bytes of them that spill to memory, bytes of shared memory of a block, bits of
the widest load from global memory, and seconds of processor time that the compilation took. Kernels are compiled from
the arguments that the operators launch them with. Nothing is run on a GPU.
"""

_EPILOG = """\
examples:
  python -m tests.gates.compile_report --check
  python -m tests.gates.compile_report --kernels flow_step_fwd_kernel --targets sm_90
  python -m tests.gates.compile_report --markdown docs/kernels/triton.md

All targets take some minutes on two processor cores; nothing is taken from or left in Triton's cache.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status: 0, or 1 if ``--check`` found something, or 2 if it cannot run."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.gates.compile_report",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="name every violation and exit 1 if there is one: a spill, more shared memory than the target has, no "
        "load of 128 bits from a contiguous float32 state, more than 10 s to compile a kernel",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="of a maker's targets compile everything for the first, and for the others what takes more than three "
        "quarters of the registers there: with fewer, nothing spilled on one and not on another",
    )
    parser.add_argument(
        "--targets",
        default=",".join(_TARGETS),
        metavar="LIST",
        help="comma-separated: sm_75 (which Triton compiles for but does not support), sm_80, sm_90, sm_100, gfx942; "
        "default: all but the first",
    )
    parser.add_argument("--kernels", metavar="LIST", help="comma-separated names of kernels; default: all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table as JSON")
    parser.add_argument(
        "--markdown",
        type=Path,
        metavar="FILE",
        help="write a page with the table and the predicted times of all kernels",
    )
    given = parser.parse_args(arguments)
    if importlib.util.find_spec("triton") is None:
        _fail(parser, "the package triton is not installed (pip install triton)")
    if is_interpreting():
        _fail(parser, "TRITON_INTERPRET is set, so that kernels are interpreted and not compiled: unset it")
    for option, path in (("--json", given.json), ("--markdown", given.markdown)):
        if path is not None and not path.parent.is_dir():
            _fail(parser, f"folder of {option} {path} does not exist")
    return _report(parser, given)


def _report(parser: argparse.ArgumentParser, given: argparse.Namespace) -> int:
    # triton may not be installed, and takes its time
    import triton

    from invflow.backends.triton import tuning
    from tests.gates.compile_report.compilations import rows, rows_that_may_differ, violations
    from tests.gates.compile_report.compiling import TARGETS
    from tests.gates.compile_report.instances import instances
    from tests.gates.compile_report.pages import page, text_table
    from tests.gates.compile_report.predict import predicted

    targets = _chosen(parser, "--targets", given.targets, list(TARGETS))
    known = [kernel.__name__ for kernel in tuning.CONFIGS]
    kernels = known if given.kernels is None else _chosen(parser, "--kernels", given.kernels, known)
    processes = min(2, os.cpu_count() or 1)
    chosen = [instance for instance in instances() if instance.kernel.__name__ in kernels]
    compile_all = rows_that_may_differ if given.quick else rows
    found = compile_all(chosen, targets, processes, _progress)
    print(text_table(found))
    if given.json is not None:
        record = [{**row._asdict(), "facts": row.facts._asdict()} for row in found]
        _write(given.json, json.dumps({"triton": triton.__version__, "kernels": record}, indent=1) + "\n")
    if given.markdown is not None:
        _write(given.markdown, page(found, predicted(processes)))
    if not given.check:
        return 0
    wrong = [violation for row in found for violation in violations(row)]
    print("\n".join([*wrong, f"{len(found)} compiled, {len(wrong)} violation{'s' * (len(wrong) != 1)}"]))
    return 1 if wrong else 0


def _chosen(parser: argparse.ArgumentParser, option: str, given: str, allowed: list[str]) -> list[str]:
    names = given.split(",")
    if unknown := [name for name in names if name not in allowed]:
        _fail(parser, f"{option} must be among {','.join(allowed)}, got {','.join(unknown)}")
    return names


def _fail(parser: argparse.ArgumentParser, message: str) -> NoReturn:
    parser.exit(2, f"compile_report: {message}\n")


def _progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{done} of {total} compiled", end="\n" if done == total else "", file=sys.stderr, flush=True)


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


if __name__ == "__main__":
    sys.exit(main())
