"""The page docs/kernels/cuda.md, in which several programs write a section each."""

from __future__ import annotations

import argparse
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path

#: In the order of the page.
SECTIONS = ("machine code", "traffic", "mutants")

_INTRODUCTION = """# CUDA kernels: what is known of them without a GPU

The tests of the operators run these kernels on the CPU, from their source and as nvcc's PTX ([GPU kernels on the
CPU](../cuda-on-cpu.md)). This page collects what else is known without a GPU: the machine code of ptxas, the traffic to
memory, and the errors that the tests notice. **Nothing here was measured on a GPU**; [the
checklist](../gpu-checklist.md) says how to do that.

The names of kernels have these parts:

- `Vectors<4>` accesses a contiguous float32 state, `Vectors<2>` a float16 or bfloat16 one, 16 bytes a thread.
- `Elements<T>` accesses one pixel of any dtype and layout, with arithmetic in `T`.
- The last number is the number of channels, or 0 if the compiler does not know it.
- `known` kernels, and `last` ones for channels_last, are for maps of the published form. Their arguments are the bytes
  of a number of the state, backward also the pixels of a thread, the bytes of a number of h, the number of channels,
  whether the maps are inverted, and the division of the work.
"""


def write_section(path: Path, name: str, text: str) -> None:
    """Replace section ``name``, one of :data:`SECTIONS`, by ``text``, and leave the others."""
    page = path.read_text() if path.exists() else ""
    parts = {section: _section(page, section) for section in SECTIONS} | {name: _wrapped(text)}
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


def _wrapped(text: str) -> str:
    """Wrap paragraphs of prose at 120 characters: values put into a text may have made its lines longer."""
    blocks = text.strip().split("\n\n")
    prose = [not block.startswith(("#", "|", "```", "- ")) for block in blocks]
    filled = [textwrap.fill(b, 120, break_on_hyphens=False) if p else b for b, p in zip(blocks, prose, strict=True)]
    return "\n\n".join(filled) + "\n"


def _begin(section: str) -> str:
    return f"<!-- {section}: begin -->"


def _end(section: str) -> str:
    return f"<!-- {section}: end -->"


def _section(page: str, name: str) -> str:
    begin, end = f"{_begin(name)}\n", _end(name)
    return page.split(begin)[1].split(end)[0] if begin in page else ""
