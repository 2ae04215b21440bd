"""The meaning of the machine instructions that access memory or exchange values between the lanes of a warp."""

import numpy as np

from benchmarks.gpu_model.instructions import opcode
from benchmarks.gpu_model.operands import (
    Array,
    UnsupportedCode,
    read_predicate,
    reader_address,
    reader_u32,
    write_predicate,
    writer_u32,
)
from benchmarks.gpu_model.sass import ZERO, Instruction, Operand

WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}
GLOBAL, SHARED, LOCAL = "global", "shared", "local"
SHARED_WINDOW = 1 << 55
"""Where the shared memory of the blocks of a cluster begins among the generic addresses; far above the process's."""


def width_of(instruction: Instruction) -> int:
    """The bytes that a lane reads or writes."""
    if "F32x4" in instruction.modifiers:
        return 16
    if "F32x2" in instruction.modifiers or "F64" in instruction.modifiers:
        return 8
    return next((WIDTHS[modifier] for modifier in instruction.modifiers if modifier in WIDTHS), 4)


def _part(operand: Operand, part: int) -> Operand:
    return Operand("register", operand.text, operand.number + (part if operand.number != ZERO else 0), operand.uniform)


@opcode("LDG", "LD", "LDS")
def load(instruction):
    default_space = SHARED if instruction.opcode == "LDS" else GLOBAL
    target, address = [operand for operand in instruction.operands if operand.kind != "predicate"][:2]
    read_address, width = reader_address(address), width_of(instruction)
    stores = [writer_u32(_part(target, part)) for part in range(max(1, width // 4))]
    signed = {1: np.int8, 2: np.int16}.get(width) if {"S8", "S16"} & set(instruction.modifiers) else None

    def execute(m, i):
        addresses, space = resolve(instruction, read_address(m, i), default_space)
        m.record(instruction, space, i, addresses, width)
        memory = m.memory if space == GLOBAL else m.shared
        if width < 4:
            value = memory.read_narrow(i, addresses, width)
            stores[0](m, i, value.view(signed).astype(np.int32).view(np.uint32) if signed else value.astype(np.uint32))
            return
        words = [memory.read(i, addresses + 4 * part) for part in range(len(stores))]
        for store, word in zip(stores, words, strict=True):
            store(m, i, word)

    return execute


def resolve(instruction: Instruction, addresses: Array, space: str) -> tuple[Array, str]:
    """The addresses in a memory space. Generic addresses above SHARED_WINDOW are shared memory of the cluster."""
    is_generic = instruction.opcode in ("LD", "ST")
    if is_generic and len(addresses) and (addresses >= SHARED_WINDOW).all():
        return addresses - SHARED_WINDOW, SHARED
    return addresses, space


@opcode("STG", "ST", "STS")
def store(instruction):
    default_space = SHARED if instruction.opcode == "STS" else GLOBAL
    address, source = instruction.operands[:2]
    read_address, width = reader_address(address), width_of(instruction)
    readers = [reader_u32(_part(source, part)) for part in range(max(1, width // 4))]

    def execute(m, i):
        addresses, space = resolve(instruction, read_address(m, i), default_space)
        m.record(instruction, space, i, addresses, width)
        memory = m.memory if space == GLOBAL else m.shared
        if width < 4:
            return memory.write_narrow(i, addresses, readers[0](m, i), width)
        for part, reader in enumerate(readers):
            memory.write(i, addresses + 4 * part, reader(m, i))

    return execute


@opcode("LDL", "STL")
def access_local(instruction):
    """Loads from and stores to the stack of a thread, one word after the other."""
    loads = instruction.opcode == "LDL"
    register, address = instruction.operands[:2] if loads else instruction.operands[1::-1]
    read_address, width = reader_address(address), width_of(instruction)
    if {"S8", "S16"} & set(instruction.modifiers):
        raise UnsupportedCode(f"instruction {instruction.text}")
    parts, piece = range(max(1, width // 4)), min(width, 4)
    readers, writers = [[make(_part(register, part)) for part in parts] for make in (reader_u32, writer_u32)]

    def execute(m, i):
        addresses = read_address(m, i)
        for part in parts:
            places = m.local.interleaved(i, addresses + 4 * part)
            m.record(instruction, LOCAL, i, places, piece)
            if loads:
                writers[part](m, i, m.local.read(places, piece).astype(np.uint32))
            else:
                m.local.write(places, readers[part](m, i), piece)

    return execute


@opcode("REDG", "RED", "ATOMS", "ATOMG")
def reduce(instruction):
    """Atomic operations whose result is not used."""
    space = SHARED if instruction.opcode == "ATOMS" else GLOBAL
    operands = list(instruction.operands)
    if operands[0].kind == "predicate":  # ATOMG PT, R0, [R2], R4
        operands.pop(0)
    if operands[0].kind == "register":
        if operands[0].number != ZERO:
            raise UnsupportedCode(f"instruction {instruction.text}")
        operands.pop(0)
    read_address, width, modifiers = reader_address(operands[0]), width_of(instruction), instruction.modifiers
    double = "F64" in modifiers
    parts = 1 if double else width // 4
    readers = [reader_u32(_part(operands[1], part)) for part in range(2 if double else parts)]
    dtype = np.float64 if double else np.float32 if any(x.startswith("F32") for x in modifiers) else np.int32
    update = np.add if "ADD" in modifiers else np.maximum if "MAX" in modifiers else np.minimum

    def execute(m, i):
        addresses = read_address(m, i)
        m.record(instruction, space, i, addresses, width)
        memory = m.memory if space == GLOBAL else m.shared
        words = [np.broadcast_to(reader(m, i), len(i)) for reader in readers]
        if double:
            return memory.update(i, addresses, np.stack(words, 1).copy().view(np.float64)[:, 0], update)
        for part, word in enumerate(words):
            memory.update(i, addresses + 4 * part, word.copy().view(dtype), update)

    return execute


@opcode("LDC", "ULDC")
def load_constant(instruction):
    target, source = instruction.operands
    read_address, width = reader_address(source), width_of(instruction)
    stores = [writer_u32(_part(target, part)) for part in range(max(1, width // 4))]

    def execute(m, i):
        addresses = read_address(m, i)
        if width < 4:
            word = m.constants(source.number, addresses & ~3)
            return stores[0](m, i, word >> (addresses % 4 * 8).astype(np.uint32) & np.uint32(2 ** (8 * width) - 1))
        for part, write in enumerate(stores):
            write(m, i, m.constants(source.number, addresses + 4 * part))

    return execute


@opcode("S2R", "S2UR", "CS2UR")
def special_register(instruction):
    target, name = instruction.operands
    write = writer_u32(target)
    return lambda m, i: write(m, i, m.special_register(name.text, i))


@opcode("R2UR")
def to_uniform(instruction):
    target, source = [operand for operand in instruction.operands if operand.kind == "register"]
    write, read = writer_u32(target), reader_u32(source)
    return lambda m, i: write(m, i, read(m, i))


@opcode("SHFL")
def shuffle(instruction):
    mode = instruction.modifiers[0]
    flag, target, value, distance, control = instruction.operands
    write, write_flag = writer_u32(target), write_predicate(flag)
    read_value, read_distance, read_control = reader_u32(value), reader_u32(distance), reader_u32(control)

    def execute(m, i):
        lane = i % 32
        step = np.asarray(read_distance(m, i)).astype(np.int64) & 31
        bits = np.asarray(read_control(m, i)).astype(np.int64)
        segment, clamp = bits >> 8 & 31, bits & 31
        first = lane & segment
        last = first | (clamp & ~segment)
        source = {
            "IDX": first | (step & ~segment),
            "BFLY": lane ^ step,
            "DOWN": lane + step,
            "UP": lane - step,
        }[mode]
        inside = source >= last if mode == "UP" else source <= last
        source = np.where(inside, source, lane)
        own = np.zeros(m.threads, np.uint32)
        own[i] = read_value(m, i)
        present = np.zeros(m.threads, bool)
        present[i] = True
        origin = i - lane + source
        if not present[origin].all():
            raise RuntimeError(f"{instruction.text}: a lane reads from a lane that does not take part")
        write(m, i, own[origin])
        write_flag(m, i, inside)

    return execute


@opcode("VOTE", "VOTEU")
def vote(instruction):
    operands = list(instruction.operands)
    target = operands.pop(0) if operands[0].kind == "register" else None
    flag, source = (operands[0], operands[1]) if len(operands) > 1 else (None, operands[0])
    read, mode = read_predicate(source), instruction.modifiers[0]

    def execute(m, i):
        votes = np.zeros(m.threads, bool)
        votes[i] = read(m, i)
        active = np.zeros(m.threads, bool)
        active[i] = True
        weights = np.uint64(1) << np.arange(32, dtype=np.uint64)
        rows, present = votes.reshape(-1, 32), active.reshape(-1, 32)
        masks = ((rows & present) * weights).sum(1).astype(np.uint32)
        if target is not None:
            writer_u32(target)(m, i, masks[i // 32])
        if flag is not None:
            result = (rows & present).any(1) if mode == "ANY" else (rows | ~present).all(1)
            write_predicate(flag)(m, i, result[i // 32])

    return execute


@opcode("MATCH")
def match(instruction):
    """For each lane, the lanes of its warp that have the same value."""
    target, source = instruction.operands
    if instruction.modifiers != ("ANY",):
        raise UnsupportedCode(f"instruction {instruction.text}")
    write, read = writer_u32(target), reader_u32(source)

    def execute(m, i):
        pairs = np.stack([i // 32, np.broadcast_to(read(m, i), len(i)).astype(np.int64)])
        _, groups = np.unique(pairs, axis=1, return_inverse=True)
        groups = groups.reshape(-1)
        masks = np.zeros(groups.max() + 1, np.uint32)
        np.bitwise_or.at(masks, groups, np.uint32(1) << (i % 32).astype(np.uint32))
        write(m, i, masks[groups])

    return execute


@opcode("REDUX")
def reduce_warp(instruction):
    target, source = instruction.operands
    write, read = writer_u32(target), reader_u32(source)
    mode, signed = instruction.modifiers[0], "S32" in instruction.modifiers

    def execute(m, i):
        value = np.asarray(read(m, i))
        value = value.view(np.int32) if signed else value
        update = {"MAX": np.maximum, "MIN": np.minimum, "SUM": np.add, "OR": np.bitwise_or}[mode]
        starts = np.flatnonzero(np.diff(i // 32, prepend=-1))
        sizes = np.diff(np.append(starts, len(i)))
        write(m, i, np.repeat(update.reduceat(value, starts), sizes).view(np.uint32))

    return execute


# --- asynchronous copies and matrices --------------------------------------------------------------------------------


@opcode("LDGSTS")
def copy_to_shared(instruction):
    """cp.async: the copy is carried out at once. The predicate is false for lanes that write zeros."""
    to, source, *valid = instruction.operands
    read_to, read_from, width = reader_address(to), reader_address(source), width_of(instruction)
    read_valid = read_predicate(valid[0]) if valid else lambda m, i: np.bool_(True)

    def execute(m, i):
        targets, origins = read_to(m, i), read_from(m, i)
        chosen = np.broadcast_to(read_valid(m, i), len(i))
        m.record(instruction, GLOBAL, i[chosen], origins[chosen], width)
        m.record(instruction, SHARED, i, targets, width)
        for part in range(width // 4):
            words = np.zeros(len(i), np.uint32)
            words[chosen] = m.memory.read(i[chosen], origins[chosen] + 4 * part)
            m.shared.write(i, targets + 4 * part, words)

    return execute


@opcode("LDSM")
def load_matrices(instruction):
    """ldmatrix: lane 8 * k + r gives the address of row r of matrix k."""
    target, source = instruction.operands
    if instruction.modifiers != ("16", "M88", "4"):
        raise UnsupportedCode(f"instruction {instruction.text}")
    read_address, stores = reader_address(source), [writer_u32(_part(target, part)) for part in range(4)]

    def execute(m, i):
        addresses = read_address(m, i)
        m.record(instruction, SHARED, i, addresses, 16)
        rows, lane = addresses.reshape(-1, 32), np.arange(32)
        for matrix, write in enumerate(stores):
            origin = rows[:, 8 * matrix + lane // 4] + lane % 4 * 4
            write(m, i, m.shared.read(i, origin.reshape(-1)))

    return execute


@opcode("HMMA")
def multiply_matrices(instruction):
    """mma.sync m16n8k16 of halves or bfloat16, and m16n8k8 of tf32, with sums in float32."""
    modifiers = instruction.modifiers
    target, a, b, c = instruction.operands
    tf32, brain = "TF32" in modifiers, "BF16" in modifiers
    if "F32" not in modifiers or modifiers[0] not in ("16816", "1688") or (modifiers[0] == "1688" and not tf32):
        raise UnsupportedCode(f"instruction {instruction.text}")
    read_a = [reader_u32(_part(a, part)) for part in range(4)]
    read_b = [reader_u32(_part(b, part)) for part in range(2)]
    read_c = [reader_u32(_part(c, part)) for part in range(4)]
    stores = [writer_u32(_part(target, part)) for part in range(4)]
    lane = np.arange(32)
    group, thread = lane // 4, lane % 4

    def elements(word):
        """The values in a register [warps, 32]: one of tf32, or two halves."""
        if tf32:
            return [(word & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)]
        halves = [(word >> np.uint32(shift)).astype(np.uint16) for shift in (0, 16)]
        if brain:
            return [(half.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64) for half in halves]
        return [half.view(np.float16).astype(np.float64) for half in halves]

    def execute(m, i):
        if len(i) % 32 or (i.reshape(-1, 32) % 32 != lane).any():
            raise RuntimeError(f"{instruction.text}: not all lanes of the warp take part")
        warps, count = len(i) // 32, 1 if tf32 else 2
        k = 8 if tf32 else 16
        left, right = np.zeros((warps, 16, k)), np.zeros((warps, k, 8))
        for part, read in enumerate(read_a):
            for offset, value in enumerate(elements(np.broadcast_to(read(m, i), len(i)).reshape(-1, 32))):
                left[:, group + part % 2 * 8, thread * count + offset + part // 2 * (k // 2)] = value
        for part, read in enumerate(read_b):
            for offset, value in enumerate(elements(np.broadcast_to(read(m, i), len(i)).reshape(-1, 32))):
                right[:, thread * count + offset + part * (k // 2), group] = value
        product = left @ right
        for part, (read, write) in enumerate(zip(read_c, stores, strict=True)):
            start = np.broadcast_to(read(m, i), len(i)).copy().view(np.float32).reshape(-1, 32)
            total = product[:, group + part // 2 * 8, thread * 2 + part % 2] + start
            write(m, i, total.astype(np.float32).reshape(-1).view(np.uint32))

    return execute
