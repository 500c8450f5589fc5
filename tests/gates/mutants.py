"""``python -m tests.gates.mutants``: breaks the CUDA kernels on purpose and sees whether the tests notice.

Each mutant is an edit of one file in a copy of ``csrc``. It is compiled for the CPU and must fail the kill suite (see
kill_suite.py), which the kernels themselves must pass.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from tests.emulator import source
from tests.emulator.build import DEFAULT_CACHE
from tests.emulator.drivers.cuda import CSRC, unavailable
from tests.emulator.ptx.module import KernelError

from .mutant import Mutant, mutated
from .mutants_of_cuda import MUTANTS
from .page import add_markdown_option, check_markdown, markdown_table, write_section

_ROOT = CSRC.parent

_DESCRIPTION = """\
Break the CUDA kernels on purpose, one way at a time, and run a small suite of tests on each: the mutants must all fail
it, and the kernels themselves must pass. Exits with 1 if one survives. Takes about ten minutes of processor time; what
was compiled is kept in build/.
"""

_TEXT = """## Which errors the tests notice

`python -m tests.gates.mutants --markdown docs/kernels/cuda.md` wrote this section. Each line is an error made on
purpose in a copy of the sources, and the check that noticed it, from a small suite of tests. The kernels themselves
pass that suite, plainly and under both sanitizers.

"""


def killer(csrc: Path, sanitize: str | None) -> str:
    """The property that the kernels in ``csrc`` do not have, and how; empty if they pass the kill suite."""
    library = _compiled(csrc, sanitize)
    if sanitize is None:
        command = [sys.executable, "-m", "tests.gates.kill_suite", str(library)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=_ROOT)
        if done.returncode not in (0, 1):  # not a verdict of the suite, such as an error of its own
            raise RuntimeError(f"exit status {done.returncode}\n{done.stdout}{done.stderr[-4000:]}")
        if done.returncode and ": " not in done.stdout:
            raise RuntimeError(done.stderr[-4000:])
        return done.stdout.strip()
    code = f"import sys; sys.path.insert(0, {str(_ROOT)!r}); from tests.gates.kill_suite import main\n"
    code += f"sys.exit(main([{str(library)!r}, '--sanitize', {sanitize!r}]))"
    try:
        source.run_sanitized(code, sanitize)
    except KernelError as error:
        if found := re.search(r"runtime error: (.*)", str(error)):
            return f"UndefinedBehaviorSanitizer: {found.group(1)}"
        found = re.search(r"\w+Sanitizer: [\w -]+", str(error))
        return found.group() if found else str(error)
    return ""


def _compiled(csrc: Path, sanitize: str | None) -> Path:
    import pybind11

    facts = {"COMPILER": "g++", "CUDA_ARCHITECTURES": "the CPU", "VERSION": "under test"}
    flags = ["-O0", *(f'-DINVFLOW_{name}="{value}"' for name, value in facts.items())]
    flags += [f"-I{sysconfig.get_paths()['include']}", f"-I{pybind11.get_include()}"]
    sources = [*sorted((csrc / "cuda").glob("*.cu")), csrc / "cuda" / "bindings.cpp"]
    include = [csrc / "include", csrc / "cuda"]
    return source.host_library("_CUDA", sources, include=include, flags=flags, sanitize=sanitize)


def verdict(mutant: Mutant) -> str:
    """Return the check that killed a mutant; empty if it survived."""
    # always the same for a mutant: what was compiled there is found again
    folder = DEFAULT_CACHE / "mutants" / re.sub(r"\W+", "-", mutant.name)
    shutil.rmtree(folder, ignore_errors=True)
    return killer(mutated(mutant, folder), mutant.sanitize)


def table(verdicts: Sequence[tuple[Mutant, str]]) -> str:
    """One line a mutant, as Markdown."""
    lines = [
        [mutant.name, f"`{mutant.file}`", mutant.sanitize or "", f"`{text.split(':')[0]}`" if text else "**survived**"]
        for mutant, text in verdicts
    ]
    return markdown_table(["mutant", "file", "sanitizer", "noticed by"], lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status: 1 if a mutant survived, 2 if it cannot run."""
    parser = argparse.ArgumentParser(
        prog="mutants", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_markdown_option(parser)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of a mutant; default all")
    given = parser.parse_args(arguments)
    if unknown := {*given.names} - {mutant.name for mutant in MUTANTS}:
        parser.exit(2, f"mutants: no mutant is called {', '.join(sorted(unknown))}\n")
    if given.names and given.markdown is not None:
        parser.exit(2, "mutants: --markdown must be without names: the page has all mutants\n")
    reasons = [unavailable(None), *(source.sanitizer_unavailable(name) for name in ("address", "thread"))]
    if reason := next(filter(None, reasons), None):
        parser.exit(2, f"mutants: {reason}\n")
    check_markdown(parser, given.markdown)
    for sanitize in (None, "address", "thread"):
        if found := killer(CSRC, sanitize):
            parser.exit(1, f"mutants: the kernels themselves fail the kill suite: {found}\n")
    verdicts = []
    for mutant in [mutant for mutant in MUTANTS if not given.names or mutant.name in given.names]:
        verdicts.append((mutant, verdict(mutant)))
        print(f"{mutant.name}: {verdicts[-1][1] or 'SURVIVED'}", flush=True)
    survivors = [mutant.name for mutant, text in verdicts if not text]
    print(f"{len(verdicts)} mutants, {len(survivors)} survived")
    if given.markdown is not None:
        write_section(given.markdown, "mutants", _TEXT + table(verdicts))
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
