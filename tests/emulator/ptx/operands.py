"""Operands of PTX instructions as C++ expressions, and the table of the functions that translate instructions.

A register is a C++ variable of unsigned type that holds its bits. Reading one as a PTX type gives a value of that type
(float16 and bfloat16 as ``float``); writing one takes a value of that type.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from .parse import Instruction, Kernel, Module, PtxError, Variable, width

TYPE = re.compile(r"[bsuf](?:8|16|32|64|128)|pred|f16x2|bf16|bf16x2|tf32|f32x2")
UNSIGNED = {1: "uint8_t", 2: "uint16_t", 4: "uint32_t", 8: "uint64_t", 16: "unsigned __int128"}
SIGNED = {1: "int8_t", 2: "int16_t", 4: "int32_t", 8: "int64_t"}
FLOATS = ("f16", "bf16", "f32", "f64")
SPACES = ("global", "shared", "local", "param", "const", "generic")

# Wider than any access: reaching over the end of a variable in shared memory never lands in the next one.
SHARED_GAP = 128

_SPECIAL = {
    f"%{register}.{axis}": f"{function}(&Index3::{axis})"
    for register, function in (
        ("tid", "thread_register"),
        ("ctaid", "block_register"),
        ("ntid", "block_size_register"),
        ("nctaid", "grid_size_register"),
    )
    for axis in "xyz"
}
_SPECIAL |= {
    "%laneid": "current_thread->lane",
    "%warpid": "current_thread->warp",
    "%lanemask_eq": "(1u << current_thread->lane)",
    "%lanemask_lt": "((1u << current_thread->lane) - 1)",
    "%lanemask_le": "((2u << current_thread->lane) - 1)",
    "%lanemask_gt": "~((2u << current_thread->lane) - 1)",
    "%lanemask_ge": "~((1u << current_thread->lane) - 1)",
    "WARP_SZ": "32u",
}


def cpp_name(name: str) -> str:
    return re.sub(r"\W", "_", name)


def integer(type_name: str) -> str:
    """The C++ type of a PTX integer type."""
    return (SIGNED if type_name[0] == "s" else UNSIGNED)[width(type_name)]


class Operands:
    """Reads and writes the operands of one kernel's instructions."""

    def __init__(self, module: Module, kernel: Kernel, memory_sites: Iterator[int]) -> None:
        self.kernel = kernel
        self.parameters = {parameter.name: parameter for parameter in kernel.parameters}
        self.memory_sites = memory_sites
        self.used: set[str] = set()  # registers
        self.local = {v.name for v in kernel.variables if v.space == "local"}
        self.globals = {v.name for v in module.variables if v.space in ("global", "const")}
        shared = [v for v in (*module.variables, *kernel.variables) if v.space == "shared"]
        mentioned = {
            token for i in kernel.body if isinstance(i, Instruction) for token in re.findall(r"[\w$]+", i.text)
        }
        self.shared, end = _place_shared([v for v in shared if v.name in mentioned])
        self.dynamic_offset = end
        self.dynamic_shared = module.dynamic_shared
        self.static_shared = [(self.shared[v.name], v.bytes) for v in shared if v.name in self.shared]

    def read(self, operand: str, type_name: str) -> str:
        """A C++ expression for the value of ``operand`` read as ``type_name``."""
        if type_name == "pred":
            negated = operand.startswith("!")
            return ("!" if negated else "") + self._raw(operand.lstrip("!"), 1)
        size = width(type_name)
        raw = self._raw(operand, size)
        if type_name in FLOATS:
            return f"as_{type_name}(({UNSIGNED[size]})({raw}))"
        return f"({integer(type_name)})({raw})"

    def write(self, operand: str, expression: str, type_name: str) -> str:
        """A C++ statement that stores a value of ``type_name``; a wider register is extended as its sign demands."""
        if operand == "_":
            return f"(void)({expression});"
        register = self.kernel.registers.get(operand)
        if register is None:
            raise PtxError(f"unknown register {operand}")
        self.used.add(operand)
        size = width(register)
        if type_name in FLOATS:
            expression = f"{type_name}_bits({expression})"
        elif type_name[0] == "s":
            expression = f"({UNSIGNED[size]})({SIGNED[min(size, 8)]})({integer(type_name)})({expression})"
        elif type_name != "pred":
            expression = f"({UNSIGNED[width(type_name)]})({expression})"
        return f"r_{cpp_name(operand)} = {expression};"

    def address(self, operand: str) -> tuple[str, str]:
        """Base and offset of ``[base + offset]``."""
        inside = operand.strip()
        if not (inside.startswith("[") and inside.endswith("]")):
            raise PtxError(f"{operand} is no address")
        match = re.fullmatch(r"(.+?)\s*\+\s*(-?\s*(?:0x[0-9a-fA-F]+|\d+))", inside[1:-1].strip())
        if match:
            return match.group(1).strip(), str(int(match.group(2).replace(" ", ""), 0))
        return inside[1:-1].strip(), "0"

    def pointer(self, operand: str, space: str, size: int, access: str) -> str:
        """A C++ expression for the checked host pointer of an address operand."""
        base, offset = self.address(operand)
        if space == "shared":
            return f"shared_pointer((uint32_t)({self._raw(base, 4)} + {offset}), {size}, {access})"
        # parameters are addressed through a register when a kernel takes their address
        function = {"const": "global", "param": "global"}.get(space, space)
        return f"{function}_pointer((uint64_t)({self._raw(base, 8)}) + ({offset}), {size}, {access})"

    def access(self, kind: str, instruction: Instruction, strong: bool = False) -> str:
        """The C++ ``Access`` of a load, store or atomic instruction, with a number of its own."""
        return f"Access{{{instruction.line}, {next(self.memory_sites)}, Kind::{kind}, {str(strong).lower()}}}"

    def _raw(self, operand: str, size: int) -> str:
        """The bits of a register, constant or symbol, ``size`` bytes wide or wider."""
        if operand in _SPECIAL:
            return _SPECIAL[operand]
        if operand in self.kernel.registers:
            self.used.add(operand)
            return f"r_{cpp_name(operand)}"
        if re.fullmatch(r"0[fFdD][0-9a-fA-F]+", operand):
            return f"0x{operand[2:]}ull"
        if re.fullmatch(r"-?(?:0x[0-9A-Fa-f]+|\d+)U?", operand):
            return f"{int(operand.rstrip('U'), 0) & (1 << 64) - 1}ull"
        name, _, offset = operand.partition("+")
        return f"({self._symbol(name.strip())} + {int(offset or '0', 0)})"

    def _symbol(self, name: str) -> str:
        if name in self.shared:
            return f"{self.shared[name]}u"
        if name in self.dynamic_shared:
            return f"{self.dynamic_offset}u"
        if name in self.local:
            return f"(uint64_t)local_{cpp_name(name)}"
        if name in self.globals:
            return f"(uint64_t)global_{cpp_name(name)}"
        if name in self.parameters:
            return f"(uint64_t)(parameters + {self.parameters[name].offset})"
        raise PtxError(f"unknown operand {name}")


def _place_shared(variables: list[Variable]) -> tuple[dict[str, int], int]:
    """Offsets of static shared variables, and that of the dynamic shared memory behind them."""
    offsets, end = {}, 0
    for variable in variables:
        align = max(variable.align, 16)
        offsets[variable.name] = -(-end // align) * align
        end = offsets[variable.name] + variable.bytes + SHARED_GAP
    return offsets, -(-end // SHARED_GAP) * SHARED_GAP


Translate = Callable[[Operands, Instruction], str]
_TABLE: dict[str, tuple[Translate, frozenset[str]]] = {}


def translates(*opcodes: str, modifiers: str = "") -> Callable[[Translate], Translate]:
    """Register a function for ``opcodes`` with the modifiers it understands, besides types; any other is an error."""

    def register(function: Translate) -> Translate:
        for opcode in opcodes:
            _TABLE[opcode] = (function, frozenset(modifiers.split()))
        return function

    return register


def translate_instruction(operands: Operands, instruction: Instruction) -> str:
    """The C++ statement of an instruction. Raises ``PtxError`` that names the line."""
    try:
        name = instruction.opcode[0]
        if name not in _TABLE:
            raise PtxError(f"unknown opcode {name}")
        function, modifiers = _TABLE[name]
        for part in instruction.opcode[1:]:
            if part not in modifiers and not TYPE.fullmatch(part):
                raise PtxError(f"unknown modifier .{part}")
        code = function(operands, instruction)
        if instruction.guard:
            code = f"if ({operands.read(instruction.guard, 'pred')}) {{ {code} }}"
        return code
    except (PtxError, KeyError, IndexError, ValueError, StopIteration) as error:
        reason = error if isinstance(error, PtxError) else f"{type(error).__name__} {error}"
        raise PtxError(f"line {instruction.line}: cannot translate `{instruction.text}`: {reason}") from error


def types_of(instruction: Instruction) -> list[str]:
    return [part for part in instruction.opcode[1:] if TYPE.fullmatch(part)]


def space_of(instruction: Instruction) -> str:
    parts = [part.split("::")[0] for part in instruction.opcode[1:]]
    return next((part for part in parts if part in SPACES), "generic")


def rounding_of(instruction: Instruction) -> str:
    return next((part for part in instruction.opcode if part in ("rn", "rz", "rm", "rp", "rna")), "rn")
