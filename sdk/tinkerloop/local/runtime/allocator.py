"""glibc's memory allocator, told to keep memory that one request has freed for the next."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_LARGEST = 2**31 - 1
_TWO_HEAPS = 128 * 2**20
"""glibc unmaps an empty heap of a thread (64 MB at most) unless this much free space must stay at its top."""


def keep_freed_memory() -> None:
    """Ask glibc's allocator, for the whole process, to give no memory back to the system.

    Otherwise it returns and requests again the same few hundred MB at every step, while two replicas compete for the
    page tables: 2 to 8 % of a small model's step, more on a busy machine. Without glibc this does nothing.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_TRIM_THRESHOLD, _LARGEST)
        libc.mallopt(_M_TOP_PAD, _TWO_HEAPS)
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST)
