"""The meaning of the floating-point and conversion instructions of the machine code (sm_90)."""

from collections.abc import Callable

import numpy as np

from benchmarks.gpu_model.instructions import COMPARE, combiner, opcode, s32, simple
from benchmarks.gpu_model.operands import (
    MASK32,
    Array,
    Execute,
    Reader,
    read_predicate,
    reader_f32,
    reader_f64,
    reader_u32,
    reader_u64,
    write_predicate,
    writer_f32,
    writer_f64,
    writer_u32,
    writer_u64,
)
from benchmarks.gpu_model.sass import Instruction, Operand

# --- floating point --------------------------------------------------------------------------------------------------


def _finish(instruction: Instruction, exact: Array) -> Array:
    """Rounds an exact float64 result to float32 as the modifiers say."""
    modifiers = instruction.modifiers
    value = exact.astype(np.float32)
    if "RM" in modifiers or "RP" in modifiers:
        wrong = value > exact if "RM" in modifiers else value < exact
        value = np.where(wrong, np.nextafter(value, np.float32(-np.inf if "RM" in modifiers else np.inf)), value)
    if "FTZ" in modifiers:
        value = np.where(np.abs(value) < np.float32(2.0**-126), np.copysign(np.float32(0), value), value)
    if "SAT" in modifiers:
        value = np.where(np.isnan(value), np.float32(0), np.clip(value, 0, 1))
    return value


def _float_operation(instruction: Instruction, function: Callable[..., Array]) -> Execute:
    double = lambda read: lambda m, i: np.asarray(read(m, i), np.float64)  # noqa: E731
    store = writer_f32(instruction.operands[0])
    readers = [double(reader_f32(source)) for source in instruction.operands[1:]]
    factors = {"D2": 0.5, "D4": 0.25, "D8": 0.125, "M2": 2.0, "M4": 4.0, "M8": 8.0}
    scale = next((factors[modifier] for modifier in instruction.modifiers if modifier in factors), 1.0)

    def execute(m, i):
        store(m, i, _finish(instruction, np.asarray(function(*(read(m, i) for read in readers)) * scale)))

    return execute


@opcode("FADD", "FADD32I")
def add_float(instruction):
    return _float_operation(instruction, lambda a, b: a + b)


@opcode("FMUL", "FMUL32I")
def multiply_float(instruction):
    return _float_operation(instruction, lambda a, b: a * b)


@opcode("FFMA", "FFMA32I")
def multiply_add_float(instruction):
    return _float_operation(instruction, lambda a, b, c: a * b + c)


@opcode("FMNMX")
def minimum_float(instruction):
    target, a, b, predicate = instruction.operands
    store, read_a, read_b, smaller = writer_f32(target), reader_f32(a), reader_f32(b), read_predicate(predicate)

    def execute(m, i):
        x, y = read_a(m, i), read_b(m, i)
        store(m, i, np.where(smaller(m, i), np.fmin(x, y), np.fmax(x, y)))

    return execute


def _compare_floats(instruction: Instruction, read: Callable[[Operand], Reader]) -> Execute:
    compare, *rest = instruction.modifiers
    first, second, a, b, other = instruction.operands
    read_a, read_b, read_other, combine = read(a), read(b), read_predicate(other), combiner(rest)
    stores = write_predicate(first), write_predicate(second)

    def execute(m, i):
        x, y = read_a(m, i), read_b(m, i)
        result, past = COMPARE[compare](x, y), read_other(m, i)
        stores[0](m, i, combine(result, past))
        stores[1](m, i, combine(~np.asarray(result), past))

    return execute


@opcode("FSETP")
def compare_floats(instruction):
    return _compare_floats(instruction, reader_f32)


@opcode("DSETP")
def compare_doubles(instruction):
    return _compare_floats(instruction, reader_f64)


@opcode("FCHK")
def check_division(instruction):
    target, a, b = instruction.operands[:3]
    store, read_a, read_b = write_predicate(target), reader_f32(a), reader_f32(b)

    def execute(m, i):
        """Whether a / b needs the slow path: exponents near the ends of the range."""
        x, y = np.asarray(read_a(m, i)), np.asarray(read_b(m, i))
        exponents = np.frexp(x)[1], np.frexp(y)[1]
        special = ~np.isfinite(x) | ~np.isfinite(y) | (y == 0) | (np.abs(exponents[1]) > 120)
        special |= (x != 0) & ((exponents[0] < -100) | (np.abs(exponents[0] - exponents[1]) > 120))
        store(m, i, special)

    return execute


@opcode("MUFU")
def special_function(instruction):
    kind = instruction.modifiers[0]
    if kind in ("RCP64H", "RSQ64H"):
        target, source = instruction.operands
        store, read = writer_u32(target), reader_u32(source)

        def execute(m, i):
            value = (np.asarray(read(m, i)).astype(np.uint64) << np.uint64(32)).view(np.float64)
            result = 1 / value if kind == "RCP64H" else 1 / np.sqrt(value)
            store(m, i, (np.asarray(result).view(np.uint64) >> np.uint64(32)).astype(np.uint32))

        return execute
    functions = {
        "RCP": lambda x: 1 / x,
        "EX2": np.exp2,
        "LG2": np.log2,
        "RSQ": lambda x: 1 / np.sqrt(x),
        "SQRT": np.sqrt,
        "TANH": np.tanh,
    }
    return _float_operation(instruction, functions[kind])


@opcode("DADD")
def add_double(instruction):
    return simple(instruction, lambda a, b: a + b, reader_f64, writer_f64)


@opcode("DMUL")
def multiply_double(instruction):
    return simple(instruction, lambda a, b: a * b, reader_f64, writer_f64)


@opcode("DFMA")
def multiply_add_double(instruction):
    def fused(a, b, c):
        wide = np.longdouble(a) * np.longdouble(b) + np.longdouble(c)
        return np.asarray(wide, np.float64)

    return simple(instruction, fused, reader_f64, writer_f64)


# --- halves and conversions ------------------------------------------------------------------------------------------


@opcode("HADD2")
def add_halves(instruction):
    if "F32" in instruction.modifiers:  # a half widened to float32
        return _float_operation(instruction, lambda a, b: a + b)
    return _halves(instruction, lambda a, b: a + b)


@opcode("HMUL2")
def multiply_halves(instruction):
    return _halves(instruction, lambda a, b: a * b)


@opcode("HFMA2")
def multiply_add_halves(instruction):
    return _halves(instruction, lambda a, b, c: a * b + c)


def _halves(instruction: Instruction, function: Callable[..., Array]) -> Execute:
    """Packed operations on two halves or two bfloat16; two immediates in a row are the high and the low half."""
    brain = any("BF16" in modifier for modifier in instruction.modifiers)
    store, sources = writer_u32(instruction.operands[0]), list(instruction.operands[1:])
    readers = []
    while sources:
        source = sources.pop(0)
        if source.kind == "immediate":
            low = sources.pop(0)
            readers.append(_constant_pair(low, source))
        else:
            readers.append(_half_reader(source, brain))

    def execute(m, i):
        values = [read(m, i) for read in readers]
        parts = [_half_bits(np.asarray(function(*(value[part] for value in values))), brain) for part in (0, 1)]
        store(m, i, parts[0] | parts[1] << np.uint32(16))

    return execute


def _constant_pair(low: Operand, high: Operand) -> Callable:
    pair = np.float64(low.value), np.float64(high.value)
    return lambda m, i: pair


def _half_reader(operand: Operand, brain: bool) -> Callable:
    raw = reader_u32(Operand(operand.kind, operand.text, operand.number, operand.uniform, terms=operand.terms))
    shifts = {"H0_H0": (0, 0), "H1_H1": (16, 16)}.get(operand.suffixes[0] if operand.suffixes else "", (0, 16))

    def read(m, i):
        word = np.asarray(raw(m, i))
        pair = []
        for shift in shifts:
            bits = (word >> np.uint32(shift)).astype(np.uint16)
            value = (
                (bits.astype(np.uint32) << np.uint32(16)).view(np.float32) if brain else bits.view(np.float16)
            ).astype(np.float64)
            value = np.abs(value) if operand.absolute else value
            pair.append(-value if operand.negative else value)
        return tuple(pair)

    return read


def _half_bits(value: Array, brain: bool) -> Array:
    if not brain:
        return value.astype(np.float16).view(np.uint16).astype(np.uint32)
    bits = value.astype(np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(value), np.uint32(0x7FFF), rounded)


@opcode("F2FP")
def pack_halves(instruction):
    brain = "BF16" in instruction.modifiers
    return simple(
        instruction,
        lambda high, low: _half_bits(np.asarray(low), brain) | _half_bits(np.asarray(high), brain) << np.uint32(16),
        reader_f32,
    )


@opcode("F2F")
def convert_float(instruction):
    to, source = [m for m in instruction.modifiers if m in ("F16", "BF16", "F32", "F64")][:2]
    if to in ("F16", "BF16"):
        return simple(instruction, lambda a: _half_bits(np.asarray(a), to == "BF16"), reader_f32)
    read = reader_f64 if source == "F64" else reader_f32
    return simple(instruction, lambda a: a, read, writer_f64 if to == "F64" else writer_f32)


@opcode("F2I")
def float_to_integer(instruction):
    modifiers = instruction.modifiers
    rounding = next((m for m in modifiers if m in ("FLOOR", "CEIL", "TRUNC")), "ROUND")
    round_value = {"FLOOR": np.floor, "CEIL": np.ceil, "TRUNC": np.trunc, "ROUND": np.rint}[rounding]
    long, unsigned = "U64" in modifiers or "S64" in modifiers, "U32" in modifiers or "U64" in modifiers
    bits = 64 if long else 32
    low, high = (0, 2.0**bits) if unsigned else (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1))
    read = reader_f64 if "F64" in modifiers else reader_f32

    def convert(a):
        value = round_value(np.asarray(a, np.float64))
        value = np.where(np.isnan(value), low if "F64" in modifiers and not unsigned else 0, value)
        whole = np.clip(value, low, np.nextafter(high, 0))
        result = whole.astype(np.uint64) if unsigned else whole.astype(np.int64).view(np.uint64)
        top = np.uint64((2**bits - 1) if unsigned else 2 ** (bits - 1) - 1)
        result = np.where(value >= high, top, result)
        return result if long else (result & MASK32).astype(np.uint32)

    return simple(instruction, convert, read, writer_u64 if long else writer_u32)


@opcode("I2F", "I2FP")
def integer_to_float(instruction):
    modifiers = instruction.modifiers
    if "U64" in modifiers or "S64" in modifiers:
        read = reader_u64
        cast = (lambda a: a) if "U64" in modifiers else lambda a: np.asarray(a, np.uint64).view(np.int64)
    else:
        read, cast = reader_u32, (lambda a: a) if "U32" in modifiers else s32
    if "F64" in modifiers:
        return simple(instruction, lambda a: np.asarray(cast(a)).astype(np.float64), read, writer_f64)
    return simple(
        instruction,
        lambda a: _finish(instruction, np.asarray(cast(a)).astype(np.float64)),
        read,
        writer_f32,
    )
