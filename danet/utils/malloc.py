"""Settings of glibc's malloc for this process. Only commands may call these functions, not libraries."""

import ctypes
import os
import sys

import torch

M_ARENA_MAX = -8
"""Parameter of ``mallopt``, from glibc's malloc.h."""


def trim_malloc() -> None:
    """Returns freed memory to the system. Has no effect on another malloc than glibc's.

    Example:
        >>> trim_malloc()
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def share_malloc_arena() -> None:
    """Makes threads that start after this call share one heap, unless the user has set MALLOC_ARENA_MAX.

    glibc's malloc gives each thread a heap of its own, which cannot reuse the memory that other threads have freed. The
    encoder and the decoder of a video have a dozen threads, and a run of several hours would grow by megabytes.
    """
    if sys.platform == "linux" and "MALLOC_ARENA_MAX" not in os.environ:
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(M_ARENA_MAX, 1)


def tune_malloc() -> None:
    """Returns freed memory to the system once; memory that is freed later stays with the process.

    glibc's malloc returns large blocks to the system when they are freed. A network allocates them again in every call
    and gets new pages, which the system has to clear: a tenth of the call's time. The size above which blocks are
    returned follows the largest block freed so far, up to 32 MiB, unless the user has set it (for example by
    MALLOC_TRIM_THRESHOLD_). Has no effect on another malloc than glibc's.

    Example:
        >>> tune_malloc()
    """
    trim_malloc()
    torch.empty(31 << 20, dtype=torch.uint8)  # freed immediately; its pages are never touched
