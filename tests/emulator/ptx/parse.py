"""PTX text as data: a module, its kernels, their parameters, variables and instructions.

Grammar: NVIDIA, "Parallel Thread Execution ISA". It covers the PTX of nvcc and Triton; the rest raises ``PtxError``.
"""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import dataclass, field


class PtxError(Exception):
    """PTX that the translator does not understand; the message names the line."""


@dataclass(frozen=True)
class Instruction:
    """``opcode`` is split at its dots (not at ``::``); ``guard`` is a predicate register, with ``!`` when negated."""

    opcode: tuple[str, ...]
    operands: tuple[str, ...]
    guard: str | None
    line: int
    text: str


@dataclass(frozen=True)
class Label:
    name: str


@dataclass(frozen=True)
class Variable:
    """Memory declared in the module or a kernel; sizes in bytes. ``words``: initial values of ``word_bytes`` each."""

    name: str
    space: str
    align: int
    bytes: int
    word_bytes: int = 1
    words: tuple[int, ...] = ()


@dataclass(frozen=True)
class Parameter:
    """``type`` as declared, such as ``u64`` or ``f32``; ``b8`` for a structure passed by value."""

    name: str
    type: str
    offset: int
    bytes: int


@dataclass
class Kernel:
    name: str
    parameters: list[Parameter]
    max_threads: int | None
    registers: dict[str, str] = field(default_factory=dict)  # name -> type
    variables: list[Variable] = field(default_factory=list)
    jump_tables: dict[str, list[str]] = field(default_factory=dict)
    body: list[Instruction | Label] = field(default_factory=list)


@dataclass
class Module:
    kernels: list[Kernel]
    variables: list[Variable]  # in global, constant and shared memory
    dynamic_shared: set[str]  # names of the unsized arrays in shared memory


_WIDTHS = {"pred": 1, "f16x2": 4, "bf16x2": 4, "bf16": 2, "tf32": 4, "f32x2": 8}
_ENTRY = re.compile(r"(?:\.visible|\.weak)?\s*\.entry\s+([\w$]+)\s*\(([^)]*)\)([^{;]*)\{")
_PARAMETER = re.compile(
    r"\.param\s+(?:\.align\s+(?P<align>\d+)\s+)?\.(?P<type>\w+)\s*"
    r"(?:\.ptr\s*(?:\.(?:global|const|shared|local)\s*)?(?:\.align\s+\d+\s*)?)?(?P<name>[\w$]+)(?:\[(?P<count>\d+)\])?"
)
_VARIABLE = re.compile(
    r"\.(?P<space>global|const|shared|local)\s+(?:\.align\s+(?P<align>\d+)\s+)?\.(?P<type>\w+)\s+(?P<name>[\w$]+)"
    r"(?P<dimensions>(?:\[\d+\])*)\s*(?:=\s*(?P<values>.*))?$",
    re.S,
)
_NAME = re.compile(r"\.entry\s+([\w$]+)")
_DYNAMIC = re.compile(r"\.extern\s+\.shared\s+(?:\.align\s+\d+\s+)?\.\w+\s+([\w$]+)\[\]\s*;")
_INSTRUCTION = re.compile(r"(?:@(!?)(%?[\w$]+)\s+)?([a-z][\w.:]*)\s*(.*)$", re.S)


def width(type_name: str) -> int:
    """Bytes of a PTX type; a predicate takes one."""
    if type_name in _WIDTHS:
        return _WIDTHS[type_name]
    match = re.fullmatch(r"[bsuf](8|16|32|64|128)", type_name)
    if not match:
        raise PtxError(f"unknown type .{type_name}")
    return int(match.group(1)) // 8


def _renamed(statement: str, names: dict[str, str]) -> str:
    """The statement with the registers of a scope under their unique names."""
    if not names:
        return statement
    alternatives = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    return re.sub(rf"(?<![\w%$])(?:{alternatives})(?![\w$])", lambda match: names[match.group()], statement)


def split_list(text: str) -> list[str]:
    """Items separated by commas outside brackets."""
    items, depth, start = [], 0, 0
    for i, character in enumerate(text):
        depth += (character in "{[(") - (character in "}])")
        if character == "," and depth == 0:
            items.append(text[start:i].strip())
            start = i + 1
    return [*items, text[start:].strip()] if text.strip() else []


def vector_items(operand: str) -> list[str]:
    """The registers of ``{a, b}``, or of a single operand."""
    return split_list(operand[1:-1]) if operand.startswith("{") else [operand]


def kernel_names(text: str) -> list[str]:
    """The kernels of a PTX text."""
    return _NAME.findall(text)


def parse(text: str, kernels: Container[str] | None = None) -> Module:
    """The module with all kernels, or those named. Raises ``PtxError`` with the line at fault."""
    text = re.sub(r"/\*.*?\*/", lambda comment: "\n" * comment.group().count("\n"), text, flags=re.S)
    text = re.sub(r"//[^\n]*", "", text)
    entries = list(_ENTRY.finditer(text))
    if not entries:
        raise PtxError("no .entry in the PTX")
    parsed = []
    for entry in entries:
        if kernels is not None and entry.group(1) not in kernels:
            continue
        end = _closing_brace(text, entry.end())
        kernel = Kernel(entry.group(1), _parse_parameters(entry.group(2)), _max_threads(entry.group(3)))
        _Body(kernel, text.count("\n", 0, entry.end()) + 1).parse(text[entry.end() : end])
        parsed.append(kernel)
    head = text[: entries[0].start()]
    statements = [statement.strip() for statement in head.split(";")]
    found = [_VARIABLE.search(statement) for statement in statements if ".extern" not in statement]
    variables = [_variable(match) for match in found if match]
    return Module(parsed, variables, set(_DYNAMIC.findall(text)))


def _closing_brace(text: str, start: int) -> int:
    depth = 1
    for match in re.compile(r"[{}]").finditer(text, start):
        depth += 1 if match.group() == "{" else -1
        if depth == 0:
            return match.start()
    raise PtxError("a kernel without its closing brace")


def _max_threads(directives: str) -> int | None:
    match = re.search(r"\.(?:maxntid|reqntid)\s+([\d\s,]+)", directives)
    if not match:
        return None
    count = 1
    for size in match.group(1).split(","):
        count *= int(size)
    return count


def _parse_parameters(text: str) -> list[Parameter]:
    parameters: list[Parameter] = []
    end = 0
    for match in _PARAMETER.finditer(text):
        size = width(match["type"])
        align = int(match["align"] or size)
        offset = -(-end // align) * align
        parameters.append(Parameter(match["name"], match["type"], offset, size * int(match["count"] or 1)))
        end = offset + parameters[-1].bytes
    return parameters


def _variable(match: re.Match[str]) -> Variable:
    size = width(match["type"])
    count = 1
    for dimension in re.findall(r"\[(\d+)\]", match["dimensions"]):
        count *= int(dimension)
    words = [_constant(word) for word in re.findall(r"[^\s{},;]+", match["values"] or "")]
    align = int(match["align"] or size)
    return Variable(match["name"], match["space"], align, size * count, size, tuple(words))


def _constant(word: str) -> int:
    if re.match(r"0[fFdD][0-9a-fA-F]+$", word):
        return int(word[2:], 16)
    try:
        return int(word.rstrip("U"), 0)
    except ValueError:
        raise PtxError(f"initial value {word}: only numbers are understood") from None


class _Body:
    """The statements of one kernel. Registers declared in an inner scope get names of their own."""

    def __init__(self, kernel: Kernel, first_line: int) -> None:
        self.kernel = kernel
        self.line = first_line
        self.scopes: list[dict[str, str]] = [{}]
        self.scope_count = 0

    def parse(self, text: str) -> None:
        pending = ""
        for line in text.split("\n"):
            rest = line.strip()
            if not pending and re.match(r"\.(loc|file)\b", rest):
                rest = ""
            while rest:
                rest, pending = self._take(rest, pending)
            self.line += 1
        if pending.strip():
            raise PtxError(f"line {self.line}: unfinished statement {pending.strip()}")

    def _take(self, rest: str, pending: str) -> tuple[str, str]:
        """Consume a label, brace or piece of a statement; return what is left of the line and of the statement."""
        if not pending and rest[0] in "{}":
            self._scope(rest[0])
            return rest[1:].strip(), ""
        label = re.match(r"([$\w]+)\s*:(?!:)\s*", rest)
        if not pending and label:
            table = re.match(r"\.branchtargets\s+([^;]*);", rest[label.end() :])
            if table:
                self.kernel.jump_tables[label.group(1)] = split_list(table.group(1))
                return rest[label.end() + table.end() :].strip(), ""
            self.kernel.body.append(Label(label.group(1)))
            return rest[label.end() :], ""
        piece, semicolon, left = rest.partition(";")
        if not semicolon:
            return "", f"{pending} {rest}"
        self._statement(f"{pending} {piece}".strip())
        return left.strip(), ""

    def _scope(self, brace: str) -> None:
        if brace == "{":
            self.scopes.append({})
            self.scope_count += 1
        elif len(self.scopes) == 1:
            raise PtxError(f"line {self.line}: a closing brace too many")
        else:
            self.scopes.pop()

    def _statement(self, statement: str) -> None:
        if not statement or statement.startswith((".pragma", ".alias")):
            return
        if statement.startswith(".reg"):
            self._registers(statement)
        elif statement.startswith("."):
            match = _VARIABLE.match(statement)
            if not match:
                raise PtxError(f"line {self.line}: cannot understand `{statement}`")
            self.kernel.variables.append(_variable(match))
        else:
            self._instruction(statement)

    def _registers(self, statement: str) -> None:
        match = re.match(r"\.reg\s+\.(\w+)\s+(.*)$", statement, re.S)
        if not match:
            raise PtxError(f"line {self.line}: cannot understand `{statement}`")
        kind = match.group(1)
        width(kind)
        for name in split_list(match.group(2)):
            family = re.fullmatch(r"(%?[\w$]+)<(\d+)>", name)
            for member in [f"{family.group(1)}{i}" for i in range(int(family.group(2)))] if family else [name]:
                unique = member if len(self.scopes) == 1 else f"{member}_scope{self.scope_count}"
                self.scopes[-1][member] = unique
                self.kernel.registers[unique] = kind

    def _instruction(self, statement: str) -> None:
        for scope in reversed(self.scopes[1:]):
            statement = _renamed(statement, scope)
        match = _INSTRUCTION.match(statement)
        if not match:
            raise PtxError(f"line {self.line}: cannot understand `{statement}`")
        negated, guard, opcode, operands = match.groups()
        self.kernel.body.append(
            Instruction(
                opcode=tuple(re.split(r"(?<!:)\.", opcode)),
                operands=tuple(split_list(operands)),
                guard=f"{negated}{guard}" if guard else None,
                line=self.line,
                text=statement,
            )
        )
