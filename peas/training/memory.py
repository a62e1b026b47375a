"""Memory that a training step frees and the next one needs again.

A step on a CPU frees and asks for the same large tensors again and again. By default glibc hands
each back to the system, and the system fills every page with zeros before it gives it out again.
"""

import ctypes
import os
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_NEVER = 2**31 - 1
_ARROWS = "JE_ARROW_MALLOC_CONF"
_USERS_OWN = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Make this process keep what it frees instead of returning it to the system.

    It concerns the whole process, changes no result, and leaves the peak of its memory as it is:
    memory is held until the process ends, and not less. Allocators other than glibc's, and
    thresholds that the user has set in the environment (`MALLOC_MMAP_THRESHOLD_`,
    `MALLOC_TRIM_THRESHOLD_`, `GLIBC_TUNABLES`), stay as they are.

    Returns:
        Whether the setting was made.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _USERS_OWN):
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(_MMAP_THRESHOLD, _NEVER) and libc.mallopt(_TRIM_THRESHOLD, _NEVER))


def keep_arrow_from_threads() -> None:
    """Have pyarrow's second allocator start no thread; before pyarrow is imported.

    That thread does nothing while another allocator is the default one, but the allocator takes
    the locks it shares with it whenever a worker is forked. A setting of the user's stays.
    """
    os.environ.setdefault(_ARROWS, "background_thread:false")
