"""Reads and writes the operands of machine instructions, for all lanes of an index array at once.

A reader is a function of the machine's state and the lanes, which returns an array (or a scalar that broadcasts).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.gpu_model.sass import TRUE, ZERO, Instruction, Operand

if TYPE_CHECKING:
    from benchmarks.gpu_model.machine import Machine

Array = np.ndarray
Reader = Callable[["Machine", Array], Array]
Execute = Callable[["Machine", Array], None]
MASK32 = np.uint64(0xFFFFFFFF)


class UnsupportedCode(Exception):
    """Machine code that the model cannot execute, because no kernel of this repository has needed it so far.

    The message names it. Add a function with its opcode to one of the modules ``*_instructions.py``.
    """


def reader_u32(operand: Operand) -> Reader:
    """Reads 32 bits as an unsigned integer, with the operand's sign and inversion as integer operations."""
    raw = _raw(operand)
    if operand.kind == "predicate":
        return lambda m, i: read_predicate(operand)(m, i).astype(np.uint32)
    if operand.absolute:
        raw = _absolute(raw)
    if operand.inverted:
        return lambda m, i: ~raw(m, i)
    if operand.negative and operand.kind != "immediate":
        return lambda m, i: np.uint32(0) - raw(m, i)
    return raw


def _absolute(raw: Reader) -> Reader:
    return lambda m, i: np.abs(np.asarray(raw(m, i)).astype(np.int32)).astype(np.uint32)


def _raw(operand: Operand, part: int = 0) -> Reader:
    if operand.kind == "register":
        number, uniform = operand.number, operand.uniform
        if number == ZERO:
            return lambda m, i: np.uint32(0)
        if uniform:
            return lambda m, i: m.uniform[number + part, i]
        return lambda m, i: m.registers[number + part, i]
    if operand.kind == "immediate":
        bits = np.uint32(operand.bits >> 32 * part & 0xFFFFFFFF)
        return lambda m, i: bits
    if operand.kind == "constant":
        read_address, bank = reader_address(operand), operand.number
        return lambda m, i: m.constants(bank, read_address(m, i) + 4 * part)
    raise UnsupportedCode(f"operand {operand.text}")


def reader_carry_u64(operand: Operand) -> Reader:
    """Reads 32 bits into 64, so that sums keep their carry: -x counts as the 32 bits of ~x, plus one."""
    raw = _raw(operand)
    if operand.inverted:
        return lambda m, i: _to_u64(~raw(m, i))
    if operand.negative and operand.kind != "immediate":
        return lambda m, i: _to_u64(~raw(m, i)) + np.uint64(1)
    return lambda m, i: _to_u64(raw(m, i))


def _to_u64(value: Array) -> Array:
    return np.asarray(value).astype(np.uint64)


def reader_u64(operand: Operand) -> Reader:
    """Reads a pair of registers, or a constant or immediate of 32 bits, as 64 bits."""
    low = _raw(operand)
    if operand.kind == "immediate":
        value = np.uint64(operand.bits)
        return lambda m, i: value
    if operand.kind == "register" and operand.number == ZERO:
        return lambda m, i: np.uint64(0)
    high = _raw(operand, 1)

    def read(m: "Machine", i: Array) -> Array:
        value = _to_u64(low(m, i)) | _to_u64(high(m, i)) << np.uint64(32)
        return np.uint64(0) - value if operand.negative else ~value if operand.inverted else value

    return read


def reader_f32(operand: Operand) -> Reader:
    """Reads a float32, or a half selected by the suffix H0_H0 or H1_H1."""
    if operand.kind == "immediate" and "0x" not in operand.text:
        constant = np.float32(operand.value)
        return lambda m, i: constant
    raw = _raw(operand)
    half = next((suffix for suffix in operand.suffixes if suffix in ("H0_H0", "H1_H1")), None)
    if half is not None:
        shift = np.uint32(16 if half == "H1_H1" else 0)
        return _signed(operand, lambda m, i: (raw(m, i) >> shift).astype(np.uint16).view(np.float16).astype(np.float32))
    return _signed(operand, lambda m, i: np.asarray(raw(m, i), np.uint32).view(np.float32))


def reader_f64(operand: Operand) -> Reader:
    """Reads a float64 from a pair of registers, a constant or an immediate."""
    if operand.kind == "immediate":
        constant = np.float64(operand.value)
        return lambda m, i: constant
    pair = reader_u64(Operand(operand.kind, operand.text, operand.number, operand.uniform, terms=operand.terms))
    return _signed(operand, lambda m, i: np.asarray(pair(m, i), np.uint64).view(np.float64))


def _signed(operand: Operand, read: Reader) -> Reader:
    if operand.absolute and operand.negative:
        return lambda m, i: -np.abs(read(m, i))
    if operand.absolute:
        return lambda m, i: np.abs(read(m, i))
    if operand.negative:
        return lambda m, i: -read(m, i)
    return read


def read_predicate(operand: Operand) -> Reader:
    """Reads a predicate register."""
    number, inverted, uniform = operand.number, operand.inverted, operand.uniform
    if number == TRUE:
        return lambda m, i: np.bool_(not inverted)
    if uniform:
        return (
            (lambda m, i: ~m.uniform_predicates[number, i])
            if inverted
            else (lambda m, i: m.uniform_predicates[number, i])
        )
    return (lambda m, i: ~m.predicates[number, i]) if inverted else (lambda m, i: m.predicates[number, i])


def reader_address(operand: Operand) -> Reader:
    """Sums the terms of an address as 64-bit integers; a register without the suffix 64 counts as signed 32 bits."""
    readers: list[Reader] = []
    offset = 0
    for term in operand.terms:
        if term.kind == "immediate":
            offset += int(term.value)
        elif term.kind == "register" and term.number != ZERO:
            scale = next((int(suffix[1:]) for suffix in term.suffixes if suffix[:1] == "X"), 1)
            readers.append(_term(term, scale))
    offset_array = np.int64(offset)
    if not readers:
        return lambda m, i: np.full(len(i), offset_array)
    if len(readers) == 1:
        only = readers[0]
        return lambda m, i: only(m, i) + offset_array
    return lambda m, i: sum((read(m, i) for read in readers), start=np.int64(0)) + offset_array


def _term(term: Operand, scale: int) -> Reader:
    if "64" in term.suffixes:
        pair = reader_u64(Operand("register", term.text, term.number, term.uniform))
        return lambda m, i: pair(m, i).view(np.int64)
    raw = _raw(Operand("register", term.text, term.number, term.uniform))
    if "U32" in term.suffixes:
        return lambda m, i: raw(m, i).astype(np.int64) * scale
    return lambda m, i: raw(m, i).view(np.int32).astype(np.int64) * scale


def writer_u32(operand: Operand, part: int = 0) -> Callable[["Machine", Array, Array], None]:
    """Writes 32 bits to a register; writes to RZ are dropped."""
    number, uniform = operand.number + part, operand.uniform
    if operand.number == ZERO:
        return lambda m, i, value: None

    def write(m: "Machine", i: Array, value: Array) -> None:
        (m.uniform if uniform else m.registers)[number, i] = value

    return write


def writer_u64(operand: Operand) -> Callable[["Machine", Array, Array], None]:
    """Writes 64 bits to a pair of registers."""
    low, high = writer_u32(operand), writer_u32(operand, 1)

    def write(m: "Machine", i: Array, value: Array) -> None:
        low(m, i, (value & MASK32).astype(np.uint32))
        high(m, i, (value >> np.uint64(32)).astype(np.uint32))

    return write


def writer_f32(operand: Operand) -> Callable[["Machine", Array, Array], None]:
    """Writes a float32 to a register."""
    write = writer_u32(operand)
    return lambda m, i, value: write(m, i, np.asarray(value, np.float32).view(np.uint32))


def writer_f64(operand: Operand) -> Callable[["Machine", Array, Array], None]:
    """Writes a float64 to a pair of registers."""
    write = writer_u64(operand)
    return lambda m, i, value: write(m, i, np.asarray(value, np.float64).view(np.uint64))


def write_predicate(operand: Operand) -> Callable[["Machine", Array, Array], None]:
    """Writes a predicate register; writes to PT are dropped."""
    number, uniform = operand.number, operand.uniform
    if number == TRUE:
        return lambda m, i, value: None

    def write(m: "Machine", i: Array, value: Array) -> None:
        (m.uniform_predicates if uniform else m.predicates)[number, i] = value

    return write


def split_predicates(instruction: Instruction) -> tuple[list[Operand], Operand, list[Operand]]:
    """The leading predicate results, the result register, and the sources of an arithmetic instruction.

    IADD3 R0, P0, R1, R2, R3, P1: the results are R0 and P0.
    """
    first, rest = instruction.operands[0], list(instruction.operands[1:])
    results = []
    if first.kind == "predicate":  # LOP3.LUT P0, RZ, ...: the predicate comes first
        return [first], rest[0], rest[1:]
    while rest and rest[0].kind == "predicate":
        results.append(rest.pop(0))
    return results, first, rest
