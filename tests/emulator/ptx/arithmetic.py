"""Arithmetic, logic, comparisons and conversions of PTX as C++ expressions (see ``runtime/ptx_arithmetic.h``)."""

from __future__ import annotations

from .operands import FLOATS, UNSIGNED, Operands, integer, rounding_of, translates, types_of
from .parse import Instruction, PtxError, width

_FLOAT_EXPRESSIONS = {
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "fma": "fused({0}, {1}, {2})",
    "mad": "fused({0}, {1}, {2})",
    "div": "{0} / {1}",
    "rcp": "1 / {0}",
    "sqrt": "std::sqrt({0})",
    "min": "smaller({0}, {1})",
    "max": "larger({0}, {1})",
    "min.NaN": "smaller_or_nan({0}, {1})",
    "max.NaN": "larger_or_nan({0}, {1})",
    "abs": "std::fabs({0})",
    "neg": "-({0})",
}
# As a b + c, for directed rounding.
_FUSED_OPERANDS = {"add": "{0}, 1, {1}", "sub": "{0}, 1, -({1})", "mul": "{0}, {1}, -0.f", "fma": "{0}, {1}, {2}"}
_APPROXIMATIONS = ("ex2", "lg2", "rcp", "sqrt", "rsqrt", "div", "sin", "cos", "tanh")
_INTEGER_EXPRESSIONS = {
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "min": "({0} < {1} ? {0} : {1})",
    "max": "({0} > {1} ? {0} : {1})",
    "and": "{0} & {1}",
    "or": "{0} | {1}",
    "xor": "{0} ^ {1}",
    "not": "~{0}",
    "neg": "0 - {0}",
    "cnot": "{0} == 0",
    "div": "quotient({0}, {1})",
    "rem": "remainder({0}, {1})",
    "abs": "absolute({0})",
}
_PREDICATE_EXPRESSIONS = {"and": "{0} && {1}", "or": "{0} || {1}", "xor": "{0} != {1}", "not": "!{0}"}
_COMPARISONS = {
    "eq": "==",
    "ne": "!=",
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
    "lo": "<",
    "ls": "<=",
    "hi": ">",
    "hs": ">=",
}
_UNORDERED = {"equ": "eq", "neu": "ne", "ltu": "lt", "leu": "le", "gtu": "gt", "geu": "ge"}
_TO_INTEGRAL = {"rni": "std::nearbyint", "rzi": "std::trunc", "rmi": "std::floor", "rpi": "std::ceil"}


@translates(
    *("add", "sub", "mul", "fma", "mad", "div", "rcp", "sqrt", "min", "max", "abs", "neg"),
    *("and", "or", "xor", "not", "cnot", "rem", "ex2", "lg2", "rsqrt", "sin", "cos", "tanh"),
    modifiers="rn rz rm rp ftz sat approx full NaN lo hi wide cc",
)
def _arithmetic(operands: Operands, instruction: Instruction) -> str:
    kind = types_of(instruction)[-1]
    if "cc" in instruction.opcode:
        return _with_carry(operands, instruction)
    if kind == "pred":
        sources = [operands.read(source, kind) for source in instruction.operands[1:]]
        expression = _PREDICATE_EXPRESSIONS[instruction.opcode[0]].format(*sources)
        return operands.write(instruction.operands[0], expression, kind)
    if kind.endswith("x2"):
        return _packed(operands, instruction, kind)
    if kind in FLOATS:
        sources = [operands.read(source, kind) for source in instruction.operands[1:]]
        return operands.write(instruction.operands[0], _float_expression(instruction, sources, kind), kind)
    if instruction.opcode[0] in ("mul", "mad"):
        return _integer_product(operands, instruction, kind)
    return _integer(operands, instruction, kind)


def _float_expression(instruction: Instruction, sources: list[str], kind: str) -> str:
    name, parts = instruction.opcode[0], instruction.opcode
    flushes, rounding = "ftz" in parts, rounding_of(instruction)
    if flushes and kind == "f32":
        sources = [f"flush({source})" for source in sources]
    if kind in ("f16", "bf16") and name in ("add", "sub", "mul", "fma"):
        # in float64, so that the result is rounded once
        sources = [f"double({source})" for source in sources]
    if name in _APPROXIMATIONS and ("approx" in parts or "full" in parts or name in ("tanh", "ex2", "lg2")):
        suffix = "_f64" if kind == "f64" else ""
        if suffix and name not in ("rcp", "rsqrt"):
            raise PtxError(f"no approximation of {name} in float64")
        expression = f"approximate_{name}{suffix}({', '.join(sources)})"
    elif rounding != "rn" and kind == "f32":
        expression = f"fused_towards('{rounding[1]}', {_FUSED_OPERANDS[name].format(*sources)})"
    elif rounding != "rn":
        raise PtxError(f"rounding .{rounding} of {kind}")
    else:
        expression = _FLOAT_EXPRESSIONS[f"{name}.NaN" if "NaN" in parts else name].format(*sources)
    if flushes and kind == "f32":
        expression = f"flush({expression})"
    return f"saturate({expression})" if "sat" in parts else expression


def _packed(operands: Operands, instruction: Instruction, kind: str) -> str:
    """Two numbers in one register, such as f16x2."""
    half, size = kind[:-2], width(kind)
    bits, whole = 4 * size, f"b{8 * size}"
    lanes = []
    for lane in range(2):
        sources = [
            f"as_{half}(({UNSIGNED[size // 2]})({operands.read(source, whole)} >> {bits * lane}))"
            for source in instruction.operands[1:]
        ]
        value = _float_expression(instruction, sources, half)
        lanes.append(f"({UNSIGNED[size]}){half}_bits({value}) << {bits * lane}")
    return operands.write(instruction.operands[0], " | ".join(lanes), whole)


def _integer(operands: Operands, instruction: Instruction, kind: str) -> str:
    name = instruction.opcode[0]
    if "sat" in instruction.opcode:
        raise PtxError("saturating integer arithmetic")
    # The sign matters only for these; elsewhere unsigned arithmetic wraps as the hardware does.
    signed = name in ("min", "max", "div", "rem", "abs")
    read_as = kind if signed else f"u{8 * width(kind)}"
    sources = [operands.read(source, read_as) for source in instruction.operands[1:]]
    return operands.write(instruction.operands[0], _INTEGER_EXPRESSIONS[name].format(*sources), kind)


def _integer_product(operands: Operands, instruction: Instruction, kind: str) -> str:
    size = width(kind)
    wide = "wide" in instruction.opcode
    result = f"u{16 * size}" if wide else f"u{8 * size}"
    a, b, *rest = instruction.operands[1:]
    if wide:
        factor = integer(kind[0] + str(16 * size))
        product = f"({integer(result)})(({factor})({operands.read(a, kind)}) * ({factor})({operands.read(b, kind)}))"
    elif "hi" in instruction.opcode:
        product = f"({integer(result)})high_product({operands.read(a, kind)}, {operands.read(b, kind)})"
    else:
        product = f"(uint64_t){operands.read(a, result)} * (uint64_t){operands.read(b, result)}"
    added = "".join(f" + {operands.read(addend, result)}" for addend in rest)
    return operands.write(instruction.operands[0], product + added, result)


@translates("addc", "subc", "madc", modifiers="cc lo hi")
def _with_carry(operands: Operands, instruction: Instruction) -> str:
    """Arithmetic on numbers of several words: ``.cc`` sets the carry (or borrow), ``addc`` and its like add it."""
    name, kind = instruction.opcode[0], types_of(instruction)[0]
    size = width(kind)
    unsigned = f"u{8 * size}"
    target, *sources = instruction.operands
    values = [f"(unsigned __int128){operands.read(source, unsigned)}" for source in sources]
    if name.startswith("mad"):
        if "hi" in instruction.opcode:
            factors = ", ".join(operands.read(source, kind) for source in sources[:2])
            product = f"({integer(unsigned)})high_product({factors})"
        else:
            product = f"({integer(unsigned)})({values[0]} * {values[1]})"
        values = [f"(unsigned __int128){product}", values[2]]
    carry = " {0} carry" if name.endswith("c") else ""
    sign = "-" if name.startswith("sub") else "+"
    code = f"const unsigned __int128 total = {values[0]} {sign} {values[1]}{carry.format(sign)}; "
    if "cc" in instruction.opcode:
        code += f"carry = total >> {8 * size} & 1; "
    return f"{{ {code}{operands.write(target, 'total', unsigned)} }}"


@translates("shl", "shr")
def _shift(operands: Operands, instruction: Instruction) -> str:
    kind = types_of(instruction)[0]
    value, count = operands.read(instruction.operands[1], kind), operands.read(instruction.operands[2], "u32")
    side = "left" if instruction.opcode[0] == "shl" else "right"
    return operands.write(instruction.operands[0], f"shift_{side}({value}, {count})", kind)


@translates("shf", modifiers="l r wrap clamp")
def _funnel_shift(operands: Operands, instruction: Instruction) -> str:
    low, high, count = (operands.read(source, "u32") for source in instruction.operands[1:])
    left, wrap = (str(part in instruction.opcode).lower() for part in ("l", "wrap"))
    return operands.write(instruction.operands[0], f"funnel_shift({low}, {high}, {count}, {left}, {wrap})", "b32")


@translates("prmt", "lop3", "bfe", "bfi", "bfind", "popc", "clz", "brev", modifiers="shiftamt")
def _bits(operands: Operands, instruction: Instruction) -> str:
    name, kind = instruction.opcode[0], types_of(instruction)[0]
    target, sources = instruction.operands[0], instruction.operands[1:]
    count = 8 * width(kind)
    unsigned = [operands.read(source, f"u{count}") for source in sources[:1]]
    if name == "prmt":
        words = ", ".join(operands.read(source, "u32") for source in sources)
        return operands.write(target, f"permute_bytes({words})", kind)
    if name == "lop3":
        words = ", ".join(operands.read(source, "u32") for source in sources[:3])
        return operands.write(target, f"lookup_logic({words}, {int(sources[3], 0)})", kind)
    if name == "bfe":
        fields = ", ".join(operands.read(source, "u32") for source in sources[1:])
        return operands.write(target, f"extract_bits({operands.read(sources[0], kind)}, {fields})", kind)
    if name == "bfi":
        values = ", ".join(operands.read(source, kind) for source in sources[:2])
        fields = ", ".join(operands.read(source, "u32") for source in sources[2:])
        return operands.write(target, f"insert_bits<{integer(kind)}>({values}, {fields})", kind)
    if name == "bfind":
        shift = str("shiftamt" in instruction.opcode).lower()
        return operands.write(target, f"highest_bit({operands.read(sources[0], kind)}, {shift})", "u32")
    if name == "popc":
        return operands.write(target, f"__builtin_popcountll({unsigned[0]})", "u32")
    if name == "clz":
        return operands.write(target, f"leading_zeros({unsigned[0]}, {count})", "u32")
    return operands.write(target, f"reversed_bits({unsigned[0]})", kind)


@translates("copysign")
def _copysign(operands: Operands, instruction: Instruction) -> str:
    kind = types_of(instruction)[0]
    sign, magnitude = (operands.read(source, kind) for source in instruction.operands[1:])
    return operands.write(instruction.operands[0], f"std::copysign({magnitude}, {sign})", kind)


@translates("testp", modifiers="infinite finite notanumber number normal")
def _test(operands: Operands, instruction: Instruction) -> str:
    value = operands.read(instruction.operands[1], types_of(instruction)[0])
    expression = {
        "infinite": f"std::isinf({value})",
        "finite": f"std::isfinite({value})",
        "notanumber": f"std::isnan({value})",
        "number": f"!std::isnan({value})",
        "normal": f"std::isnormal({value})",
    }[instruction.opcode[1]]
    return operands.write(instruction.operands[0], expression, "pred")


@translates("setp", "set", modifiers="eq ne lt le gt ge lo ls hi hs equ neu ltu leu gtu geu num nan and or xor ftz")
def _compare(operands: Operands, instruction: Instruction) -> str:
    parts, kind = instruction.opcode, types_of(instruction)[-1]
    a, b = (operands.read(source, kind) for source in instruction.operands[1:3])
    if "ftz" in parts and kind == "f32":
        a, b = f"flush({a})", f"flush({b})"
    result = _comparison(parts[1], a, b, kind in FLOATS)
    combination = next((part for part in parts[2:] if part in ("and", "or", "xor")), None)

    def combined(value: str) -> str:
        if combination is None:
            return value
        return _PREDICATE_EXPRESSIONS[combination].format(value, operands.read(instruction.operands[3], "pred"))

    targets = [target.strip() for target in instruction.operands[0].split("|")]
    if parts[0] == "set":
        kind = types_of(instruction)[0]
        true = "1.f" if kind == "f32" else "0xffffffffu"
        return operands.write(targets[0], f"({combined(result)}) ? {true} : 0", kind)
    code = f"const bool compared = {result}; " + operands.write(targets[0], combined("compared"), "pred")
    if len(targets) > 1:
        code += " " + operands.write(targets[1], combined("!compared"), "pred")
    return f"{{ {code} }}"


def _comparison(name: str, a: str, b: str, floating: bool) -> str:
    unordered = f"(std::isnan({a}) || std::isnan({b}))"
    if name in ("nan", "num"):
        return unordered if name == "nan" else f"!{unordered}"
    if floating and name in _UNORDERED:
        return f"({a} {_COMPARISONS[_UNORDERED[name]]} {b} || {unordered})"
    if floating and name == "ne":  # which for NaN is true in C++ and false in PTX
        return f"({a} != {b} && !{unordered})"
    return f"({a} {_COMPARISONS[name]} {b})"


@translates("selp")
def _select(operands: Operands, instruction: Instruction) -> str:
    kind = f"b{8 * width(types_of(instruction)[0])}"
    target, yes, no, condition = instruction.operands
    choice = f"{operands.read(condition, 'pred')} ? {operands.read(yes, kind)} : {operands.read(no, kind)}"
    return operands.write(target, choice, kind)


@translates("cvt", modifiers="rn rz rm rp rna rni rzi rmi rpi ftz sat relu")
def _convert(operands: Operands, instruction: Instruction) -> str:
    parts = instruction.opcode
    to, of = types_of(instruction)
    target = instruction.operands[0]
    values = [operands.read(source, of) for source in instruction.operands[1:]]
    if "ftz" in parts and of == "f32":
        values = [f"flush({value})" for value in values]
    if "relu" in parts:
        values = [f"larger_or_nan({value}, 0.f)" for value in values]
    rounding = rounding_of(instruction)
    if to in ("f16x2", "bf16x2"):
        if rounding != "rn" or "sat" in parts:
            raise PtxError("packed conversions round to nearest only")
        high, low = (f"(uint32_t){to[:-2]}_bits({value})" for value in values)
        return operands.write(target, f"{high} << 16 | {low}", "b32")
    if to == "tf32":
        return operands.write(target, f"tf32_bits{'_nearest_even' if rounding == 'rn' else ''}({values[0]})", "b32")
    if to in FLOATS:
        return _to_float(operands, instruction, values[0], of, to, rounding)
    if of in FLOATS:
        mode = next(part for part in parts if part in _TO_INTEGRAL)
        return operands.write(target, f"to_integer<{integer(to)}>({_TO_INTEGRAL[mode]}({values[0]}))", to)
    expression = f"clamp_integer<{integer(to)}>({values[0]})" if "sat" in parts else values[0]
    return operands.write(target, expression, to)


def _to_float(operands: Operands, instruction: Instruction, value: str, of: str, to: str, rounding: str) -> str:
    parts, target = instruction.opcode, instruction.operands[0]
    integral = next((part for part in parts if part in _TO_INTEGRAL), None)
    if integral:
        value = f"{_TO_INTEGRAL[integral]}({value})"
    if to in ("f16", "bf16"):
        if "sat" in parts:
            value = f"saturate({value})"
        if rounding == "rz" and of == "f32":
            return operands.write(target, f"{to}_bits_towards_zero({value})", "b16")
        if rounding != "rn":
            raise PtxError(f"rounding .{rounding} to {to}")
        if of not in FLOATS:
            value = f"(double)({value})"
        return operands.write(target, value, to)
    if to == "f32" and rounding != "rn":
        value = f"towards('{rounding[1]}', {value})"
    value = f"({'float' if to == 'f32' else 'double'})({value})"
    if "ftz" in parts and to == "f32":
        value = f"flush({value})"
    return operands.write(target, f"saturate({value})" if "sat" in parts else value, to)
