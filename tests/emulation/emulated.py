"""Loads the CUDA emulator (README.md) as torch.ops.danet_emulated."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch  # noqa: F401  (the module of the emulator needs its libraries)

from emulation.modules import build, load_module, missing, traced

__all__ = ["Emulation", "KernelLaunch", "load", "missing"]


@dataclass(frozen=True)
class KernelLaunch:
    """One kernel launch: the operator, the kernel's demangled name, the sizes, and the bytes of its arguments as they
    lie in constant memory; the blocks of a cluster; whether it may start before the previous launch has ended."""

    op: str
    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    parameters: bytes
    cluster: int = 1
    programmatic: bool = False


class Emulation:
    """The loaded emulator. Its operators are torch.ops.danet_emulated.*, on CPU tensors.

    Attributes:
        settings: what the emulator does from the next launch on; README.md lists the attributes.
    """

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self._path = build(mode, "danet_emulated")
        self._module = load_module(self._path)
        self.settings = self._module.settings

    @contextmanager
    def observed(self, observer: Callable[[KernelLaunch], object]) -> Iterator[None]:
        """Inside the block, call `observer` before every launch. If it returns true, the kernel does not run.

        An exception of the observer is raised at the end of the block.
        """
        errors: list[BaseException] = []

        def call(record) -> bool:
            try:
                kernel = self._kernel_names[record.kernel_offset]
                sizes = tuple(record.grid), tuple(record.block), record.shared_bytes
                how = record.parameters, record.cluster, record.programmatic
                return bool(observer(KernelLaunch(record.op, kernel, *sizes, *how)))
            except BaseException as error:
                errors.append(error)
                return True

        self.settings.observer = call
        try:
            yield
        finally:
            self.settings.observer = None
        if errors:
            raise errors[0]

    @cached_property
    def _kernel_names(self) -> dict[int, str]:
        """The demangled names of the library's functions, by offset."""
        lines = subprocess.run(["nm", "-C", self._path], capture_output=True, text=True, check=True).stdout
        return {int(line[:16], 16): line[19:] for line in lines.splitlines() if line[17:18] in ("t", "T", "W")}

    def traced(self) -> AbstractContextManager[list[np.ndarray]]:
        """See `modules.traced`."""
        return traced(self._module)

    def reports(self) -> list:
        """The checker's reports since `clear`, one per error. Always empty outside mode "check"."""
        return self._module.reports()

    def clear(self) -> None:
        """Forget the reports so far, and wait for all launches, as the host does before it reuses their memory."""
        self._module.clear_reports()
        self._module.synchronize()

    def launches(self) -> int:
        """The number of kernel launches since the library was loaded."""
        return self._module.launches()


_loaded: Emulation | None = None


def load(mode: str | None = None) -> Emulation:
    """The emulator of this process, built if necessary.

    A process can load one mode. The default is the mode that is loaded already, else the environment variable
    DANET_EMULATION, else "plain". Raises RuntimeError if another mode is loaded, or if the mode is "sanitize" and
    Python was started without ASan (see README.md).
    """
    global _loaded
    mode = mode or (_loaded.mode if _loaded else os.environ.get("DANET_EMULATION", "plain"))
    if _loaded is not None and _loaded.mode != mode:
        raise RuntimeError(f"the emulator is loaded in mode {_loaded.mode}; use another process for mode {mode}")
    if mode == "sanitize" and "libasan" not in os.environ.get("LD_PRELOAD", ""):
        raise RuntimeError("mode sanitize needs ASan: start Python as shown in tests/emulation/README.md")
    if _loaded is None:
        _loaded = Emulation(mode)
    return _loaded
