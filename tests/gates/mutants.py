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
from dataclasses import dataclass
from pathlib import Path

from tests.emulator import source
from tests.emulator.build import DEFAULT_CACHE
from tests.emulator.drivers.cuda import CSRC, unavailable
from tests.emulator.ptx.module import KernelError

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


@dataclass(frozen=True)
class Mutant:
    """``old``, which stands once in ``file`` of csrc/cuda or csrc/cpu, becomes ``new``.

    ``sanitize``: under which sanitizer the suite notices, if not without one.
    """

    name: str
    file: str
    old: str
    new: str
    sanitize: str | None = None


_SUM_OF_WARPS = """\
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = value;
  __syncthreads();
  T total = 0;
"""
_ANY_ORDER = """\
  if (threadIdx.x == 0) sums[0] = 0;
  __syncthreads();
  if (threadIdx.x % 32 == 0) {};
  __syncthreads();
  return sums[0];
  T total = 0;
"""

MUTANTS = [
    Mutant(
        "no barrier between the writing of a tile and the product",
        "tile.h",
        "    if (!G::kResident || first == 0) __syncthreads();\n",
        "",
    ),
    Mutant(
        "no barrier after a part of the matrix is loaded",
        "tile.h",
        "thread, pass, first, weights);\n      __syncthreads();",
        "thread, pass, first, weights);",
    ),
    Mutant(
        "no barrier before products replace the tile",
        "flow_step.cu",
        "if (G::kFixed) __syncthreads();",
        "",
    ),
    Mutant(
        "no barrier before the gradient of the matrix",
        "flow_step_backward.cu",
        "__syncthreads();\n        outer.add(",
        "outer.add(",
    ),
    Mutant(
        "no barrier before the next tile",
        "flow_step_backward.cu",
        "        }\n      __syncthreads();\n    }\n",
        "        }\n    }\n",
    ),
    Mutant(
        "every other tile of a block dropped",
        "flow_step_backward.cu",
        "item += gridDim.x)",
        "item += 2 * gridDim.x)",
    ),
    Mutant(
        "what is kept of a map in the place of another's",
        "flow_step_backward.cu",
        "2 * (map * of_first + c) * pixels",
        "2 * c * pixels",
    ),
    Mutant(
        "no barrier between the sums of warps and their sum",
        "sums.h",
        _SUM_OF_WARPS,
        _SUM_OF_WARPS.replace("  __syncthreads();\n", ""),
    ),
    Mutant("a lane missing from the mask of a shuffle", "sums.h", "0xffffffffu", "0x7fffffffu"),
    Mutant(
        "log-determinants added in any order", "sums.h", _SUM_OF_WARPS, _ANY_ORDER.format("atomicAdd(&sums[0], value)")
    ),
    Mutant(
        "log-determinants added without atomicity",
        "sums.h",
        _SUM_OF_WARPS,
        _ANY_ORDER.format("sums[0] += value"),
        "thread",
    ),
    Mutant(
        "the last partial sums dropped",
        "sums.cu",
        "for (int t = 1; t < kTerms; ++t)",
        "for (int t = 1; t < kTerms - 1; ++t)",
    ),
    Mutant(
        "the last tile dropped",
        "tile.h",
        "static_cast<int>((step.pixels + pixels - 1) / pixels), pixels",
        "static_cast<int>((step.pixels + pixels / 2) / pixels), pixels",
    ),
    Mutant(
        "a tile one unit too long",
        "flow_step.cu",
        "inside = at.first < step.pixels;",
        "inside = at.first <= step.pixels;",
        "address",
    ),
    Mutant(
        "the matrix read past its end",
        "tile.h",
        "row < channels && column < channels;",
        "row <= channels && column < channels;",
        "address",
    ),
    Mutant(
        "vectors at addresses that are not aligned",
        "storage.h",
        "reinterpret_cast<intptr_t>(view.data) % bytes == 0 &&",
        "",
        "address",
    ),
    Mutant(
        "vectors of samples that are not aligned",
        "storage.h",
        "view.sample_stride * size % bytes == 0 && ",
        "",
        "address",
    ),
    Mutant(
        "vectors of channels that are not aligned",
        "storage.h",
        " && view.channel_stride * size % bytes == 0;",
        ";",
        "address",
    ),
    Mutant(
        "a matrix at an address that is not aligned",
        "storage.h",
        "reinterpret_cast<intptr_t>(step.matrix) % 16 == 0 && ",
        "",
        "address",
    ),
    Mutant(
        "a shift at an address that is not aligned",
        "storage.h",
        " && reinterpret_cast<intptr_t>(step.shift) % 16 == 0;",
        ";",
        "address",
    ),
    Mutant(
        "what a scale has beyond the normal numbers forgotten",
        "elementwise.h",
        "return excess == T(0) ? y : with_excess(y, map.inverse ? -excess : excess);",
        "return y;",
    ),
    Mutant(
        "a scale that leaves the normal numbers",
        "elementwise.h",
        "if (kind == Scale::kExp) return {exp_of(clamp(raw, kLogLimit<T>)), T(1)};",
        "if (kind == Scale::kExp) return {exp_of(raw), T(1)};",
    ),
    Mutant(
        "the packing of h swapped",
        "elementwise.h",
        "return map.packing == Packing::kCross && map.scale",
        "return map.packing == Packing::kSplit && map.scale",
    ),
    Mutant(
        "the log-determinant of the inverse without its sign",
        "elementwise.h",
        "return map.inverse ? -log_det : log_det;",
        "return log_det;",
    ),
    Mutant(
        "a shared h read with the wrong stride",
        "elementwise.h",
        "return {at.sample / static_cast<int>(map.repeat), at.first};",
        "return {at.sample % static_cast<int>(map.repeat), at.first};",
    ),
    Mutant(
        "the first gradient of a shared h forgotten",
        "elementwise.h",
        "if (turn > 0) {",
        "if (turn > 1) {",
    ),
    Mutant(
        "the matrix not transposed in the backward pass",
        "flow_step_backward.cu",
        "add_product<true>(",
        "add_product<false>(",
    ),
    Mutant(
        "the gradient of the log-determinant forgotten",
        "elementwise.h",
        "(grad[j] * product + grad_log_det) * s.slope",
        "(grad[j] * product) * s.slope",
    ),
    Mutant(
        "a tile of known maps one unit too long",
        "flow_step_known.h",
        "inside = at.first < step.pixels;",
        "inside = at.first <= step.pixels;",
        "address",
    ),
    Mutant(
        "known maps without a floor of the scale",
        "published.h",
        "map.parameter >= kLeastEps &&",
        "",
    ),
    Mutant(
        "the slope of a known scale",
        "published.h",
        "rest = sigmoid == 0.f ? 1.f : e * sigmoid",
        "rest = sigmoid == 0.f ? 1.f : e",
    ),
    Mutant(
        "what is kept of a known map in the place of another's",
        "flow_step_backward_known.h",
        "kept + (map.kept + 2 * channel) * geometry.pixels()",
        "kept + 2 * channel * geometry.pixels()",
    ),
    Mutant(
        "no barrier before the gradient of the matrix, of known maps",
        "flow_step_backward_known.h",
        "    __syncthreads();\n    {\n      Outer outer;",
        "    {\n      Outer outer;",
    ),
    Mutant(
        "no barrier before the next tile, of known maps",
        "flow_step_backward_known.h",
        "    __syncthreads();\n  }\n  let_next_begin();",
        "  }\n  let_next_begin();",
    ),
    Mutant(
        "the sums of all tiles but the last dropped",
        "outer_product.h",
        "own = anew ? sum : own + sum;",
        "own = sum;",
    ),
    Mutant(
        "the first of the sums that stand side by side dropped",
        "sums.cu",
        "int64_t k = threadIdx.x;",
        "int64_t k = threadIdx.x + 1;",
    ),
    Mutant(
        "no barrier before a channels_last tile is read along the channels",
        "channels_last.h",
        "geometry.put(sum[r], state + (first + r) * stride);\n  }\n  __syncthreads();",
        "geometry.put(sum[r], state + (first + r) * stride);\n  }",
    ),
    Mutant(
        "no barrier before the gradients of a channels_last tile are read",
        "channels_last.h",
        "geometry.put(sum[r], inner + (first + r) * stride);\n    }\n    __syncthreads();",
        "geometry.put(sum[r], inner + (first + r) * stride);\n    }",
    ),
    Mutant(
        "a map of a part of a unit",
        "published.h",
        "cross && map.start % run == 0 && map.count % run == 0;",
        "cross;",
    ),
    Mutant(
        "a channels_last tensor at an address that is not aligned",
        "published.h",
        "reinterpret_cast<intptr_t>(view.data) % access == 0 &&",
        "",
        "address",
    ),
]


def mutated(mutant: Mutant, folder: Path, part: str = "cuda") -> Path:
    """A copy of ``csrc`` with the mutant in it. Raises ``ValueError`` unless its text stands there once."""
    copy = folder / "csrc"
    shutil.copytree(CSRC, copy)
    path = copy / part / mutant.file
    text = path.read_text()
    if (count := text.count(mutant.old)) != 1:
        raise ValueError(
            f"mutant {mutant.name!r}: its text stands {count} times in csrc/{part}/{mutant.file}, not once"
        )
    path.write_text(text.replace(mutant.old, mutant.new))
    return copy


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
    given = parser.parse_args(arguments)
    reasons = [unavailable(None), *(source.sanitizer_unavailable(name) for name in ("address", "thread"))]
    if reason := next(filter(None, reasons), None):
        parser.exit(2, f"mutants: {reason}\n")
    check_markdown(parser, given.markdown)
    for sanitize in (None, "address", "thread"):
        if found := killer(CSRC, sanitize):
            parser.exit(1, f"mutants: the kernels themselves fail the kill suite: {found}\n")
    verdicts = []
    for mutant in MUTANTS:
        verdicts.append((mutant, verdict(mutant)))
        print(f"{mutant.name}: {verdicts[-1][1] or 'SURVIVED'}", flush=True)
    survivors = [mutant.name for mutant, text in verdicts if not text]
    print(f"{len(verdicts)} mutants, {len(survivors)} survived")
    if given.markdown is not None:
        write_section(given.markdown, "mutants", _TEXT + table(verdicts))
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
