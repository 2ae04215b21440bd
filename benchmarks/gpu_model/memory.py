"""The memories of a simulated device: global memory, which is that of this process, shared memory, local memory."""

from collections.abc import Iterable

import numpy as np

Array = np.ndarray
SHARED_START = 0x400
"""The first bytes of shared memory belong to the system on sm_90."""
PAGE = 4096
STACK_TOP, STACK_BYTES = 0xFFFDC0, 1024
"""The end of the local memory of a thread, at which its stack begins, and its size."""


class ProcessMemory:
    """Global memory: the memory of this process. A kernel may access only the given ranges of addresses."""

    def __init__(self, ranges: Iterable[tuple[int, int]]) -> None:
        self.starts, self.ends = (np.array(sorted(side)) for side in zip(*ranges, strict=True))
        self._views = {}

    def _view(self, dtype: type) -> Array:
        if dtype not in self._views:
            size = np.dtype(dtype).itemsize
            view = type("View", (), {})()
            view.__array_interface__ = {
                "data": (PAGE, False),
                "shape": ((1 << 47) // size - PAGE // size,),
                "typestr": np.dtype(dtype).str,
                "version": 3,
            }
            self._views[dtype] = np.asarray(view)
        return self._views[dtype]

    def _check(self, addresses: Array, width: int) -> Array:
        place = np.searchsorted(self.starts, addresses, side="right") - 1
        inside = (place >= 0) & (addresses + width <= self.ends[place]) & (addresses % width == 0)
        if not inside.all():
            raise RuntimeError(
                f"access of {width} bytes to the address {addresses[~inside][0]:#x}, outside the tensors"
            )
        return (addresses - PAGE) // width

    def read(self, lanes: Array, addresses: Array) -> Array:
        """32 bits from each address."""
        return self._view(np.uint32)[self._check(addresses, 4)]

    def write(self, lanes: Array, addresses: Array, values: Array) -> None:
        """32 bits to each address."""
        self._view(np.uint32)[self._check(addresses, 4)] = values

    def read_narrow(self, lanes: Array, addresses: Array, width: int) -> Array:
        """8 or 16 bits from each address."""
        return self._view(np.uint8 if width == 1 else np.uint16)[self._check(addresses, width)]

    def write_narrow(self, lanes: Array, addresses: Array, values: Array, width: int) -> None:
        """8 or 16 bits to each address."""
        dtype = np.uint8 if width == 1 else np.uint16
        self._view(dtype)[self._check(addresses, width)] = np.asarray(values).astype(dtype)

    def update(self, lanes: Array, addresses: Array, values: Array, operation: np.ufunc) -> None:
        """An atomic operation on each address."""
        places = self._check(addresses, values.itemsize)
        first = int(places.min())  # a slice, because numpy copies the array that it updates
        operation.at(self._view(values.dtype.type)[first : int(places.max()) + 1], places - first, values)


class SharedMemory:
    """The shared memory of the simulated blocks, filled with NaN.

    Bits 24 to 31 of an address are the number of the block in its cluster.
    """

    def __init__(self, blocks: int, block_threads: int, size: int, cluster: int) -> None:
        self.size, self.block_threads, self.cluster = -(-size // 16) * 16, block_threads, cluster
        self.bytes = np.full(blocks * self.size, 0xFF, np.uint8)

    def _check(self, lanes: Array, addresses: Array, width: int) -> Array:
        ranks, addresses = addresses >> 24, addresses & 0xFFFFFF
        is_wrong = (addresses < SHARED_START) | (addresses + width > self.size) | (addresses % width != 0)
        if (is_wrong | (ranks >= self.cluster)).any():
            raise RuntimeError(f"access of {width} bytes outside the shared memory of {self.size} bytes")
        blocks = lanes // self.block_threads // self.cluster * self.cluster + ranks
        return (blocks * self.size + addresses) // width

    def read(self, lanes: Array, addresses: Array) -> Array:
        """32 bits from each address."""
        return self.bytes.view(np.uint32)[self._check(lanes, addresses, 4)]

    def write(self, lanes: Array, addresses: Array, values: Array) -> None:
        """32 bits to each address."""
        self.bytes.view(np.uint32)[self._check(lanes, addresses, 4)] = values

    def read_narrow(self, lanes: Array, addresses: Array, width: int) -> Array:
        """8 or 16 bits from each address."""
        return self.bytes.view(np.uint8 if width == 1 else np.uint16)[self._check(lanes, addresses, width)]

    def write_narrow(self, lanes: Array, addresses: Array, values: Array, width: int) -> None:
        """8 or 16 bits to each address."""
        dtype = np.uint8 if width == 1 else np.uint16
        self.bytes.view(dtype)[self._check(lanes, addresses, width)] = np.asarray(values).astype(dtype)

    def update(self, lanes: Array, addresses: Array, values: Array, operation: np.ufunc) -> None:
        """An atomic operation on each address."""
        operation.at(self.bytes.view(values.dtype), self._check(lanes, addresses, values.itemsize), values)


class LocalMemory:
    """The stacks of the simulated threads. The words of the 32 lanes of a warp lie next to each other."""

    def __init__(self, threads: int) -> None:
        self.bytes = np.full(threads * STACK_BYTES, 0xFF, np.uint8)

    def interleaved(self, lanes: Array, addresses: Array) -> Array:
        """Where each lane's address lies in the memory of all lanes."""
        offsets = addresses - (STACK_TOP - STACK_BYTES)
        if ((offsets < 0) | (offsets >= STACK_BYTES)).any():
            raise RuntimeError(f"access outside the local memory of {STACK_BYTES} bytes")
        return (lanes // 32 * (STACK_BYTES // 4) + offsets // 4) * 128 + lanes % 32 * 4 + offsets % 4

    def read(self, places: Array, width: int) -> Array:
        """1, 2 or 4 bytes from each place (`interleaved`)."""
        return self.bytes.view(f"u{width}")[places // width]

    def write(self, places: Array, values: Array, width: int) -> None:
        """1, 2 or 4 bytes to each place."""
        self.bytes.view(f"u{width}")[places // width] = np.asarray(values).astype(f"u{width}")
