"""Configuration of glibc's memory allocator, so that memory freed by one request stays available for the next."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_LARGEST = 2**31 - 1
_TWO_HEAPS = 128 * 2**20
"""Value for M_TOP_PAD, the free space to keep at the top of a heap: two heaps of a thread, 64 MB each.

With a smaller value glibc unmaps the heap of a thread when the heap is empty.
"""


def keep_freed_memory() -> None:
    """Configure glibc's allocator, for the whole process, to return no memory to the operating system.

    Otherwise glibc returns and requests the same few hundred MB at every step, and replicas wait for each other while
    the page tables change. This costs 2 to 8 % of a small model's step, more on a busy machine. Without glibc the
    function does nothing.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_TRIM_THRESHOLD, _LARGEST)
        libc.mallopt(_M_TOP_PAD, _TWO_HEAPS)
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST)
