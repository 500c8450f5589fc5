"""``python -m tests.gates.cpu_mutants``: breaks the CPU kernels on purpose and sees whether the tests notice.

Each mutant is an edit of one file in a copy of ``csrc``. A copy of the package gets an extension made of it, with the
kernels of the baseline instruction set, and must fail a test of the kernels.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from tests.emulator import build

from .mutant import mutated
from .mutants_of_cpu import MUTANTS

ROOT = Path(__file__).parents[2]
WORK = build.DEFAULT_CACHE / "cpu_mutants"
#: The first that fails ends the run.
TESTS = [
    f"tests/invflow/test_{name}.py"
    for name in (
        "ops",
        "flow_step",
        "layouts",
        "edges_of_numbers",
        "dtypes",
        "odd_states",
        "layer_precision",
        "conv3x3",
        "rows",
        "finished_conv3x3",
    )
]

_DESCRIPTION = """\
Break the CPU kernels on purpose, one way at a time, and run their tests on each: the mutants must all fail them, and
the kernels themselves must pass. Exits with 1 if one survives. Takes about half an hour of processor time.
"""


def extension(csrc: Path) -> Path:
    """Compile the extension with the CPU kernels in ``csrc``; return its path."""
    import pybind11

    include = [csrc / "include", csrc / "cpu"]
    facts = {"COMPILER": '"g++"', "VERSION": '"under test"', "ISA": "baseline", "VECTOR_BYTES": "16"}
    flags = [
        "-O1",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-ffp-contract=fast",
        "-fopenmp",
        "-Wno-psabi",
        "-shared",
        "-fvisibility=hidden",
    ]
    flags += [f"-DINVFLOW_{name}={value}" for name, value in facts.items()]
    flags += [f"-I{folder}" for folder in (*include, sysconfig.get_paths()["include"], pybind11.get_include())]
    parts = build.headers_of(include) + [path.read_bytes() for path in sorted((csrc / "cpu").glob("*.inc"))]
    return build.compile_cached("_C.so", sorted((csrc / "cpu").glob("*.cpp")), flags, depends_on=parts)


def killer(csrc: Path) -> str:
    """Return the test that notices what is wrong with the kernels in ``csrc``; empty if they pass all."""
    tree = WORK / "tree"
    if not tree.exists():
        ignored = shutil.ignore_patterns("_C*.so", "__pycache__")
        for folder in ("invflow", "sr_models", "benchmarks", "tests"):
            shutil.copytree(ROOT / folder, tree / folder, ignore=ignored)
        shutil.copy(ROOT / "pyproject.toml", tree)
    shutil.copy(extension(csrc), tree / "invflow" / "_C.so")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "-m",
        "not slow and not gpu",
        *TESTS,
    ]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    environment.pop("INVFLOW_CPU_ISA", None)
    done = subprocess.run(command, capture_output=True, text=True, cwd=tree, env=environment)
    if done.returncode == 0:
        return ""
    if done.returncode < 0:
        return f"signal {-done.returncode}"
    found = re.search(r"^(?:FAILED|ERROR) (?:tests/invflow/)?(\S+)", done.stdout, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"exit status {done.returncode}\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    return found.group(1)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status: 1 if a mutant survived, 2 if it cannot run."""
    parser = argparse.ArgumentParser(
        prog="cpu_mutants", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="of a mutant; default all")
    given = parser.parse_args(arguments)
    if unknown := {*given.names} - {mutant.name for mutant in MUTANTS}:
        parser.exit(2, f"cpu_mutants: no mutant is called {', '.join(sorted(unknown))}\n")
    if reason := build.unavailable():
        parser.exit(2, f"cpu_mutants: {reason}\n")
    shutil.rmtree(WORK, ignore_errors=True)
    if found := killer(ROOT / "csrc"):
        parser.exit(1, f"cpu_mutants: the kernels themselves fail {found}\n")
    mutants = [mutant for mutant in MUTANTS if not given.names or mutant.name in given.names]
    survivors = 0
    for mutant in mutants:
        noticed = killer(mutated(mutant, WORK / re.sub(r"\W+", "-", mutant.name), "cpu"))
        survivors += not noticed
        print(f"{mutant.name}: {noticed or 'SURVIVED'}", flush=True)
    print(f"{len(mutants)} mutants, {survivors} survived")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
