"""What the process keeps of the memory that it frees."""

import ctypes
import os
import sys

import torch

M_ARENA_MAX = -8
"""Of glibc's malloc.h."""


def trim_malloc() -> None:
    """Gives the system what was freed up to here; where malloc is not glibc's, nothing happens."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def share_malloc_arena() -> None:
    """Lets threads that start from here on take memory from one heap.

    glibc's malloc gives each thread a heap of its own, in which what others have freed is of no use: a video's encoder
    and decoder have a dozen of them, and a run of hours grows by megabytes. Unless a user has set MALLOC_ARENA_MAX.
    """
    if sys.platform == "linux" and "MALLOC_ARENA_MAX" not in os.environ:
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(M_ARENA_MAX, 1)


def tune_malloc() -> None:
    """Gives back what was freed up to here, and lets the process keep what it frees from here on.

    glibc's malloc returns large blocks to the system when they are freed. A network that asks for them again at every
    call gets them as new pages, which the system has to clear: a tenth of the call's time. How large a block must be
    for that follows the largest one freed so far, up to 32 MiB, unless a user has set it (MALLOC_TRIM_THRESHOLD_ and
    the like). Where malloc is another one, nothing happens.
    """
    trim_malloc()
    torch.empty(31 << 20, dtype=torch.uint8)  # freed at once; never written, so it costs nothing
