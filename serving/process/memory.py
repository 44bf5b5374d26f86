"""Freed memory that glibc's allocator keeps: give it back to the machine.

live.py calls these functions around swaps, training after each epoch. They do nothing in a process that does not run on glibc.
"""

import ctypes
import sys

M_MMAP_THRESHOLD, MMAP_BYTES = -3, 128 * 1024  # glibc's malloc.h, and the parameter's default


def keep_blocks_apart() -> None:
    """Map each block of 128 kB or more by itself, so that its memory returns when it is freed.

    By default glibc raises this size to that of the largest block ever freed, keeps most memory of unloaded models, and grows
    with every swap.
    """
    _glibc("mallopt", M_MMAP_THRESHOLD, MMAP_BYTES)


def return_free_memory() -> None:
    """Give the free pages between blocks in use back to the machine."""
    _glibc("malloc_trim", 0)


def _glibc(function: str, *arguments: int) -> None:
    call = getattr(ctypes.CDLL(None), function, None) if sys.platform == "linux" else None
    if call is not None:
        call(*arguments)
