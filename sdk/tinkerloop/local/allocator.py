"""Keep what a pass has freed for the next one."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST = 2**31 - 1


def keep_freed_memory() -> None:
    """Ask glibc's allocator, for the whole process, to give no memory back to the system.

    It would return and fault in again the same few hundred MB at every step, two lanes contending for the page tables:
    2 to 8 % of a small model's step, the more the busier the machine. Elsewhere than on glibc nothing is done.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_TRIM_THRESHOLD, _LARGEST)
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST)
