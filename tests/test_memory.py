"""What glibc's allocator keeps of what was freed returns to the machine when it is asked."""

import os
import platform
from pathlib import Path

import numpy as np
import pytest

from serving.process.memory import return_free_memory

BLOCK, BLOCKS = 64 * 1024, 4000  # smaller than what glibc maps by itself: 256 MB


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc_trim is glibc's")
def test_memory_between_blocks_in_use_returns() -> None:
    blocks = [np.ones(BLOCK, dtype=np.uint8) for _ in range(BLOCKS)]
    kept = blocks[::20]
    del blocks
    before = resident_bytes()
    return_free_memory()
    freed = before - resident_bytes()
    assert freed > 0.8 * BLOCK * (BLOCKS - len(kept))
    assert all(block.all() for block in kept)
