"""Keep what a pass has freed for the next one."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_LARGEST = 2**31 - 1
_TWO_HEAPS = 128 * 2**20
"""A thread's heap (64 MB at most) is unmapped as soon as it is empty, but for so much room to be left at the top."""


def keep_freed_memory() -> None:
    """Ask glibc's allocator, for the whole process, to give no memory back to the system.

    It would return and fault in again the same few hundred MB at every step, two lanes contending for the page tables:
    2 to 8 % of a small model's step, the more the busier the machine. Elsewhere than on glibc nothing is done.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_TRIM_THRESHOLD, _LARGEST)
        libc.mallopt(_M_TOP_PAD, _TWO_HEAPS)
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST)
