"""The backend ``cpu``: kernels in C++ that choose their instruction set at run time."""

from __future__ import annotations

from typing import Any

import torch

from invflow.backends.native import Native, Step

__all__ = ["cpu"]


def _launch(extension: Any, kernel: str, device: torch.device, step: Step, *results: Any) -> None:
    getattr(extension, kernel)(step, *results)


def _facts(extension: Any) -> dict[str, str]:
    return {
        "compiler": extension.compiler,
        "instruction set": f"{extension.instruction_set()} of {'/'.join(extension.supported_instruction_sets())}",
        "OpenMP": "yes" if extension.has_openmp() else "no",
        "version": extension.version,
    }


cpu = Native("_C", device="cpu", launch=_launch, facts=_facts)
if cpu.extension is not None:
    cpu.extension.instruction_set()  # a wrong INVFLOW_CPU_ISA is an error now, not at the first kernel
