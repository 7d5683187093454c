"""How the process of a command gets its memory."""

from __future__ import annotations

import ctypes
import os

# mallopt's M_MMAP_THRESHOLD, and the largest that glibc takes.
_MMAP_THRESHOLD = -3
_LARGEST = 32 << 20


def keep_freed_memory() -> None:
    """Have freed tensors' memory used again, where the C library can; call it before torch makes any.

    glibc hands blocks of more than some hundred kB back to the kernel when they are freed, and the next tensor waits
    for pages full of zeros: as long as for its own numbers, where these are those of an activation. With a threshold of
    32 MB, and pages of 2 MB where the kernel has them (torch's THP_MEM_ALLOC_ENABLE), training a simulated ResNet20
    takes .8 of the time.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return
    mallopt(_MMAP_THRESHOLD, _LARGEST)
