"""The backend ``cpu``: kernels in C++ that choose their instruction set at run time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from invflow.backends.native import Native, Step
from invflow.backends.protocol import Call, Gradients
from invflow.backends.rows import rows_backward, rows_forward, suits_rows

__all__ = ["cpu"]


class _Cpu(Native):
    """The backend, in which products of matrices serve states of few pixels."""

    def flow_step(self, call: Call) -> tuple[Tensor, Tensor]:
        return rows_forward(call, self.extension) if suits_rows(call) else super().flow_step(call)

    def flow_step_backward(self, grad_y: Tensor, grad_log_det: Tensor, call: Call) -> Gradients:
        if suits_rows(call):
            return rows_backward(grad_y, grad_log_det, call, self.extension)
        return super().flow_step_backward(grad_y, grad_log_det, call)


def _launch(extension: Any, kernel: str, device: torch.device, step: Step, *results: Any) -> None:
    getattr(extension, kernel)(step, *results)


def _facts(extension: Any) -> dict[str, str]:
    return {
        "compiler": extension.compiler,
        "instruction set": f"{extension.instruction_set()} of {'/'.join(extension.supported_instruction_sets())}",
        "OpenMP": "yes" if extension.has_openmp() else "no",
        "version": extension.version,
    }


cpu = _Cpu("_C", device="cpu", launch=_launch, facts=_facts)
if cpu.extension is not None:
    cpu.extension.instruction_set()  # a wrong INVFLOW_CPU_ISA is an error now, not at the first kernel
    cpu.extension.know(torch)
