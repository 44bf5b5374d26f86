"""The machine: how much memory and how many processors a round may use.

base_files.py refuses a base model that exceeds the memory; model_selection/ compares estimates with it.
"""

import os
from dataclasses import dataclass
from pathlib import Path

# The limit of a container's memory, in cgroup version 2 and 1; "max" or a huge number without one.
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True)
class Machine:
    """Memory in bytes and number of processors that this process may use."""

    memory: int
    processors: int


def this_machine() -> Machine:
    """Return this machine, or the container's share of it."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [int(text) for path in _LIMITS if (text := _text(Path(path))).isdigit()]
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(min([total, *limits]), processors)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
