"""The report as text for a terminal and as a page of the documentation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import triton

from tests.gates.compile_report.compilations import SLOWEST, WIDEST, Row, label
from tests.gates.compile_report.compiling import TARGETS
from tests.gates.compile_report.predict import CHIPS, COPY_EFFICIENCY, LAUNCH, Predicted

_HEADER = ("kernel", "instance", "target", "configuration", "registers", "spills", "shared", "widest load", "seconds")

_INTRODUCTION = """# Triton kernels: compiled, not run

`python -m tests.gates.compile_report --markdown docs/kernels/triton.md` writes this page.

No GPU was at hand when these kernels were written. Four sources tell about them:

- **Results.** The tests of the operators run in Triton's interpreter on the CPU, against the reference in float64.
- **PTX.** The same tests run on the PTX that Triton makes for sm_80, executed on the CPU (`INVFLOW_TEST_PTX=80 python
  -m pytest`, see [how](../cuda-on-cpu.md)).
- **Machine code.** Every kernel is compiled for the processors below, with the arguments that the operators launch it
  with. They are recorded on tensors without memory and specialised by Triton's own launcher. The first table shows the
  compilers' figures.
- **A model.** The second table is computed from bytes, operations and datasheets. **Nothing in it was measured.**

None of them shows that a kernel runs on a GPU, how fast it is, or that the driver's compiler makes no mistakes.
`pytest -m gpu` runs the tests of the operators on a machine that has a GPU.

## What the compilers say

Triton {version} compiled the kernels. `python -m tests.gates.compile_report --check` fails on any of these:

- registers that are kept in memory;
- more shared memory than a block may have: {shared};
- a widest load from global memory below {widest} bits, if states are float32 and contiguous;
- more than {slowest:.0f} s of processor time to compile.

A cell holds the registers of a thread and the shared memory of a block, if any, over all compiled configurations.
gfx942 may keep scalar registers in lanes of vector registers ("scalar"). That costs instructions but no memory traffic.
A kernel that two instances share is compiled once and shown with the first.

"""

_PREDICTED = """
## Predicted, not run

The table has the benchmark cases in float32, with each kernel in its first configuration. The predicted time is the
largest of three terms, plus {launch:.0f} us from one kernel to the next, an assumption:

- bytes over copy bandwidth, assumed to be {efficiency:.0%} of the datasheet's;
- floating-point operations over the float32 peak;
- instructions over the rate at which they are issued.

Bytes count each tensor once, and the operands of `matrix_gradient_kernel` once for each tile of the matrix that reads
them. Instructions are those of products and couplings, without loads and stores. "busy" is the share of a
multiprocessor's threads that registers and shared memory let it hold. `tests/gates/compile_report/predict.py` has the
formulas.

PyTorch sums the kernels' parts (`log_det`, the gradients of matrix and shift); these sums are not counted. Triton
supports no processor before sm_80. The column of the RTX 2080 Ti (sm_75) supposes that its code for it is right.

"""


def text_table(rows: Sequence[Row]) -> str:
    """One line a compiled kernel."""
    lines = [_HEADER, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADER))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def page(rows: Sequence[Row], predicted: Sequence[Predicted]) -> str:
    """The documentation's page: both tables and what they mean."""
    targets = list(dict.fromkeys(row.target for row in rows))
    introduction = _INTRODUCTION.format(
        version=triton.__version__,
        shared=", ".join(f"{TARGETS[target].shared >> 10} KiB on {target}" for target in targets),
        widest=WIDEST,
        slowest=SLOWEST,
    )
    text = _PREDICTED.format(efficiency=COPY_EFFICIENCY, launch=LAUNCH * 1e6)
    return introduction + _compiled_table(rows, targets) + text + _predicted_table(predicted)


def _cells(row: Row) -> tuple[str, ...]:
    facts = row.facts
    figures = (facts.registers, facts.spills, facts.shared, facts.widest_load)
    return (row.kernel, row.instance, row.target, row.configuration, *map(str, figures), f"{facts.seconds:.1f}")


def _compiled_table(rows: Sequence[Row], targets: Sequence[str]) -> str:
    header = ["kernel", "instance", "configurations", *targets, "spills", "widest load, bits", "slowest, s"]
    lines = []
    for kernel, instance in dict.fromkeys((row.kernel, row.instance) for row in rows):
        group = [row for row in rows if (row.kernel, row.instance) == (kernel, instance)]
        facts = [row.facts for row in group]
        lines.append(
            [
                f"`{kernel}`",
                instance,
                str(max(sum(row.target == target for row in group) for target in targets)),
                *(_cell([row for row in group if row.target == target]) for target in targets),
                _range(fact.spills for fact in facts),
                _range(fact.widest_load for fact in facts),
                f"{max(fact.seconds for fact in facts):.1f}",
            ]
        )
    return _markdown(header, lines)


def _cell(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    text = _range(row.facts.registers for row in rows)
    if shared := max(row.facts.shared for row in rows):
        text += f", {shared} B" if shared < 1024 else f", {shared / 1024:.3g} KiB"
    if scalar := max(row.facts.scalar_spills for row in rows):
        text += f", {scalar} scalar"
    return text


def _range(numbers: Iterable[int]) -> str:
    ordered = sorted(set(numbers))
    return f"{ordered[0]}" if len(ordered) == 1 else f"{ordered[0]} to {ordered[-1]}"


def _predicted_table(predicted: Sequence[Predicted]) -> str:
    header = ["case", "kernel", "configuration", "MB", "MFLOP"]
    header += [f"{chip}, us (bound, busy)" for chip in CHIPS]
    lines = [
        [
            each.instance.name,
            f"`{each.instance.kernel.__name__}`",
            label(each.config),
            f"{each.work.bytes / 1e6:.1f}",
            f"{each.work.flops / 1e6:.0f}",
            *(
                f"{prediction.seconds * 1e6:.0f} ({prediction.bound}, {prediction.occupancy:.0%})"
                for prediction in each.predictions.values()
            ),
        ]
        for each in predicted
    ]
    return _markdown(header, lines)


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    table = [header, ["---"] * len(header), *lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in table)
