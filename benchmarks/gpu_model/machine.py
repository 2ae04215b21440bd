"""Executes the machine code of a kernel for some of its thread blocks, and records what every warp did.

All threads run in one process. A step executes one instruction for all threads that wait for it: those with the lowest
address. Threads of a warp that took different paths join again at BSYNC, as on the device.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from benchmarks.gpu_model import float_instructions, memory_instructions  # noqa: F401  (register instructions)
from benchmarks.gpu_model.instructions import BUILDERS
from benchmarks.gpu_model.memory import SHARED_START, STACK_TOP, LocalMemory, ProcessMemory, SharedMemory
from benchmarks.gpu_model.memory_instructions import SHARED_WINDOW
from benchmarks.gpu_model.operands import Execute, UnsupportedCode, read_predicate, reader_u64
from benchmarks.gpu_model.sass import Function, Instruction

Array = np.ndarray
PARAMETERS_START = 0x210
"""The offset of the kernel's parameters in constant bank 0 on sm_90."""
NO_CLUSTER, CLUSTER_SIZE = 0x140, 0x188
"""The offsets in constant bank 0 of a word that is 1 if every block is a cluster of its own, and of the blocks of a
cluster."""
RUNNING, AT_BARRIER, AT_WARP_SYNC, AT_CLUSTER, AT_BSYNC = 0, 1, 2, 3, 16  # AT_BSYNC + number of the barrier register
NO_EFFECT = {
    "NOP",
    "LDGDEPBAR",
    "DEPBAR",
    "MEMBAR",
    "ERRBAR",
    "CCTL",
    "YIELD",
    "NANOSLEEP",
    "ENDCOLLECTIVE",
    "CGAERRBAR",
    "ACQBULK",
    "PREEXIT",
}


@dataclass(frozen=True)
class Launch:
    """One kernel launch: its name and sizes, the bytes of its parameters as the kernel reads them, the number of blocks
    of a cluster, and whether it may start before the previous launch has ended (programmatic dependent launch)."""

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    parameters: bytes
    cluster: int = 1
    programmatic: bool = False

    @property
    def threads(self) -> int:
        """Threads per block."""
        return self.block[0] * self.block[1] * self.block[2]

    @property
    def warps(self) -> int:
        """Warps per block; the last one may have fewer than 32 threads."""
        return -(-self.threads // 32)

    @property
    def lanes(self) -> int:
        """Lanes per block: 32 for each warp, also where the last one has fewer threads."""
        return 32 * self.warps

    @property
    def blocks(self) -> int:
        """Blocks of the grid."""
        return self.grid[0] * self.grid[1] * self.grid[2]


@dataclass
class Access:
    """One memory instruction, executed by some warps: the lanes (thread numbers) and their addresses."""

    instruction: Instruction
    space: str
    lanes: Array
    addresses: Array
    width: int


@dataclass
class Record:
    """What the simulated blocks did. ``issued`` [instructions, warps] counts how often each warp issued each
    instruction. ``sequence`` lists (instruction, warps) in the order of execution."""

    issued: Array
    accesses: list[Access] = field(default_factory=list)
    sequence: list[tuple[int, Array]] = field(default_factory=list)


class Machine:
    """The state of the threads of some blocks of one launch; `run` executes them.

    Args:
        function: the machine code.
        launch: the launch.
        blocks: the flat numbers of the blocks to execute; all blocks of a cluster or none.
        memory: global memory.
        static_shared: bytes of static shared memory, beside the dynamic bytes of the launch.
    """

    def __init__(
        self, function: Function, launch: Launch, blocks: Iterable[int], memory: ProcessMemory, static_shared: int = 0
    ) -> None:
        self.function, self.launch, self.memory = function, launch, memory
        self.blocks = np.fromiter(blocks, np.int64)
        count = launch.lanes
        self.threads = len(self.blocks) * count  # lanes without a thread are not alive
        self.warps = self.threads // 32
        if len(self.blocks) % launch.cluster or (self.blocks[:: launch.cluster] % launch.cluster).any():
            raise ValueError(f"blocks must be whole clusters of {launch.cluster}, got {self.blocks.tolist()}")
        size = SHARED_START + static_shared + launch.shared_bytes
        self.shared = SharedMemory(len(self.blocks), count, size, launch.cluster)
        self.local = LocalMemory(self.threads)
        self.registers = np.zeros((256, self.threads), np.uint32)
        self.uniform = np.zeros((256, self.threads), np.uint32)
        self.predicates = np.zeros((8, self.threads), bool)
        self.uniform_predicates = np.zeros((8, self.threads), bool)
        self.predicates[7] = self.uniform_predicates[7] = True
        self.pc = np.zeros(self.threads, np.int64)
        self.waits = np.full(self.threads, RUNNING)
        self.arrivals = np.zeros(self.threads, np.int64)  # at the barrier of the cluster
        self.joined = np.zeros((16, self.threads), bool)  # the barrier registers B0 to B15 of BSSY
        self.alive = np.arange(self.threads) % count < launch.threads
        self.exists = self.alive.copy()
        self.counts = Record(np.zeros((len(function.instructions), self.warps), np.int64))
        self._bank = np.zeros(PARAMETERS_START // 4 + -(-len(launch.parameters) // 4), np.uint32)
        self._bank[0:3], self._bank[3:6] = launch.block, launch.grid
        self._bank[NO_CLUSTER // 4], self._bank[CLUSTER_SIZE // 4] = launch.cluster == 1, launch.cluster
        padded = launch.parameters + bytes(-len(launch.parameters) % 4)
        self._bank[PARAMETERS_START // 4 :] = np.frombuffer(padded, np.uint32)
        self._bank[0x28 // 4] = STACK_TOP  # the stack pointer
        self._executors = [self._builder(instruction) for instruction in function.instructions]

    def constants(self, bank: int, addresses: Array) -> Array:
        """32 bits of each address of a constant bank."""
        if bank != 0:
            raise UnsupportedCode(f"constant bank {bank}")
        return self._bank[addresses // 4]

    def special_register(self, name: str, lanes: Array) -> Array:
        """The value of a special register."""
        thread, block = lanes % self.launch.lanes, self.blocks[lanes // self.launch.lanes]
        x, y, _ = self.launch.block
        columns, rows, _ = self.launch.grid
        values: dict[str, Callable[[], Array]] = {
            "SR_TID.X": lambda: thread % x,
            "SR_TID.Y": lambda: thread // x % y,
            "SR_TID.Z": lambda: thread // (x * y),
            "SR_CTAID.X": lambda: block % columns,
            "SR_CTAID.Y": lambda: block // columns % rows,
            "SR_CTAID.Z": lambda: block // (columns * rows),
            "SR_LANEID": lambda: lanes % 32,
            "SR_CgaCtaId": lambda: block % self.launch.cluster,
            "SR_SWINHI": lambda: np.full_like(lanes, SHARED_WINDOW >> 32),
            "SRZ": lambda: np.zeros_like(lanes),
        }
        if name not in values:
            raise UnsupportedCode(f"special register {name}")
        return values[name]().astype(np.uint32)

    def record(self, instruction: Instruction, space: str, lanes: Array, addresses: Array, width: int) -> None:
        """Notes the addresses of a memory instruction."""
        self.counts.accesses.append(Access(instruction, space, lanes, addresses, width))

    def run(self, max_steps: int = 2_000_000) -> Record:
        """Executes all threads to their end.

        Raises:
            RuntimeError: a deadlock, or an access outside of the tensors.
            UnsupportedCode: an instruction that the model does not know was reached.
        """
        with np.errstate(all="ignore"):
            steps = 0
            while self.alive.any():
                ready = np.flatnonzero(self.alive & (self.waits == RUNNING))
                if len(ready) == 0:
                    raise RuntimeError("deadlock: all threads wait")
                counters = self.pc[ready]
                current = int(counters.min())
                lanes = ready[counters == current]
                others = counters[counters != current]
                steps += self._run_straight(lanes, current, int(others.min()) if len(others) else 1 << 60)
                if steps > max_steps:
                    raise RuntimeError("the kernel takes too many steps")
        return self.counts

    def _run_straight(self, lanes: Array, current: int, stop: int) -> int:
        """Executes lanes from `current` on, until a branch or the position of other threads; returns the steps."""
        warps = np.unique(lanes // 32)
        first = current
        instructions, sequence, issued = self.function.instructions, self.counts.sequence, self.counts.issued
        while True:
            instruction = instructions[current]
            sequence.append((current, warps))
            issued[current, warps] += 1
            control = CONTROL.get(instruction.opcode)
            if control is not None:
                control(self, instruction, lanes)
                return current - first + 1
            executor = self._executors[current]
            if executor is not None:
                executor(self, lanes)
            current += 1
            if current >= stop:
                break
        self.pc[lanes] = current
        return current - first

    def _builder(self, instruction: Instruction) -> Execute | None:
        if instruction.opcode in CONTROL or instruction.opcode in NO_EFFECT:
            return None
        builder = BUILDERS.get(instruction.opcode)
        if builder is None:
            return _unknown(instruction)
        try:
            execute = builder(instruction)
        except UnsupportedCode:
            return _unknown(instruction)
        if instruction.predicate is None:
            return execute
        guard = read_predicate(instruction.predicate)

        def guarded(m, i):
            chosen = guard(m, i)
            i = i[np.broadcast_to(chosen, len(i))]
            if len(i):
                execute(m, i)

        return guarded

    def taken(self, instruction: Instruction, lanes: Array) -> Array:
        """The lanes whose guard predicate is true."""
        if instruction.predicate is None:
            return lanes
        return lanes[np.broadcast_to(read_predicate(instruction.predicate)(self, lanes), len(lanes))]


def _unknown(instruction: Instruction) -> Execute:
    def execute(m, i):
        raise UnsupportedCode(f"instruction {instruction.text}")

    return execute


# --- control flow ----------------------------------------------------------------------------------------------------


def _branch(m: Machine, instruction: Instruction, lanes: Array) -> None:
    m.pc[lanes] = instruction.index + 1
    if "DIV" in instruction.modifiers:  # taken if lanes of the warp are missing
        warps = np.unique(lanes // 32)
        if len(lanes) != m.exists.reshape(-1, 32)[warps].sum():
            raise RuntimeError(f"{instruction.text}: a warp reaches a warp-wide instruction without all of its lanes")
        return
    taken = m.taken(instruction, lanes)
    for condition in instruction.operands[:-1]:  # BRA P0, target
        taken = taken[np.broadcast_to(read_predicate(condition)(m, taken), len(taken))]
    m.pc[taken] = m.function.at(instruction.operands[-1].bits)


def _exit(m: Machine, instruction: Instruction, lanes: Array) -> None:
    m.pc[lanes] = instruction.index + 1
    taken = m.taken(instruction, lanes)
    m.alive[taken] = False
    m.joined[:, taken] = False
    _release_barriers(m)
    _release_clusters(m)
    for number in range(16):
        _release_joined(m, number, np.unique(taken // 32))


def _call(m: Machine, instruction: Instruction, lanes: Array) -> None:
    m.pc[lanes] = m.function.at(instruction.operands[-1].bits)


def _return(m: Machine, instruction: Instruction, lanes: Array) -> None:
    m.pc[lanes] = (reader_u64(instruction.operands[0])(m, lanes) & np.uint64(0xFFFFFFFF)).astype(np.int64) // 16


def _start_join(m: Machine, instruction: Instruction, lanes: Array) -> None:
    m.pc[lanes] = instruction.index + 1
    m.joined[_barrier_number(instruction), m.taken(instruction, lanes)] = True


def _leave_join(m: Machine, instruction: Instruction, lanes: Array) -> None:
    m.pc[lanes] = instruction.index + 1
    taken, number = m.taken(instruction, lanes), _barrier_number(instruction)
    m.joined[number, taken] = False
    _release_joined(m, number, np.unique(taken // 32))


def _join(m: Machine, instruction: Instruction, lanes: Array) -> None:
    number = _barrier_number(instruction)
    m.pc[lanes] = instruction.index + 1
    waiting = lanes[m.joined[number, lanes]]
    m.waits[waiting] = AT_BSYNC + number
    _release_joined(m, number, np.unique(waiting // 32))


def _release_joined(m: Machine, number: int, warps: Array) -> None:
    if len(warps) == 0:
        return
    joined = m.joined[number].reshape(-1, 32)[warps]
    arrived = (m.waits == AT_BSYNC + number).reshape(-1, 32)[warps]
    done = (arrived | ~joined).all(1)
    threads = (warps[done, None] * 32 + np.arange(32))[arrived[done]]
    m.waits[threads] = RUNNING
    m.joined[number, threads] = False


def _barrier_number(instruction: Instruction) -> int:
    return int(next(operand.text for operand in instruction.operands if operand.text[:1] == "B")[1:])


def _barrier(m: Machine, instruction: Instruction, lanes: Array) -> None:
    m.pc[lanes] = instruction.index + 1
    m.waits[m.taken(instruction, lanes)] = AT_BARRIER
    _release_barriers(m)


def _release_barriers(m: Machine) -> None:
    waiting = (m.waits == AT_BARRIER).reshape(len(m.blocks), -1)
    done = (waiting | ~m.alive.reshape(len(m.blocks), -1)).all(1)
    m.waits.reshape(len(m.blocks), -1)[done[:, None] & waiting] = RUNNING


def _cluster_arrive(m: Machine, instruction: Instruction, lanes: Array) -> None:
    m.pc[lanes] = instruction.index + 1
    m.arrivals[m.taken(instruction, lanes)] += 1
    _release_clusters(m)


def _cluster_wait(m: Machine, instruction: Instruction, lanes: Array) -> None:
    m.pc[lanes] = instruction.index + 1
    m.waits[m.taken(instruction, lanes)] = AT_CLUSTER
    _release_clusters(m)


def _release_clusters(m: Machine) -> None:
    """Lets the threads go on that have arrived as often as every thread of their cluster."""
    arrivals = m.arrivals.reshape(len(m.blocks) // m.launch.cluster, -1)
    everywhere = np.where(m.alive.reshape(arrivals.shape), arrivals, np.iinfo(np.int64).max).min(1, keepdims=True)
    waits = m.waits.reshape(arrivals.shape)
    waits[(waits == AT_CLUSTER) & (arrivals <= everywhere)] = RUNNING


def _warp_sync(m: Machine, instruction: Instruction, lanes: Array) -> None:
    m.pc[lanes] = instruction.index + 1
    if "COLLECTIVE" in instruction.modifiers:
        return
    m.waits[lanes] = AT_WARP_SYNC
    waiting = (m.waits == AT_WARP_SYNC).reshape(-1, 32)
    done = (waiting | ~m.alive.reshape(-1, 32)).all(1)
    m.waits.reshape(-1, 32)[done[:, None] & waiting] = RUNNING


CONTROL: dict[str, Callable[[Machine, Instruction, Array], None]] = {
    "BRA": _branch,
    "EXIT": _exit,
    "CALL": _call,
    "RET": _return,
    "BSSY": _start_join,
    "BSYNC": _join,
    "BREAK": _leave_join,
    "BAR": _barrier,
    "UCGABAR_ARV": _cluster_arrive,
    "UCGABAR_WAIT": _cluster_wait,
    "WARPSYNC": _warp_sync,
}
