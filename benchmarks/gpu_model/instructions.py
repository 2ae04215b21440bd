"""The meaning of the integer and predicate instructions of the machine code (sm_90).

Every builder takes an instruction and returns a function that executes it for the lanes of an index array. The
meaning follows from the names in the CUDA Binary Utilities manual and from running compiled kernels against their
references (tests/gpu_model).
"""

from collections.abc import Callable

import numpy as np

from benchmarks.gpu_model.operands import (
    MASK32,
    Array,
    Execute,
    read_predicate,
    reader_carry_u64,
    reader_f32,
    reader_u32,
    reader_u64,
    split_predicates,
    write_predicate,
    writer_f32,
    writer_u32,
    writer_u64,
)
from benchmarks.gpu_model.sass import Instruction

BUILDERS: dict[str, Callable[[Instruction], Execute]] = {}


def opcode(*names: str) -> Callable:
    """Registers the builder of opcodes."""

    def register(builder: Callable[[Instruction], Execute]) -> Callable[[Instruction], Execute]:
        BUILDERS.update(dict.fromkeys(names, builder))
        return builder

    return register


def simple(instruction: Instruction, function: Callable, read: Callable = reader_u32, write: Callable = writer_u32):
    """An instruction whose result is a function of its sources."""
    store, readers = write(instruction.operands[0]), [read(source) for source in instruction.operands[1:]]

    def execute(m, i):
        store(m, i, function(*(reader(m, i) for reader in readers)))

    return execute


def s32(value: Array) -> Array:
    """The bits as a signed integer."""
    return np.asarray(value, np.uint32).view(np.int32)


def s64(value: Array) -> Array:
    """A signed integer of 32 bits, extended to 64."""
    return s32(value).astype(np.int64)


# --- integers --------------------------------------------------------------------------------------------------------


@opcode("MOV", "UMOV")
def move(instruction):
    return simple(Instruction(**{**instruction.__dict__, "operands": instruction.operands[:2]}), lambda a: a)


@opcode("CS2R")
def clear_pair(instruction):
    write = writer_u32 if "32" in instruction.modifiers else writer_u64
    store = write(instruction.operands[0])
    return lambda m, i: store(m, i, np.uint64(0) if write is writer_u64 else np.uint32(0))


@opcode("IADD3", "UIADD3")
def add3(instruction):
    results, target, sources = split_predicates(instruction)
    carries = [read_predicate(s) for s in sources if s.kind == "predicate"] if "X" in instruction.modifiers else []
    readers = [reader_carry_u64(source) for source in sources if source.kind != "predicate"]
    store, flags = writer_u32(target), [write_predicate(result) for result in results]

    def execute(m, i):
        total = np.uint64(0)
        for reader in readers + carries:
            total = total + np.asarray(reader(m, i)).astype(np.uint64)
        store(m, i, (total & MASK32).astype(np.uint32))
        for order, flag in enumerate(flags, 1):
            flag(m, i, total >= np.uint64(order << 32))

    return execute


@opcode("VIADD")
def add2(instruction):
    return simple(instruction, lambda a, b: a + b)


@opcode("IMAD", "UIMAD")
def multiply_add(instruction):
    results, target, sources = split_predicates(instruction)
    modifiers, (a, b, c, *rest) = instruction.modifiers, sources
    unsigned, high, wide = "U32" in modifiers, "HI" in modifiers, "WIDE" in modifiers
    read_a, read_b = reader_u32(a), reader_u32(b)
    if not (high or wide):
        read_c, store = reader_u32(c), writer_u32(target)
        carry = read_predicate(rest[0]) if "X" in modifiers and rest else lambda m, i: np.uint32(0)
        return lambda m, i: store(m, i, read_a(m, i) * read_b(m, i) + read_c(m, i) + np.asarray(carry(m, i), np.uint32))
    read_c = reader_u64(c)
    store = writer_u64(target) if wide else writer_u32(target)
    flags = [write_predicate(result) for result in results]

    def execute(m, i):
        left, right, addend = read_a(m, i), read_b(m, i), read_c(m, i)
        if unsigned:
            product = np.asarray(left).astype(np.uint64) * np.asarray(right).astype(np.uint64)
        else:
            product = (s64(left) * s64(right)).view(np.uint64)
        total = product + addend
        store(m, i, total if wide else (total >> np.uint64(32)).astype(np.uint32))
        for flag in flags:
            flag(m, i, total < product)

    return execute


@opcode("LEA", "ULEA")
def load_effective_address(instruction):
    results, target, sources = split_predicates(instruction)
    modifiers = instruction.modifiers
    predicates = [source for source in sources if source.kind == "predicate"]
    values = [source for source in sources if source.kind != "predicate"]
    shift = values.pop().bits
    store, flags = writer_u32(target), [write_predicate(result) for result in results]
    carry = read_predicate(predicates[0]) if "X" in modifiers and predicates else None
    read_a, read_b = reader_u32(values[0]), reader_carry_u64(values[1])
    read_high = reader_u32(values[2]) if len(values) > 2 else None

    def execute(m, i):
        low = np.asarray(read_a(m, i)).astype(np.uint64)
        if "HI" not in modifiers:
            shifted = low << np.uint64(shift) & MASK32
        else:
            if read_high is not None:
                low = low | np.asarray(read_high(m, i)).astype(np.uint64) << np.uint64(32)
            else:  # SX32
                low = s64(low.astype(np.uint32)).view(np.uint64)
            shifted = low >> np.uint64(32 - shift) & MASK32
        total = shifted + read_b(m, i)
        if carry is not None:
            total = total + np.asarray(carry(m, i)).astype(np.uint64)
        store(m, i, (total & MASK32).astype(np.uint32))
        for flag in flags:
            flag(m, i, total > MASK32)

    return execute


@opcode("LOP3", "ULOP3")
def logic3(instruction):
    results, target, sources = split_predicates(instruction)
    a, b, c = (reader_u32(source) for source in sources[:3])
    table, store, flags = sources[3].bits, writer_u32(target), [write_predicate(result) for result in results]

    def execute(m, i):
        x, y, z = a(m, i), b(m, i), c(m, i)
        value = _lookup(table, x, y, z)
        store(m, i, value)
        for flag in flags:
            flag(m, i, value != 0)

    return execute


def _lookup(table: int, x: Array, y: Array, z: Array) -> Array:
    """The bitwise function of three values that a table of eight bits defines."""
    if table == 0xC0:
        return x & y
    value = np.uint32(0)
    for case in range(8):
        if table >> case & 1:
            value = value | ((x if case & 4 else ~x) & (y if case & 2 else ~y) & (z if case & 1 else ~z))
    return value


@opcode("PLOP3", "UPLOP3")
def predicate_logic3(instruction):
    first, second, *sources = instruction.operands
    readers = [read_predicate(source) for source in sources[:3]]
    tables = [source.bits for source in sources[3:5]]
    stores = [write_predicate(first), write_predicate(second)]

    def execute(m, i):
        x, y, z = (np.asarray(reader(m, i)) for reader in readers)
        number = x.astype(int) * 4 + y.astype(int) * 2 + z.astype(int)
        for store, table in zip(stores, tables, strict=True):
            store(m, i, (table >> number & 1).astype(bool))

    return execute


@opcode("SHF", "USHF")
def funnel_shift(instruction):
    modifiers, target = instruction.modifiers, instruction.operands[0]
    read_low, read_count, read_high = (reader_u32(source) for source in instruction.operands[1:4])
    store, wrap = writer_u32(target), 31 if "W" in modifiers else None
    left, high_half = modifiers[0] == "L", "HI" in modifiers
    is_64, signed = "U64" in modifiers or "S64" in modifiers, "S32" in modifiers or "S64" in modifiers

    def execute(m, i):
        count = np.asarray(read_count(m, i)).astype(np.uint64)
        count = count & np.uint64(63 if is_64 else 31) if wrap else np.minimum(count, 63 if is_64 else 32)
        low, high = read_low(m, i), read_high(m, i)
        value = np.asarray(low).astype(np.uint64) | np.asarray(high).astype(np.uint64) << np.uint64(32)
        if left:
            shifted = value << count
        elif signed:
            shifted = (np.asarray(value).view(np.int64) >> count.astype(np.int64)).view(np.uint64)
        else:
            shifted = value >> count
        # SHF.R.x32.HI shifts the high word; the 64-bit forms return the low word unless HI is given.
        part = shifted >> np.uint64(32) if high_half else shifted
        store(m, i, (part & MASK32).astype(np.uint32))

    return execute


@opcode("ISETP", "UISETP")
def compare_integers(instruction):
    compare, *rest = instruction.modifiers
    unsigned, extended = "U32" in rest, "EX" in rest
    first, second, a, b, *predicates = instruction.operands
    read_a, read_b = reader_u32(a), reader_u32(b)
    read_other = read_predicate(predicates[0])
    read_low = read_predicate(predicates[1]) if extended else None
    combine = combiner(rest)
    stores = write_predicate(first), write_predicate(second)

    def execute(m, i):
        x, y = read_a(m, i), read_b(m, i)
        if not unsigned:
            x, y = s32(x), s32(y)
        result = COMPARE[compare](x, y)
        if read_low is not None:
            low, equal = read_low(m, i), x == y
            if compare == "EQ":
                result = equal & low
            elif compare == "NE":
                result = ~equal | low
            else:
                result = np.where(equal, low, result)
        other = read_other(m, i)
        stores[0](m, i, combine(result, other))
        stores[1](m, i, combine(~np.asarray(result), other))

    return execute


COMPARE = {
    "LT": lambda x, y: x < y,
    "LE": lambda x, y: x <= y,
    "GT": lambda x, y: x > y,
    "GE": lambda x, y: x >= y,
    "EQ": lambda x, y: x == y,
    "NE": lambda x, y: (x != y) & ~(np.isnan(x) | np.isnan(y)),
    "LTU": lambda x, y: ~(x >= y),
    "LEU": lambda x, y: ~(x > y),
    "GTU": lambda x, y: ~(x <= y),
    "GEU": lambda x, y: ~(x < y),
    "EQU": lambda x, y: (x == y) | np.isnan(x) | np.isnan(y),
    "NEU": lambda x, y: x != y,
    "NAN": lambda x, y: np.isnan(x) | np.isnan(y),
    "NUM": lambda x, y: ~(np.isnan(x) | np.isnan(y)),
}


def combiner(modifiers: tuple[str, ...] | list[str]) -> Callable[[Array, Array], Array]:
    if "OR" in modifiers:
        return lambda a, b: a | b
    if "XOR" in modifiers:
        return lambda a, b: a ^ b
    return lambda a, b: a & b


@opcode("SEL", "USEL")
def select(instruction):
    return _select(instruction, reader_u32, writer_u32)


@opcode("FSEL")
def select_float(instruction):
    return _select(instruction, reader_f32, writer_f32)


def _select(instruction, read, write):
    target, a, b, predicate = instruction.operands
    store, read_a, read_b, chosen = write(target), read(a), read(b), read_predicate(predicate)
    return lambda m, i: store(m, i, np.where(chosen(m, i), read_a(m, i), read_b(m, i)))


@opcode("IMNMX", "VIMNMX", "UIMNMX")
def minimum_integer(instruction):
    cast = (lambda x: x) if "U32" in instruction.modifiers else s32
    target, a, b, predicate = instruction.operands[:4]
    store, read_a, read_b, smaller = writer_u32(target), reader_u32(a), reader_u32(b), read_predicate(predicate)
    relu = "RELU" in instruction.modifiers

    def execute(m, i):
        x, y = cast(read_a(m, i)), cast(read_b(m, i))
        value = np.where(smaller(m, i), np.minimum(x, y), np.maximum(x, y))
        store(m, i, (np.maximum(value, 0) if relu else value).astype(np.int64).astype(np.uint32))

    return execute


@opcode("VIADDMNMX")
def minimum_of_sum(instruction):
    """The minimum or maximum of a + b and c."""
    cast = (lambda x: x) if "U32" in instruction.modifiers else s32
    relu = "RELU" in instruction.modifiers
    target, a, b, c, predicate = instruction.operands[:5]
    store, smaller = writer_u32(target), read_predicate(predicate)
    read_a, read_b, read_c = reader_u32(a), reader_u32(b), reader_u32(c)

    def execute(m, i):
        x, y = cast(np.broadcast_to(read_a(m, i) + read_b(m, i), len(i))), cast(read_c(m, i))
        value = np.where(smaller(m, i), np.minimum(x, y), np.maximum(x, y))
        store(m, i, (np.maximum(value, 0) if relu else value).astype(np.int64).astype(np.uint32))

    return execute


@opcode("IABS")
def absolute_integer(instruction):
    return simple(instruction, lambda a: np.abs(s32(a)).view(np.uint32))


@opcode("POPC", "UPOPC")
def count_bits(instruction):
    return simple(instruction, lambda a: np.bitwise_count(a).astype(np.uint32))


@opcode("FLO", "UFLO")
def find_leading_one(instruction):
    def leading(a):
        bits = np.frexp(np.asarray(a).astype(np.float64))[1] - 1
        return np.where(np.asarray(a) == 0, 0xFFFFFFFF, bits).astype(np.uint32)

    return simple(instruction, leading)


@opcode("PRMT", "UPRMT")
def permute_bytes(instruction):
    def permute(a, selector, b):
        value = np.asarray(a).astype(np.uint64) | np.asarray(b).astype(np.uint64) << np.uint64(32)
        result = np.uint64(0)
        for byte in range(4):
            choice = np.asarray(selector).astype(np.uint64) >> np.uint64(4 * byte)
            picked = value >> (np.uint64(8) * (choice & np.uint64(7))) & np.uint64(0xFF)
            sign = np.where(picked >= 128, np.uint64(0xFF), np.uint64(0))
            result = result | np.where(choice & np.uint64(8), sign, picked) << np.uint64(8 * byte)
        return result.astype(np.uint32)

    return simple(instruction, permute)


@opcode("P2R")
def predicates_to_register(instruction):
    target, _, keep, mask = instruction.operands
    store, read_keep, bits = writer_u32(target), reader_u32(keep), np.uint32(mask.bits)

    def execute(m, i):
        value = np.zeros(len(i), np.uint32)
        for number in range(7):
            value |= m.predicates[number, i].astype(np.uint32) << np.uint32(number)
        store(m, i, (value & bits) | (read_keep(m, i) & ~bits))

    return execute


@opcode("R2P")
def register_to_predicates(instruction):
    _, source, mask = instruction.operands
    read = reader_u32(source)

    def execute(m, i):
        value = np.asarray(read(m, i))
        for number in range(7):
            if mask.bits >> number & 1:
                m.predicates[number, i] = (value >> np.uint32(number) & np.uint32(1)).astype(bool)

    return execute
