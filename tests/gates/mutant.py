"""Errors made on purpose in a copy of the kernels' sources."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.emulator.drivers.cuda import CSRC


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
