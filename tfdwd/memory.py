"""How much memory there is. Imports nothing heavy."""

import contextlib
import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup/memory.max")  # of a container


def total() -> float:
    """Bytes of memory that this process may have; infinite where the system does not tell."""
    found = [math.inf]
    with contextlib.suppress(AttributeError, ValueError, OSError):  # not on all systems
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(ValueError, OSError):  # "max" where there is no limit
        found.append(int(_CGROUP.read_text()))
    return min(found)


def limit_growth(part: float) -> None:
    """Makes allocations fail beyond what this process has now and a part of all memory.

    Does nothing where the system does not tell how much there is.
    """
    with contextlib.suppress(ImportError, ValueError, OSError, OverflowError):
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + int(part * total())
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
