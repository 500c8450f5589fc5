"""A PTX module as one C++ file: a function for each kernel, run once for each CUDA thread."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Container
from dataclasses import dataclass

# the first three fill the table of instructions
from . import arithmetic, control, memory  # noqa: F401
from .operands import FLOATS, UNSIGNED, Operands, cpp_name, translate_instruction, types_of
from .parse import Instruction, Kernel, Label, Parameter, Variable, parse, width


@dataclass(frozen=True)
class TranslatedKernel:
    """``symbol`` takes the parameters; ``blocks`` are the numbers of its basic blocks in ``TranslatedModule.mixes``."""

    name: str
    symbol: str
    parameters: list[Parameter]
    max_threads: int | None
    static_shared: list[tuple[int, int]]  # (offset, bytes) of each variable
    dynamic_shared_offset: int
    blocks: range


@dataclass(frozen=True)
class TranslatedModule:
    """``mixes`` counts the instructions of each basic block by kind (see ``instruction_kind``)."""

    source: str
    kernels: dict[str, TranslatedKernel]
    variables: dict[str, Variable]  # C++ symbol -> variable in global or constant memory
    mixes: list[Counter[str]]


def translate(ptx: str, kernels: Container[str] | None = None) -> TranslatedModule:
    """All kernels, or those named. Raises ``PtxError``, with the line, where the PTX is not understood."""
    module = parse(ptx, kernels)
    variables = {f"global_{cpp_name(v.name)}": v for v in module.variables if v.space in ("global", "const")}
    mixes: list[Counter[str]] = []
    memory_sites = itertools.count()
    translated, functions = {}, []
    for number, kernel in enumerate(module.kernels):
        operands = Operands(module, kernel, memory_sites)
        first_block = len(mixes)
        body = _body(kernel, operands, mixes)
        symbol = f"kernel_{number}"
        functions.append(_function(symbol, kernel, operands, body))
        translated[kernel.name] = TranslatedKernel(
            kernel.name,
            symbol,
            kernel.parameters,
            kernel.max_threads,
            operands.static_shared,
            operands.dynamic_offset,
            range(first_block, len(mixes)),
        )
    declarations = [_global(symbol, variable) for symbol, variable in variables.items()]
    counts = f'extern "C" {{ uint64_t block_counts[{max(1, len(mixes))}]; }}\n'
    source = '#include "ptx.h"\n\n' + "".join(declarations) + counts + "".join(functions)
    return TranslatedModule(source, translated, variables, mixes)


def _body(kernel: Kernel, operands: Operands, mixes: list[Counter[str]]) -> list[str]:
    lines = []
    block_begins = True
    for item in kernel.body:
        if isinstance(item, Label):
            lines.append(f"label_{cpp_name(item.name)}:;")
            block_begins = True
            continue
        if block_begins:
            lines.append(f"++block_counts[{len(mixes)}];")
            mixes.append(Counter())
        mixes[-1][instruction_kind(item)] += 1
        lines.append(translate_instruction(operands, item))
        block_begins = item.opcode[0] in ("bra", "brx", "ret", "exit")
    return lines


def _function(symbol: str, kernel: Kernel, operands: Operands, body: list[str]) -> str:
    declarations = ["bool carry = false;"]
    for name in sorted(operands.used):
        kind = kernel.registers[name]
        cpp = "bool" if kind == "pred" else UNSIGNED[width(kind)]
        poison = "false" if kind == "pred" else f"({cpp})~0ull"
        declarations.append(f"{cpp} r_{cpp_name(name)} = {poison};")
    for variable in kernel.variables:
        if variable.space == "local":
            align = max(variable.align, 16)
            declarations.append(f"alignas({align}) char local_{cpp_name(variable.name)}[{variable.bytes}];")
    lines = "".join(f"  {line}\n" for line in [*declarations, *body])
    return f'\nextern "C" void {symbol}(const char* parameters) {{\n{lines}}}\n'


def _global(symbol: str, variable: Variable) -> str:
    words = ", ".join(f"({UNSIGNED[variable.word_bytes]}){word & (1 << 64) - 1}ull" for word in variable.words)
    count = variable.bytes // variable.word_bytes
    declaration = f"alignas({max(16, variable.align)}) {UNSIGNED[variable.word_bytes]} {symbol}[{count}]"
    return f'extern "C" {{ {declaration} = {{{words}}}; }}\n'


def instruction_kind(instruction: Instruction) -> str:
    """Return the part of a GPU that an instruction keeps busy: a key of a trace's instruction mix."""
    name, parts = instruction.opcode[0], instruction.opcode
    kinds = types_of(instruction)
    if name in ("ld", "ldu", "st", "atom", "red", "cp", "ldmatrix", "stmatrix"):
        return "parameter" if "param" in parts else "memory"
    if name in ("ex2", "lg2", "sin", "cos", "tanh", "rsqrt") or "approx" in parts or "full" in parts:
        return "special function"
    for opcodes, kind in (
        (("mma",), "matrix"),
        (("shfl", "vote", "redux", "elect"), "warp"),
        (("bar", "barrier"), "barrier"),
        (("bra", "brx", "ret", "exit"), "branch"),
        (("cvt",), "conversion"),
        (("mov", "cvta"), "move"),
    ):
        if name in opcodes:
            return kind
    floating = [kind for kind in kinds if kind in FLOATS or kind.endswith("x2")]
    return f"float {floating[-1]}" if floating else "integer"
