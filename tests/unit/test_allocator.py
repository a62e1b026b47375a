import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
from peas.utils.processes import keep_freed_memory
print(keep_freed_memory())
SIZE = 64 * 2**20
bytearray(SIZE)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    bytearray(SIZE)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="the setting is one of glibc's allocator"
)


def run(**environment: str) -> tuple[bool, int]:
    """Whether the setting was made, and pages that the system gave out for memory used before."""
    names = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
    own = {key: value for key, value in os.environ.items() if key not in names}
    made, faults = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=own | environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout.split()
    return made == "True", int(faults)


def test_freed_memory_is_used_again_without_new_pages() -> None:
    made, faults = run()
    assert made
    assert faults < 1000


def test_the_users_own_threshold_stays() -> None:
    made, faults = run(MALLOC_TRIM_THRESHOLD_="131072", MALLOC_MMAP_THRESHOLD_="131072")
    assert not made
    assert faults > 10_000


THREADS = """
from pathlib import Path
import peas
import pyarrow
print([path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted by Linux")
def test_arrow_starts_no_thread_whose_locks_a_fork_would_take() -> None:
    env = {key: value for key, value in os.environ.items() if key != "JE_ARROW_MALLOC_CONF"}
    done = subprocess.run(
        [sys.executable, "-c", THREADS], env=env, check=True, capture_output=True, text=True
    )
    assert "jemalloc" not in done.stdout
