"""Parses the machine code (SASS) that ``cuobjdump -sass`` prints."""

import re
import struct
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;\s*/\* 0x([0-9a-f]{16}) \*/")
SECOND_LINE = re.compile(r"^\s+/\* 0x([0-9a-f]{16}) \*/")
REGISTER = re.compile(r"^(U?)R(\d+|Z)$")
PREDICATE = re.compile(r"^(U?)P(\d|T)$")
MEMORY = re.compile(r"^(?:desc\[UR\d+\])?\[(.*)\]$")
CONSTANT = re.compile(r"^c\[(0x[0-9a-f]+)\]\[(.*)\]$")

ZERO, TRUE = 255, 7
"""The numbers of the registers RZ (and URZ) and PT (and UPT)."""


@dataclass(frozen=True)
class Operand:
    """One operand of an instruction.

    ``kind`` is "register", "predicate", "immediate", "constant", "memory" or "name". ``number`` is the number of the
    register or predicate, or the bank of a constant. ``terms`` are the summands of an address.
    """

    kind: str
    text: str
    number: int = 0
    uniform: bool = False
    negative: bool = False
    absolute: bool = False
    inverted: bool = False
    suffixes: tuple[str, ...] = ()
    value: float = 0
    bits: int = 0
    terms: "tuple[Operand, ...]" = ()


@dataclass(frozen=True)
class Instruction:
    """One machine instruction. ``stall``, ``wait``, ``write_barrier`` and ``read_barrier`` are its control fields:
    the cycles until the warp may issue its next instruction, the mask of scoreboards that it waits for, and the
    scoreboards (0 to 5, or 7 for none) that it releases when its result is written or its operands are read."""

    index: int
    address: int
    text: str
    opcode: str
    modifiers: tuple[str, ...]
    predicate: Operand | None
    operands: tuple[Operand, ...]
    stall: int
    wait: int
    write_barrier: int
    read_barrier: int


@dataclass
class Function:
    """The machine code of one kernel."""

    name: str
    instructions: list[Instruction] = field(default_factory=list)

    def at(self, address: int) -> int:
        """The index of the instruction at an address."""
        return address // 16


def functions(cubin: Path, cuobjdump: dict) -> dict[str, Function]:
    """The kernels of a cubin, by mangled name. ``cuobjdump``: arguments for subprocess.run (tests/cuda_tools.py)."""
    done = subprocess.run(["cuobjdump", "-sass", cubin], capture_output=True, text=True, check=True, **cuobjdump)
    return parse(done.stdout)


def parse(listing: str) -> dict[str, Function]:
    """The kernels in the output of ``cuobjdump -sass``, by mangled name."""
    found = {}
    for part in listing.split("Function : ")[1:]:
        name, _, body = part.partition("\n")
        function, pending = Function(name.strip()), None
        for line in body.splitlines():
            if (match := LINE.match(line)) is not None:
                pending = match.groups()
            elif pending is not None and (match := SECOND_LINE.match(line)) is not None:
                address, text, _ = pending
                function.instructions.append(
                    instruction(len(function.instructions), int(address, 16), text, int(match[1], 16))
                )
                pending = None
        found[function.name] = function
    return found


def instruction(index: int, address: int, text: str, high: int) -> Instruction:
    """Parse the text of an instruction; ``high`` is the upper half of its encoding."""
    predicate = None
    rest = text
    if rest.startswith("@"):
        guard, _, rest = rest.partition(" ")
        predicate = operand(guard[1:])
    name, _, arguments = rest.strip().partition(" ")
    opcode, *modifiers = name.split(".")
    operands = tuple(operand(part) for part in split(arguments)) if arguments else ()
    return Instruction(
        index,
        address,
        text,
        opcode,
        tuple(modifiers),
        predicate,
        operands,
        stall=high >> 41 & 15,
        wait=high >> 52 & 63,
        write_barrier=high >> 46 & 7,
        read_barrier=high >> 49 & 7,
    )


def split(arguments: str) -> list[str]:
    """The operands of an instruction: separated by commas, or by a space before an address (RET.REL R2 0x0)."""
    parts = [part.strip() for part in arguments.split(",")]
    return [piece for part in parts for piece in re.split(r"\s+(?=[0-9`(])", part) if piece]


def operand(text: str) -> Operand:
    """Parse one operand."""
    body, negative, absolute, inverted = text, False, False, False
    number = re.fullmatch(r"[-+]?(0x[0-9a-f]+|[0-9.]+(e[-+]?[0-9]+)?|INF|QNAN|SNAN)", body)
    if number is not None:
        return immediate(text)
    while body[:1] in "-~!|+":
        negative |= body[0] == "-"
        absolute |= body[0] == "|"
        inverted |= body[0] in "~!"
        body = body[1:]
    body = body.replace("|", "")
    common = {"negative": negative, "absolute": absolute, "inverted": inverted}
    if (match := CONSTANT.match(body)) is not None:
        return Operand("constant", text, number=int(match[1], 16), terms=terms(match[2]), **common)
    if (match := MEMORY.match(body)) is not None:
        return Operand("memory", text, terms=terms(match[1]))
    name, *suffixes = body.split(".")
    suffixes = tuple(suffix for suffix in suffixes if suffix != "reuse")
    if (match := REGISTER.match(name)) is not None:
        number = ZERO if match[2] == "Z" else int(match[2])
        return Operand("register", text, number, bool(match[1]), suffixes=suffixes, **common)
    if (match := PREDICATE.match(name)) is not None:
        return Operand("predicate", text, TRUE if match[2] == "T" else int(match[2]), bool(match[1]), **common)
    return Operand("name", text, suffixes=suffixes)


def terms(text: str) -> tuple[Operand, ...]:
    """The summands of an address such as R2.64+UR4+-0x10."""
    return tuple(operand(part) for part in text.split("+") if part)


def immediate(text: str) -> Operand:
    """An integer (hexadecimal) or a floating-point number."""
    if "0x" in text:
        value = int(text, 16)
        return Operand("immediate", text, value=value, bits=value & 0xFFFFFFFFFFFFFFFF)
    value = float(text.lower().replace("qnan", "nan").replace("snan", "nan"))
    try:
        bits = struct.unpack("<I", struct.pack("<f", value))[0]
    except OverflowError:
        bits = 0
    return Operand("immediate", text, value=value, bits=bits)
