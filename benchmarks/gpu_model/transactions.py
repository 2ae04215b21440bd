"""Counts the memory transactions of a warp: cache lines, sectors, wavefronts and bank conflicts.

A warp executes an access of 4 bytes per lane in one pass over its 32 lanes, of 8 bytes in two passes of 16 lanes, and
of 16 bytes in four passes of 8 lanes. In every pass,

- global memory: the L1 cache compares up to four tags (lines of 128 bytes) and delivers up to 128 bytes (four sectors
  of 32 bytes) per cycle;
- shared memory: each of the 32 banks delivers one word of 4 bytes per cycle. Lanes that read the same word share it.

A cycle of the L1 data path is called a wavefront, as in Nsight Compute.
"""

from dataclasses import dataclass

import numpy as np

from benchmarks.gpu_model.machine import Access
from benchmarks.gpu_model.memory_instructions import GLOBAL, SHARED

Array = np.ndarray
LINE_BYTES, SECTOR_BYTES, BANKS, WORD_BYTES = 128, 32, 32, 4
TAGS_PER_CYCLE, SECTORS_PER_CYCLE = 4, 4


@dataclass
class Transactions:
    """The transactions of one kind of access, summed over warps.

    ``requests``: instructions of a warp. ``wavefronts``: cycles of the L1 data path. ``sectors``: different sectors
    per request, summed; for atomic additions, this is the number of operations in the L2 cache. ``full_sectors``: those
    of which all 32 bytes are accessed.
    """

    requests: int = 0
    wavefronts: int = 0
    sectors: int = 0
    full_sectors: int = 0

    def __add__(self, other: "Transactions") -> "Transactions":
        return Transactions(
            self.requests + other.requests,
            self.wavefronts + other.wavefronts,
            self.sectors + other.sectors,
            self.full_sectors + other.full_sectors,
        )


def count(access: Access) -> Transactions:
    """The transactions of one access."""
    if len(access.lanes) == 0:
        return Transactions()
    warps = access.lanes // 32
    lanes_per_pass = 32 * WORD_BYTES // max(WORD_BYTES, access.width)
    passes = warps * 4 + access.lanes % 32 // lanes_per_pass
    requests = len(np.unique(warps))
    if access.space == SHARED:
        return Transactions(requests, _bank_wavefronts(passes, access.addresses, access.width))
    lines = _distinct(passes, access.addresses // LINE_BYTES)
    in_pass = _distinct(passes, access.addresses // SECTOR_BYTES)  # a lane never crosses a sector
    wavefronts = np.maximum(-(-lines // TAGS_PER_CYCLE), -(-in_pass // SECTORS_PER_CYCLE)).sum()
    sectors, bytes_used = _sectors(warps, access.addresses, access.width)
    return Transactions(requests, int(wavefronts), len(sectors), int((bytes_used == SECTOR_BYTES).sum()))


def _distinct(groups: Array, values: Array) -> Array:
    """The number of different values in every group."""
    pairs = np.unique(np.stack([groups, values]), axis=1)
    return np.unique(pairs[0], return_counts=True)[1]


def _sectors(groups: Array, addresses: Array, width: int) -> tuple[Array, Array]:
    """The different (group, sector) pairs, and how many different bytes of each are accessed."""
    pieces = np.unique(np.stack([groups, addresses]), axis=1)
    pairs, counts = np.unique(np.stack([pieces[0], pieces[1] // SECTOR_BYTES]), axis=1, return_counts=True)
    return pairs.T, np.minimum(counts * width, SECTOR_BYTES)


def _bank_wavefronts(passes: Array, addresses: Array, width: int) -> int:
    """The cycles of the shared memory: in every pass, the largest number of different words in one bank."""
    words = (addresses[:, None] // WORD_BYTES + np.arange(max(1, width // WORD_BYTES))).reshape(-1)
    groups = np.repeat(passes, max(1, width // WORD_BYTES))
    pairs = np.unique(np.stack([groups, words]), axis=1)
    banks, counts = np.unique(np.stack([pairs[0], pairs[1] % BANKS]), axis=1, return_counts=True)
    starts = np.flatnonzero(np.diff(banks[0], prepend=-1))
    return int(np.maximum.reduceat(counts, starts).sum())


def unique_sectors(accesses: list[Access], block_lanes: int) -> int:
    """Sectors that the L1 cache reads from the L2 cache, if it holds everything that one block reads: the different
    sectors of all reads of a block, summed over blocks."""
    reads = [access for access in accesses if access.space == GLOBAL and access.instruction.opcode in READS]
    return _unique(reads, block_lanes)


def written_sectors(accesses: list[Access], block_lanes: int) -> int:
    """Different sectors that a block writes without atomics, summed over blocks."""
    writes = [access for access in accesses if access.space == GLOBAL and access.instruction.opcode in WRITES]
    return _unique(writes, block_lanes)


READS = ("LDG", "LD", "LDGSTS")
WRITES = ("STG", "ST")
REDUCTIONS = ("REDG", "RED", "ATOMG")


def _unique(accesses: list[Access], block_lanes: int) -> int:
    if not accesses:
        return 0
    blocks = np.concatenate([access.lanes // block_lanes for access in accesses])
    sectors = np.concatenate([access.addresses // SECTOR_BYTES for access in accesses])
    return np.unique(np.stack([blocks, sectors]), axis=1).shape[1]
