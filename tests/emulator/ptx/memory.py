"""Loads, stores, copies and atomic operations of PTX as C++ (see ``runtime/ptx_memory.h``)."""

from __future__ import annotations

import re

from .operands import UNSIGNED, Operands, integer, space_of, translates, types_of
from .parse import Instruction, PtxError, vector_items, width

# Hints and scopes without effect here: one block runs at a time, and memory is sequentially consistent.
_HINTS = (
    "weak volatile relaxed acquire release acq_rel cta cluster gpu sys sc mmio nc "
    "ca cg cs cv lu wb wt L1::evict_first L1::evict_last L1::evict_normal L1::no_allocate L1::evict_unchanged "
    "L2::64B L2::128B L2::256B L2::evict_first L2::evict_last L2::evict_normal L2::cache_hint"
)
_SPACES = "global shared shared::cta local param param::entry const"
_STRONG = {"volatile", "relaxed", "acquire", "release", "acq_rel", "mmio"}


def _vector_length(instruction: Instruction) -> int:
    return next((int(part[1:]) for part in instruction.opcode if re.fullmatch(r"v[248]", part)), 1)


def _strong(instruction: Instruction) -> bool:
    return not _STRONG.isdisjoint(instruction.opcode)


@translates("ld", "ldu", modifiers=f"{_HINTS} {_SPACES} v2 v4 v8")
def _load(operands: Operands, instruction: Instruction) -> str:
    kind = types_of(instruction)[-1]
    size, count, space = width(kind), _vector_length(instruction), space_of(instruction)
    targets = vector_items(instruction.operands[0])
    if len(targets) != count:
        raise PtxError(f"{len(targets)} registers for a vector of {count}")
    name, offset = operands.address(instruction.operands[1])
    if space == "param" and name in operands.parameters:
        pointer = f"parameters + {operands.parameters[name].offset + int(offset)}"
    else:
        access = operands.access("load", instruction, _strong(instruction))
        pointer = operands.pointer(instruction.operands[1], space, size * count, access)
    read_as = kind if kind[0] == "s" else f"b{8 * size}"
    loads = [
        operands.write(target, f"load<{UNSIGNED[size]}>(from + {i * size})", read_as)
        for i, target in enumerate(targets)
    ]
    return f"{{ const char* from = {pointer}; {' '.join(loads)} }}"


@translates("st", modifiers=f"{_HINTS} {_SPACES} v2 v4 v8")
def _store(operands: Operands, instruction: Instruction) -> str:
    kind = types_of(instruction)[-1]
    size, space = width(kind), space_of(instruction)
    if space in ("param", "const"):
        raise PtxError(f"a store to {space} memory")
    sources = vector_items(instruction.operands[1])
    if len(sources) != _vector_length(instruction):
        raise PtxError(f"{len(sources)} registers for a vector of {_vector_length(instruction)}")
    access = operands.access("store", instruction, _strong(instruction))
    pointer = operands.pointer(instruction.operands[0], space, size * len(sources), access)
    stores = [
        f"store<{UNSIGNED[size]}>(to + {i * size}, {operands.read(source, f'b{8 * size}')});"
        for i, source in enumerate(sources)
    ]
    return f"{{ char* to = {pointer}; {' '.join(stores)} }}"


@translates("mov")
def _move(operands: Operands, instruction: Instruction) -> str:
    target, source = instruction.operands
    kind = types_of(instruction)[0]
    if kind == "pred":
        return operands.write(target, operands.read(source, kind), kind)
    size = width(kind)
    whole = f"b{8 * size}"
    if target.startswith("{"):
        parts = vector_items(target)
        bits = 8 * size // len(parts)
        unpacked = [operands.write(part, f"whole >> {bits * i}", f"b{bits}") for i, part in enumerate(parts)]
        return f"{{ const {UNSIGNED[size]} whole = {operands.read(source, whole)}; {' '.join(unpacked)} }}"
    if source.startswith("{"):
        parts = vector_items(source)
        bits = 8 * size // len(parts)
        packed = [f"({UNSIGNED[size]}){operands.read(part, f'b{bits}')} << {bits * i}" for i, part in enumerate(parts)]
        return operands.write(target, " | ".join(packed), whole)
    return operands.write(target, operands.read(source, whole), whole)


@translates("cvta", modifiers=f"{_SPACES} to")
def _convert_address(operands: Operands, instruction: Instruction) -> str:
    kind = types_of(instruction)[-1]
    target, source = instruction.operands
    value = operands.read(source, kind)
    if space_of(instruction) == "shared":
        value += " - SHARED_WINDOW" if "to" in instruction.opcode else " + SHARED_WINDOW"
    return operands.write(target, value, kind)


_CHANGES = {
    "add": "before + value",
    "exch": "value",
    "and": "before & value",
    "or": "before | value",
    "xor": "before ^ value",
    "min": "(before < value ? before : value)",
    "max": "(before > value ? before : value)",
    "inc": "(before >= value ? 0 : before + 1)",
    "dec": "(before == 0 || before > value ? value : before - 1)",
}


@translates("atom", "red", modifiers=f"{_HINTS} global shared shared::cta noftz ftz {' '.join(_CHANGES)} cas v2 v4")
def _atomic(operands: Operands, instruction: Instruction) -> str:
    if _vector_length(instruction) > 1:
        return _vector_reduction(operands, instruction)
    kind = types_of(instruction)[-1]
    returns = instruction.opcode[0] == "atom"
    place, *values = instruction.operands[1:] if returns else instruction.operands
    pointer = operands.pointer(
        place, space_of(instruction), width(kind), operands.access("atomic", instruction, strong=True)
    )
    update = _update(operands, instruction, kind, pointer, values)
    return operands.write(instruction.operands[0], update, f"b{8 * width(kind)}") if returns else f"{update};"


def _update(operands: Operands, instruction: Instruction, kind: str, pointer: str, values: list[str]) -> str:
    """A C++ expression that changes the memory and has its former bits as value."""
    size = width(kind)
    bits, raw = UNSIGNED[size], f"b{8 * size}"
    if "cas" in instruction.opcode:
        compared, new = (operands.read(value, raw) for value in values)
        return f"atomic<{bits}>({pointer}, [&]({bits} before) {{ return before == {compared} ? {new} : before; }})"
    change = _CHANGES[next(part for part in instruction.opcode if part in _CHANGES)]
    if kind in ("f16x2", "bf16x2"):
        half = kind[:-2]
        lanes = [
            f"(uint32_t){half}_bits(as_{half}((uint16_t)(before >> {shift})) + "
            f"as_{half}((uint16_t)({operands.read(values[0], raw)} >> {shift}))) << {shift}"
            for shift in (0, 16)
        ]
        if change != _CHANGES["add"]:
            raise PtxError("packed halves can only be added")
        body = f"return {' | '.join(lanes)};"
    elif kind in ("f16", "bf16", "f32", "f64"):
        body = (
            f"const auto value = {operands.read(values[0], kind)}; const auto before = as_{kind}(bits); "
            f"return {kind}_bits({change});"
        )
        return f"atomic<{bits}>({pointer}, [&]({bits} bits) -> {bits} {{ {body} }})"
    else:
        number = integer(kind)
        body = f"const {number} value = {operands.read(values[0], kind)}; return ({number})({change});"
        return f"({bits})atomic<{number}>({pointer}, [&]({number} before) -> {number} {{ {body} }})"
    return f"atomic<{bits}>({pointer}, [&]({bits} before) -> {bits} {{ {body} }})"


def _vector_reduction(operands: Operands, instruction: Instruction) -> str:
    kind, count = types_of(instruction)[-1], _vector_length(instruction)
    size = width(kind)
    if instruction.opcode[0] != "red":
        raise PtxError("only red takes vectors")
    access = operands.access("atomic", instruction, strong=True)
    pointer = operands.pointer(instruction.operands[0], space_of(instruction), size * count, access)
    values = vector_items(instruction.operands[1])
    updates = [
        _update(operands, instruction, kind, f"to + {i * size}", [value]) + ";" for i, value in enumerate(values)
    ]
    return f"{{ char* to = {pointer}; {' '.join(updates)} }}"


@translates("cp", modifiers=f"async {_HINTS} shared shared::cta global commit_group wait_group wait_all L2::cache_hint")
def _copy(operands: Operands, instruction: Instruction) -> str:
    parts = instruction.opcode
    if "commit_group" in parts:
        return "commit_copies();"
    if "wait_group" in parts:
        return f"wait_for_copies({int(instruction.operands[0], 0)});"
    if "wait_all" in parts:
        return "wait_for_copies(-1);"
    target, source, size, *rest = instruction.operands
    from_bytes = operands.read(rest[0], "u32") if rest else size
    to_base, to_offset = operands.address(target)
    from_base, from_offset = operands.address(source)
    read, write = operands.access("load", instruction), operands.access("store", instruction)
    to = f"{operands.read(to_base, 'u32')} + {to_offset}"
    of = f"{operands.read(from_base, 'u64')} + {from_offset}"
    return f"copy_async({to}, {of}, {int(size, 0)}, {from_bytes}, {read}, {write});"


@translates("ldmatrix", "stmatrix", modifiers="sync aligned m8n8 x1 x2 x4 trans shared shared::cta")
def _matrix(operands: Operands, instruction: Instruction) -> str:
    loads = instruction.opcode[0] == "ldmatrix"
    registers, place = instruction.operands if loads else reversed(instruction.operands)
    names = vector_items(registers)
    base, offset = operands.address(place)
    transposed = str("trans" in instruction.opcode).lower()
    access = operands.access("load" if loads else "store", instruction)
    arguments = f"{operands.read(base, 'u32')} + {offset}, {len(names)}, {transposed}, words, {access}"
    if loads:
        writes = [operands.write(name, f"words[{i}]", "b32") for i, name in enumerate(names)]
        return f"{{ uint32_t words[{len(names)}]; load_matrix({arguments}); {' '.join(writes)} }}"
    values = ", ".join(operands.read(name, "b32") for name in names)
    return f"{{ const uint32_t words[] = {{{values}}}; store_matrix({arguments}); }}"


@translates("membar", "fence", modifiers=f"{_HINTS} gl proxy async alias shared::cta global")
def _fence(operands: Operands, instruction: Instruction) -> str:
    return ";"  # memory is sequentially consistent here


@translates("createpolicy", modifiers=f"{_HINTS} fractional range")
def _cache_policy(operands: Operands, instruction: Instruction) -> str:
    return operands.write(instruction.operands[0], "0", "b64")


@translates("prefetch", "prefetchu", "discard", "applypriority", modifiers=f"{_HINTS} global L1 L2")
def _hint(operands: Operands, instruction: Instruction) -> str:
    return ";"
