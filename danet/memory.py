"""What the process keeps of the memory that it frees."""

import ctypes
import sys

import torch


def give_back() -> None:
    """Gives the system what was freed up to here; where malloc is not glibc's, nothing happens."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def settle() -> None:
    """Gives back what was freed up to here, and lets the process keep what it frees from here on.

    glibc's malloc returns large blocks to the system when they are freed. A network that asks for them again at every
    call gets them as new pages, which the system has to clear: a tenth of the call's time. How large a block must be
    for that follows the largest one freed so far, up to 32 MiB, unless a user has set it (MALLOC_TRIM_THRESHOLD_ and
    the like). Where malloc is another one, nothing happens.
    """
    give_back()
    torch.empty(31 << 20, dtype=torch.uint8)  # freed at once; never written, so it costs nothing
