"""The page docs/kernels/cuda.md, of which several programs write a section each."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

#: In the order of the page.
SECTIONS = ("machine code", "traffic", "mutants")

_INTRODUCTION = """# CUDA kernels: what is known of them without a GPU

No GPU was at hand when these kernels were written. They were run on the CPU, from their source and as nvcc's PTX, under
the tests of the operators ([GPU kernels on the CPU](../cuda-on-cpu.md)). This page says what else can be known: what
ptxas made of them, what they ask of memory, and which errors the tests would notice. **Nothing here was measured on a
GPU**; [the checklist](../gpu-checklist.md) says how to do that.

In the names of kernels, `Vectors<4>` accesses a contiguous float32 state, `Vectors<2>` a float16 or bfloat16 one, 16
bytes a thread; `Elements<T>` one pixel of any dtype and layout, with arithmetic in `T`. The number is that of the
channels, 0 where it is not known to the compiler.
"""


def write_section(path: Path, name: str, text: str) -> None:
    """Puts ``text`` in the place of section ``name``, one of :data:`SECTIONS`, and leaves the others."""
    page = path.read_text() if path.exists() else ""
    parts = {section: _section(page, section) for section in SECTIONS} | {name: text.strip() + "\n"}
    written = [f"\n{_begin(section)}\n{part}{_end(section)}\n" for section, part in parts.items() if part]
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(_INTRODUCTION + "".join(written))
    os.replace(temporary, path)


def markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def short(kernel: str) -> str:
    """A kernel's name without namespaces."""
    return kernel.replace("invflow::cuda::", "").replace(" >", ">")


def add_markdown_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="put the result into its section of this page")


def check_markdown(parser: argparse.ArgumentParser, path: Path | None) -> None:
    if path is not None and not path.parent.is_dir():
        parser.exit(2, f"{parser.prog}: folder of --markdown {path} does not exist\n")


def _begin(section: str) -> str:
    return f"<!-- {section}: begin -->"


def _end(section: str) -> str:
    return f"<!-- {section}: end -->"


def _section(page: str, name: str) -> str:
    begin, end = f"{_begin(name)}\n", _end(name)
    return page.split(begin)[1].split(end)[0] if begin in page else ""
