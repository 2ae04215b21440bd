"""Each inline PTX instruction becomes the expected machine instruction, with its operands in the right order.

The emulator replaces the functions of csrc/common/ptx.cuh, so it cannot find an error inside their PTX strings. Here,
each of them is compiled alone for every architecture (ptx_wrappers.cu). The test follows the parameters of the kernel
through the registers, up to the operands of the instruction.
"""

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.gpu_model.kernels import ROOT, compile_cubin, cuobjdump, nvcc
from benchmarks.gpu_model.sass import Function, Instruction, Operand, functions

HEADER = ROOT / "csrc/common/ptx.cuh"
FIRST_PARAMETER = {"80": 0x160, "86": 0x160, "89": 0x160, "90": 0x210, "100": 0x380, "120": 0x380}
"""For each architecture, the address of a kernel's first parameter in constant bank 0."""


@dataclass(frozen=True)
class Row:
    """What one inline PTX instruction must become.

    ``statement``: the function of ptx.cuh, and the PTX instruction. ``words``: the parameters of the kernel, one name
    for each 32 bits. ``code``: machine instructions that the kernel must contain in this order, without their target.
    The operands are separated by commas. An operand has one name for each of its registers: of the parameter that the
    register contains, "r0", "r1", ... for the results of the first instruction, or names joined by "|" if it depends on
    several of them. ``since``, ``until``: the first and the last architecture.
    """

    statement: str
    kernel: str
    words: str
    code: tuple[str, ...]
    since: int = 80
    until: int = 999


RESULTS = tuple(f"STG.E [out{offset}], r{i}" for i, offset in enumerate(("", "+0x4", "+0x8", "+0xc")))
MATRICES = "out out d0 d1 d2 d3 a0 a1 a2 a3 b0 b1"
OPERANDS = "a0 a1 a2 a3, b0 b1, d0 d1 d2 d3"
COPY = "global global shared_offset valid"

ROWS = [
    Row("opaque mov.b64", "opaque", "out out base base", ("STG.E.64 [out], base base",)),
    Row(
        "element mul.wide.u32",
        "element",
        "out out base base index stride",
        ("IMAD.WIDE.U32 index, stride, base base", "STG.E.64 [out], r0 r1"),
    ),
    Row(
        "store_shared st.shared.v4.f32",
        "store_shared",
        "shared_offset v0 v1 v2 v3",
        ("STS.128 [shared_offset], v0 v1 v2 v3",),
    ),
    Row(
        "cp_async cp.async.ca.shared.global",
        "cp_async_4",
        COPY,
        ("LDGSTS.E [shared_offset], [global], valid",),
    ),
    Row(
        "cp_async cp.async.ca.shared.global",
        "cp_async_8",
        COPY,
        ("LDGSTS.E.64 [shared_offset], [global], valid",),
    ),
    Row(
        "cp_async cp.async.cg.shared.global",
        "cp_async_16",
        COPY,
        ("LDGSTS.E.BYPASS.128 [shared_offset], [global], valid",),
    ),
    Row(
        "cp_async cp.async.cg.shared.global",
        "cp_async_distance",
        COPY,
        ("LDGSTS.E.BYPASS.128 [shared_offset+0x200], [global+0x200], valid",),
    ),
    Row("cp_async_commit cp.async.commit_group", "cp_async_commit", "", ("LDGDEPBAR",)),
    Row("cp_async_wait cp.async.wait_group", "cp_async_wait", "", ("DEPBAR.LE SB0, 0x3",)),
    Row(
        "ldmatrix_x4 ldmatrix.sync.aligned.m8n8.x4.shared.b16",
        "ldmatrix",
        "out out shared_offset",
        ("LDSM.16.M88.4 [shared_offset]", *RESULTS),
    ),
    Row(
        "ldmatrix_x4 ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16",
        "ldmatrix_transposed",
        "out out shared_offset",
        ("LDSM.16.MT88.4 [shared_offset]", *RESULTS),
    ),
    Row(
        "mma_m16n8k16 mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
        "mma_half",
        MATRICES,
        (f"HMMA.16816.F32 {OPERANDS}", *RESULTS),
    ),
    Row(
        "mma_m16n8k16 mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
        "mma_bfloat16",
        MATRICES,
        (f"HMMA.16816.F32.BF16 {OPERANDS}", *RESULTS),
    ),
    Row(
        "mma_m16n8k8_tf32 mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32",
        "mma_tf32",
        MATRICES,
        (f"HMMA.1688.F32.TF32 {OPERANDS}", *RESULTS),
    ),
    # Rounding: the mantissa's last 13 bits are cleared.
    Row("to_tf32 cvt.rna.tf32.f32", "to_tf32", "out out x", ("LOP3.LUT x, 0xffffe000", RESULTS[0])),
    Row("fast_exp2 ex2.approx.ftz.f32", "fast_exp2", "out out x", ("MUFU.EX2 x", RESULTS[0])),
    Row("fast_reciprocal rcp.approx.ftz.f32", "fast_reciprocal", "out out x", ("MUFU.RCP x", RESULTS[0])),
    Row(
        "atomic_add_x4 red.global.add.v4.f32",
        "atomic_add_x4",
        "to to v0 v1 v2 v3",
        ("REDG.E.ADD.F32x4.FTZ.RN.STRONG.GPU [to], v0 v1 v2 v3",),
        since=90,
    ),
    Row(
        "atomic_add_x4 red.global.add.v4.f32",
        "atomic_add_x4",
        "to to v0 v1 v2 v3",
        tuple(
            f"RED.E.ADD.F32.FTZ.RN.STRONG.GPU [to{offset}], v{i}"
            for i, offset in enumerate(("", "+0x4", "+0x8", "+0xc"))
        ),
        until=89,
    ),
    Row("cluster_rank mov.u32", "cluster_rank", "out out", ("S2R SR_CgaCtaId", RESULTS[0]), since=90),
    # The number of blocks is a constant on sm_90, and behind an address that a special register gives later.
    Row("cluster_size mov.u32", "cluster_size", "out out", ("STG.E [out], c[0x0][0x188]",), since=90, until=90),
    Row("cluster_size mov.u32", "cluster_size", "out out", ("CS2R.32 SR_CgaSize", RESULTS[0]), since=100),
    # The barrier is preceded by a fence (release), and followed by the invalidation of the L1 cache (acquire).
    Row(
        "cluster_arrive barrier.cluster.arrive.release.aligned",
        "cluster_arrive",
        "",
        ("MEMBAR.ALL.GPU", "UCGABAR_ARV"),
        since=90,
    ),
    Row(
        "cluster_wait barrier.cluster.wait.acquire.aligned",
        "cluster_wait",
        "",
        ("UCGABAR_WAIT", "CCTL.IVALL"),
        since=90,
    ),
    # The block's number replaces the highest byte of the address.
    Row(
        "map_shared mapa.u64",
        "map_shared",
        "out out shared_offset rank",
        ("PRMT rank, 0x654, shared_offset", "STG.E.64 [out], r0 shared_offset"),
        since=90,
    ),
    Row("wait_for_previous_launch griddepcontrol.wait", "wait_for_previous_launch", "", ("ACQBULK",), since=90),
    Row("start_next_launch griddepcontrol.launch_dependents", "start_next_launch", "", ("PREEXIT",), since=90),
]


class Registers:
    """What the registers contain while one goes through the instructions of a kernel without branches.

    A register is a set of names: of the parameters that its value depends on, or of constants and special registers if
    it depends on no parameter.
    """

    def __init__(self, words: list[str], first_parameter: int) -> None:
        self._words = {first_parameter + 4 * i: name for i, name in enumerate(words)}
        self._content: dict[tuple, frozenset[str]] = defaultdict(frozenset)

    def names(self, operand: Operand, offset: int = 0) -> frozenset[str]:
        """The names in an operand, or in the register `offset` places after it."""
        if operand.kind in ("register", "predicate"):
            return self._content[operand.kind, operand.uniform, operand.number + offset]
        if operand.kind == "constant":
            address = sum(int(term.value) for term in operand.terms) + 4 * offset
            own = self._words.get(address, operand.text)
            return frozenset().union(*map(self.names, operand.terms)) or frozenset([own])
        if operand.kind == "memory":
            pairs = [(term, place) for term in operand.terms for place in range(2 if "64" in term.suffixes else 1)]
            return frozenset().union(*(self.names(term, place) for term, place in pairs))
        return frozenset([operand.text] if operand.kind == "name" else [])

    def text(self, operand: Operand, count: int) -> str:
        """An operand that consists of `count` registers, in the notation of `Row.code`."""
        if operand.kind == "immediate" or operand.text.startswith("SB"):
            return operand.text
        texts = ["|".join(sorted(self._parameters(self.names(operand, place)))) for place in range(count)]
        if operand.kind == "memory":
            displacement = sum(int(term.value) for term in operand.terms)
            return f"[{texts[0]}{f'+{displacement:#x}' if displacement else ''}]"
        return " ".join(texts)

    def _parameters(self, names: frozenset[str]) -> frozenset[str]:
        parameters = names & {*self._words.values(), "r0", "r1", "r2", "r3"}
        return parameters or names

    def execute(self, instruction: Instruction, is_checked: bool) -> None:
        """Write the targets of an instruction. The results of the checked instruction are named "r0", "r1", ..."""
        targets = [operand for operand in instruction.operands[:1] if operand.kind in ("register", "predicate")]
        sources = list(instruction.operands[len(targets) :])
        while targets and sources and sources[0].kind == "predicate":  # a second target: a predicate, or the carry
            targets.append(sources.pop(0))
        wide = {"WIDE", "64"} & set(instruction.modifiers)
        count = 4 if instruction.opcode in ("HMMA", "LDSM") else 2 if wide else 1
        guard = [instruction.predicate] if instruction.predicate else []
        content = []
        for place in range(count):
            if is_checked:
                names = frozenset([f"r{place}"])
            elif instruction.opcode in ("LDC", "ULDC", "LDCU", "MOV"):
                names = self.names(sources[0], place)
            else:
                read = [self.names(operand, i) for operand in [*sources, *guard] for i in range(count)]
                names = frozenset().union(*read, *(self.names(target) for target in targets if guard))
            content.append(names)
        for target in targets:
            for place, names in enumerate(content if target.kind == "register" else content[:1]):
                if target.number + place not in (7, 255)[target.kind == "register" :]:  # PT and RZ stay constant
                    self._content[target.kind, target.uniform, target.number + place] = names


def missing_code(row: Row, function: Function, first_parameter: int) -> tuple[str, ...]:
    """The instructions of `row.code` from the first one on that the kernel does not contain."""
    registers, expected = Registers(row.words.split(), first_parameter), list(row.code)
    first_name = row.code[0].partition(" ")[0]
    for instruction in function.instructions:
        name = ".".join((instruction.opcode, *instruction.modifiers))
        if expected and name == expected[0].partition(" ")[0]:
            wanted = [part for part in expected[0].partition(" ")[2].split(", ") if part]
            is_target = instruction.operands and instruction.operands[0].kind == "register"
            sources = instruction.operands[1 if is_target else 0 :]
            found = [registers.text(o, len(w.split())) for o, w in zip(sources, wanted, strict=False)]
            if found == wanted:
                expected.pop(0)
        registers.execute(instruction, name == first_name and not name.startswith("STG"))
    return tuple(expected)


def inline_statements(text: str) -> set[str]:
    """The inline PTX instructions of a header, each with the function that contains it."""
    found, function = set(), ""
    for name, ptx in re.findall(r'GPU_DEVICE [^;{]*?(\w+)\([^;{]*\) \{|\basm(?:\s+volatile)?\s*\(\s*"([^" ;]+)', text):
        function = name or function
        if ptx:
            found.add(f"{function} {ptx}")
    return found


def test_every_inline_instruction_has_a_row():
    assert inline_statements(HEADER.read_text()) == {row.statement for row in ROWS}
    others = [path for path in ROOT.glob("csrc/**/*.cu*") if path != HEADER]
    assert others and not [path for path in others if re.search(r"\basm\b\s*(volatile)?\s*\(", path.read_text())]


@pytest.mark.skipif(nvcc() is None or cuobjdump() is None, reason="no nvcc, or no cuobjdump")
@pytest.mark.parametrize(
    "architecture", [pytest.param(name, marks=[] if name == "90" else pytest.mark.long) for name in FIRST_PARAMETER]
)
def test_inline_instructions_become_the_expected_machine_code(architecture, tmp_path):
    source = Path(__file__).parent / "ptx_wrappers.cu"
    compiled = functions(compile_cubin(source, tmp_path, architecture=architecture), cuobjdump())
    own = {name for name in compiled if "architecture_probe" not in name}  # that one is in every source file
    assert own == {f"{row.kernel}_kernel" for row in ROWS}
    for row in ROWS:
        if row.since <= int(architecture) <= row.until:
            function = compiled[f"{row.kernel}_kernel"]
            listing = "\n".join(instruction.text for instruction in function.instructions)
            assert missing_code(row, function, FIRST_PARAMETER[architecture]) == (), f"{row.kernel}:\n{listing}"


def test_all_architectures_are_tested():
    from backend import ARCHITECTURES

    assert list(FIRST_PARAMETER) == re.findall(r"\d+", ARCHITECTURES.replace(".", ""))
