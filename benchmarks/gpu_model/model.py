"""Computes the time of a kernel launch from what the interpreter counted, for each resource of the device.

The prediction is the time of the slowest resource, divided by EFFICIENCY. Nothing is added for the start of a launch,
because in a captured network it overlaps with the end of the previous launch. Constants that NVIDIA documents are taken
from there; the others are assumptions, to be fitted to a measurement. docs/performance_model.md lists them.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from benchmarks.gpu_model import transactions
from benchmarks.gpu_model.kernels import Execution
from benchmarks.gpu_model.memory_instructions import GLOBAL, SHARED
from benchmarks.gpu_model.sass import Instruction

EFFICIENCY = 0.9
"""The part of a resource's peak rate that a kernel reaches if this resource is the bottleneck (assumed)."""
SUB_CORES = 4
LATENCY = {
    "global": 500,
    "shared": 30,
    "special": 20,
    "constant": 40,
    "barrier": 20,
    "matrix": 33,
    "cluster": 200,
    "fence": 300,
}
"""Cycles until a result of variable latency is there (assumed). Global memory: between an L2 hit and a miss. Cluster: a
load from the shared memory of another block, and a barrier of the cluster, which also takes a fence."""


@dataclass(frozen=True)
class Device:
    """A GPU. Rates are per second, or per cycle and multiprocessor."""

    name: str
    multiprocessors: int = 132
    clock: float = 1.83e9  # hertz, under load
    copy_rate: float = 3.0e12  # bytes/s of a large copy, reads and writes together
    l2_rate: float = 5.5e12  # bytes/s from the L2 cache to the L1 caches
    reduction_rate: float = 0.1625e12  # sectors/s of atomic float additions in the L2 cache: 1.3e12 floats/s
    registers: int = 65536
    shared_bytes: int = 227 * 1024
    max_threads: int = 2048
    max_blocks: int = 32


H100 = Device("H100")
H200 = Device("H200", copy_rate=4.3e12)

_INTEGER = "LOP3 SHF IADD3 ISETP LEA SEL PRMT VIMNMX VIADDMNMX IMNMX FMNMX FSETP FSEL PLOP3 VIADD IABS MOV"
# The cycles that an instruction of a warp occupies its execution unit in a sub-core.
_UNITS = {
    "special": (8, ("MUFU",)),
    "conversion": (2, ("F2I", "I2F", "F2F", "POPC", "FLO", "I2FP", "F2FP")),
    "integer": (2, tuple(_INTEGER.split())),
    "multiply-add": (1, ("FFMA", "FMUL", "FADD", "IMAD", "HFMA2", "HADD2", "HMUL2")),
    "double": (2, ("DFMA", "DADD", "DMUL", "DSETP")),
    # 2048 multiply-adds in halves, or 1024 in tf32, which run at half the rate: 4 cycles at the peak rate of sm_90, of
    # which mma.sync reaches 63 % (Luo et al., arXiv:2402.13499).
    "matrix": (6.4, ("HMMA",)),
}
UNIT_OF = {opcode: unit for unit, (_, opcodes) in _UNITS.items() for opcode in opcodes}
UNIT_CYCLES = {unit: cycles for unit, (cycles, _) in _UNITS.items()}


@dataclass
class Counts:
    """What the simulated blocks of a launch did, per block.

    ``issue``: instructions issued in each of the four sub-cores. ``units``: busy cycles of each execution unit, in the
    busiest sub-core. ``opcodes``: instructions of all warps by opcode. ``wavefronts``: cycles of the L1 data path.
    ``read_bytes``: unique bytes of sectors that a block reads from global memory. ``reductions``: transactions of
    atomic additions. ``latency``: cycles from the start to the end of the block if it runs alone. ``overlapped``: the
    first part of these cycles, if they overlap with the previous launch.
    """

    issue: np.ndarray
    units: dict[str, float]
    opcodes: Counter
    wavefronts: float
    read_bytes: float
    written_bytes: float
    reductions: transactions.Transactions
    latency: float
    overlapped: float
    blocks: int
    resident_blocks: int
    registers: int

    @property
    def imbalance(self) -> float:
        """Instructions of the busiest sub-core divided by the mean."""
        return float(self.issue.max() / self.issue.mean())


def count(execution: Execution, device: Device = H200) -> Counts:
    """Count what one launch did."""
    launch, record, instructions = execution.launch, execution.record, execution.kernel.function.instructions
    simulated, lanes, warps = len(execution.blocks), launch.lanes, launch.warps
    issued = record.issued.reshape(len(instructions), simulated, warps).sum(1) / simulated
    by_core = np.zeros((len(instructions), SUB_CORES))
    for warp in range(warps):
        by_core[:, warp % SUB_CORES] += issued[:, warp]
    if warps % SUB_CORES:  # successive blocks begin at different sub-cores
        by_core[:] = issued.sum(1, keepdims=True) / SUB_CORES
    opcodes: Counter = Counter()
    units = {unit: np.zeros(SUB_CORES) for unit in _UNITS}
    for instruction, cores in zip(instructions, by_core, strict=True):
        if cores.any():
            opcodes[instruction.opcode] += cores.sum()
            unit = UNIT_OF.get(instruction.opcode)
            if unit is not None:
                units[unit] += cores * UNIT_CYCLES[unit]
    wavefronts, reductions = 0, transactions.Transactions()
    for access in record.accesses:
        counted = transactions.count(access)
        if access.space == GLOBAL and access.instruction.opcode in transactions.REDUCTIONS:
            reductions = reductions + counted
        else:
            wavefronts += counted.wavefronts
    sector = transactions.SECTOR_BYTES
    times = [timeline(execution, warp) for warp in range(warps)]
    return Counts(
        issue=by_core.sum(0),
        units={unit: float(cores.max()) for unit, cores in units.items()},
        opcodes=opcodes,
        wavefronts=wavefronts / simulated,
        read_bytes=transactions.unique_sectors(record.accesses, lanes) * sector / simulated,
        written_bytes=transactions.written_sectors(record.accesses, lanes) * sector / simulated,
        reductions=transactions.Transactions(
            *(value // simulated for value in (reductions.requests, reductions.wavefronts)),
            reductions.sectors // simulated,
            reductions.full_sectors // simulated,
        ),
        latency=max(total for total, _ in times),
        overlapped=max(early for _, early in times),
        blocks=launch.blocks,
        resident_blocks=resident_blocks(execution, device),
        registers=execution.kernel.registers,
    )


def resident_blocks(execution: Execution, device: Device) -> int:
    """Blocks of a launch that a multiprocessor runs at the same time."""
    launch, kernel = execution.launch, execution.kernel
    warps = launch.warps
    registers_per_warp = -(-kernel.registers * 32 // 256) * 256
    limits = [device.max_blocks, device.max_threads // launch.lanes]
    limits.append(device.registers // SUB_CORES // registers_per_warp * SUB_CORES // warps)
    shared = launch.shared_bytes + kernel.shared_bytes + 1024
    limits.append((device.shared_bytes + 1024) // shared)
    return max(1, min(limits))


def timeline(execution: Execution, warp: int) -> tuple[float, float]:
    """Cycles that one warp of the first simulated block needs if it runs alone, and those before it waits for the
    previous launch; 0 if the launch is not programmatic.

    Follows the control fields of the machine code: a warp issues an instruction `stall` cycles after the one before,
    and waits for the scoreboards that it names.
    """
    instructions = execution.kernel.function.instructions
    ready = np.zeros(8)
    time = early = 0.0
    for index, warps in execution.record.sequence:
        place = np.searchsorted(warps, warp)
        if place == len(warps) or warps[place] != warp:
            continue
        instruction = instructions[index]
        for number in range(6):
            if instruction.wait >> number & 1:
                time = max(time, ready[number])
        latency = LATENCY.get(_latency_class(instruction), 0)
        for number in (instruction.write_barrier, instruction.read_barrier):
            if number < 6:
                ready[number] = max(ready[number], time + (latency if number == instruction.write_barrier else 20))
        if instruction.opcode == "ACQBULK" and execution.launch.programmatic:
            early = time
        if instruction.opcode == "BAR":
            time += LATENCY["barrier"]
        if instruction.opcode == "UCGABAR_WAIT":
            time += LATENCY["cluster"]
        if instruction.opcode == "MEMBAR":
            time += LATENCY["fence"]
        if instruction.opcode == "DEPBAR":  # waits for asynchronous copies
            time += LATENCY["global"] / 4
        time += max(1, instruction.stall)
    return time, early


def _latency_class(instruction: Instruction) -> str:
    if instruction.opcode in ("LDG", "LDGSTS"):
        return GLOBAL
    if instruction.opcode == "LD":  # only our loads from other blocks use generic addresses
        return "cluster"
    if instruction.opcode in ("LDS", "LDSM", "LDL", "SHFL", "ATOMS", "REDUX", "VOTE"):
        return SHARED
    if instruction.opcode in ("LDC", "ULDC", "S2R", "S2UR", "R2UR"):
        return "constant"
    if instruction.opcode == "HMMA":
        return "matrix"
    return "special"


@dataclass
class Prediction:
    """The seconds that each resource needs for a launch."""

    device: Device
    bounds: dict[str, float]

    @property
    def bottleneck(self) -> str:
        """The slowest resource."""
        return max(self.bounds, key=self.bounds.__getitem__)

    @property
    def seconds(self) -> float:
        """The predicted time."""
        return max(self.bounds.values()) / EFFICIENCY


def predict(counts: Counts, device: Device, dram_bytes: float, *, overlaps: bool = True) -> Prediction:
    """The time of a launch on a device.

    Args:
        counts: what its blocks do.
        device: the device.
        dram_bytes: the bytes that device memory must move: every tensor once, or 0 if the L2 cache holds them.
        overlaps: whether a programmatic launch follows one that lets it start early.
    """
    per_processor = counts.blocks / device.multiprocessors
    waves = int(np.ceil(per_processor / counts.resident_blocks))
    # The busiest multiprocessor of a small grid has a whole number of blocks; in a large grid, the numbers even out.
    busy = np.ceil(per_processor) if waves == 1 else per_processor
    cycles = {
        "issue": counts.issue.max() * busy,
        "L1": counts.wavefronts * busy,
        "latency": counts.latency * waves - (counts.overlapped if overlaps else 0.0),
        **{unit: value * busy for unit, value in counts.units.items()},
    }
    bounds = {name: value / device.clock for name, value in cycles.items()}
    bounds["device memory"] = dram_bytes / device.copy_rate
    bounds["L2"] = (counts.read_bytes + counts.written_bytes) * counts.blocks / device.l2_rate
    bounds["reductions"] = counts.reductions.sectors * counts.blocks / device.reduction_rate
    return Prediction(device, bounds)
