"""Jumps, barriers and operations of a whole warp as C++ (see ``runtime/ptx_warp.h``)."""

from __future__ import annotations

import re

from .operands import Operands, cpp_name, integer, translates, types_of
from .parse import Instruction, PtxError, vector_items


@translates("bra", modifiers="uni")
def _branch(operands: Operands, instruction: Instruction) -> str:
    return f"goto label_{cpp_name(instruction.operands[0])};"


@translates("brx", modifiers="idx uni")
def _jump_table(operands: Operands, instruction: Instruction) -> str:
    index, table = instruction.operands
    cases = [f"case {i}: goto label_{cpp_name(target)};" for i, target in enumerate(operands.kernel.jump_tables[table])]
    return f"switch ({operands.read(index, 'u32')}) {{ {' '.join(cases)} }}"


@translates("ret", "exit", modifiers="uni")
def _return(operands: Operands, instruction: Instruction) -> str:
    return "return;"


@translates("trap")
def _trap(operands: Operands, instruction: Instruction) -> str:
    return f'fail({{nullptr, {instruction.line}}}, "trap");'


@translates("nanosleep", "pmevent", "griddepcontrol", modifiers="wait launch_dependents")
def _nothing(operands: Operands, instruction: Instruction) -> str:
    return ";"


@translates("bar", "barrier", modifiers="sync warp cta aligned")
def _barrier(operands: Operands, instruction: Instruction) -> str:
    if "sync" not in instruction.opcode:
        raise PtxError("only .sync barriers are known")
    site = f"{{nullptr, {instruction.line}}}"
    if "warp" in instruction.opcode:
        return f"warp_barrier({operands.read(instruction.operands[0], 'u32')}, {site});"
    number = operands.read(instruction.operands[0], "u32")
    count = operands.read(instruction.operands[1], "u32") if len(instruction.operands) > 1 else "0"
    return f"block_barrier({number}, {count}, {site});"


@translates("shfl", modifiers="sync up down bfly idx")
def _shuffle(operands: Operands, instruction: Instruction) -> str:
    targets = [target.strip() for target in instruction.operands[0].split("|")]
    value, lane, clamp, mask = (operands.read(source, "u32") for source in instruction.operands[1:])
    mode = {"up": "up", "down": "down", "bfly": "butterfly", "idx": "index"}[instruction.opcode[2]]
    code = f"const Shuffled got = shuffle(ShuffleMode::{mode}, {value}, {lane}, {clamp}, {mask}, {instruction.line}); "
    code += operands.write(targets[0], "got.value", "b32")
    if len(targets) > 1:
        code += " " + operands.write(targets[1], "got.in_range", "pred")
    return f"{{ {code} }}"


@translates("vote", modifiers="sync ballot any all uni")
def _vote(operands: Operands, instruction: Instruction) -> str:
    target, predicate, mask = instruction.operands
    members = operands.read(mask, "u32")
    votes = f"ballot({operands.read(predicate, 'pred')}, {members}, {instruction.line})"
    kind = instruction.opcode[2]
    if kind == "ballot":
        return operands.write(target, votes, "b32")
    result = {"any": "votes != 0", "all": f"votes == {members}", "uni": f"votes == 0 || votes == {members}"}[kind]
    return f"{{ const uint32_t votes = {votes}; {operands.write(target, result, 'pred')} }}"


@translates("elect", modifiers="sync")
def _elect(operands: Operands, instruction: Instruction) -> str:
    lane, predicate = (target.strip() for target in instruction.operands[0].split("|"))
    code = f"const uint32_t elected = elect({operands.read(instruction.operands[1], 'u32')}, {instruction.line}); "
    code += operands.write(lane, "elected", "b32")
    return f"{{ {code} {operands.write(predicate, 'elected == current_thread->lane', 'pred')} }}"


@translates("redux", modifiers="sync add min max and or xor")
def _reduce(operands: Operands, instruction: Instruction) -> str:
    kind = types_of(instruction)[0]
    number = integer(kind)
    combination = {
        "add": "a + b",
        "min": "a < b ? a : b",
        "max": "a > b ? a : b",
        "and": "a & b",
        "or": "a | b",
        "xor": "a ^ b",
    }[instruction.opcode[2]]
    target, value, mask = instruction.operands
    arguments = f"{operands.read(value, kind)}, {operands.read(mask, 'u32')}, {instruction.line}"
    combine = f"[]({number} a, {number} b) -> {number} {{ return {combination}; }}"
    return operands.write(target, f"reduce<{number}>({arguments}, {combine})", kind)


_SHAPE = re.compile(r"m(\d+)n(\d+)k(\d+)")
_SHAPES = "m16n8k4 m16n8k8 m16n8k16 m8n8k4"


@translates("mma", modifiers=f"sync aligned row col {_SHAPES}")
def _multiply_matrices(operands: Operands, instruction: Instruction) -> str:
    shape = _SHAPE.search(".".join(instruction.opcode))
    if shape is None:
        raise PtxError(f"no shape of {_SHAPES}")
    rows, depth = int(shape.group(1)), int(shape.group(3))
    d_kind, a_kind, b_kind, c_kind = types_of(instruction)
    if a_kind != b_kind or c_kind != d_kind or instruction.opcode[4:6] != ("row", "col"):
        raise PtxError("A and B of one type, row and col, and C and D of one type are understood")
    d, a, b, c = (vector_items(operand) for operand in instruction.operands)
    read_as, number = ("f64", "double") if a_kind == "f64" else ("b32", "uint32_t")
    factors = "".join(
        f"const {number} {name}[] = {{{', '.join(operands.read(item, read_as) for item in items)}}}; "
        for name, items in (("a", a), ("b", b))
    )
    if a_kind == "f64":
        product = f"multiply_matrices({rows}u, {depth}u, a, b, sums, {instruction.line});"
    elif rows == 16 and a_kind in ("f16", "bf16", "tf32"):
        product = f"multiply_matrices(Factor::{a_kind}, {depth}, a, b, sums, {instruction.line});"
    else:
        raise PtxError("unknown form of mma")
    if d_kind == "f16":
        halves = [f"as_f16((uint16_t)({operands.read(item, 'b32')} >> {shift}))" for item in c for shift in (0, 16)]
        sums = f"float sums[] = {{{', '.join(halves)}}}; "
        packed = [f"f16_bits(sums[{2 * i}]) | (uint32_t)f16_bits(sums[{2 * i + 1}]) << 16" for i in range(len(d))]
        writes = [operands.write(item, word, "b32") for item, word in zip(d, packed, strict=True)]
    else:
        sum_type = {"f32": "float", "f64": "double"}[d_kind]
        sums = f"{sum_type} sums[] = {{{', '.join(operands.read(item, d_kind) for item in c)}}}; "
        writes = [operands.write(item, f"sums[{i}]", d_kind) for i, item in enumerate(d)]
    return f"{{ {factors}{sums}{product} {' '.join(writes)} }}"
