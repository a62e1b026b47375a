"""Worker processes that ignore the run's signals and end with it, and a process's memory."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import sys
import threading
from multiprocessing import context, popen_fork
from multiprocessing.process import BaseProcess
from weakref import WeakSet

from peas.errors import PeasError

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Signals that stop a run. A terminal, `timeout`, systemd and a container's end send them to every
process of the run; only the one that trains handles them."""
PARENT = "PEAS_PARENT"
"""Environment variable with the id of the process that started others for DDP."""

_PR_SET_PDEATHSIG = 1
# Looked up before any fork: the dynamic linker has a lock.
_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


def end_with_parent(parent: int) -> bool:
    """Have the system kill this process as soon as its parent has ended; on Linux only.

    Args:
        parent: Id of the parent.

    Returns:
        False if it has ended already.
    """
    if _prctl is None:
        return True
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    return os.getppid() == parent


def end_with_launcher() -> None:
    """The same for a process that Lightning started for DDP, before it imports anything large.

    Until the process group is up, it would not notice the end of the first process.

    Raises:
        PeasError: The first process has ended.
    """
    launcher = os.environ.get(PARENT)
    launched = launcher is not None and os.environ.get("LOCAL_RANK", "0") != "0"
    if launched and not end_with_parent(int(launcher or 0)):
        raise PeasError("the process that started this one has ended")


def signal_that_ended(pid: int) -> signal.Signals | None:
    """Signal that ended a worker of `CONTEXT`; None for other processes and other ends.

    Args:
        pid: Id of the process.
    """
    for process in list(_started):
        if process.pid == pid and (process.exitcode or 0) < 0:
            return signal.Signals(-(process.exitcode or 0))
    return None


def kill_workers(reason: str) -> None:
    """Kill every worker of `CONTEXT` that this process has started.

    PyTorch then raises in the main thread, wherever it is.

    Args:
        reason: The message for the user in place of PyTorch's.
    """
    _reasons.append(reason)
    for process in list(_started):
        if process.is_alive():
            process.kill()


def end_workers() -> None:
    """End every worker of `CONTEXT`, at the end of a run.

    Python does so when the process ends, and PyTorch would then report their deaths.
    """
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if main else None
    try:
        for process in list(_started):
            if process.is_alive():
                process.kill()
                process.join()
    finally:
        if main:
            signal.signal(signal.SIGCHLD, before)


def why_killed() -> str:
    """Reason for which this process has killed its workers; empty if it has not."""
    return _reasons[-1] if _reasons else ""


_started: WeakSet[BaseProcess] = WeakSet()
_reasons: list[str] = []


class _Popen(popen_fork.Popen):
    """A fork whose child never gets the signals that stop a run."""

    def _launch(self, process_obj: BaseProcess) -> None:
        # Blocked, and not ignored: PyTorch's workers set their own handler for SIGTERM.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        try:
            super()._launch(process_obj)  # type: ignore[misc]
        finally:
            # The child never gets here.
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def terminate(self) -> None:
        """Ends the child, which SIGTERM would not."""
        self.kill()


class _Worker(context.ForkProcess):
    """A worker, which is killed with its parent."""

    _by_main = True

    @staticmethod
    def _Popen(process_obj: BaseProcess) -> _Popen:
        return _Popen(process_obj)

    def start(self) -> None:
        """Starts it."""
        # For the system the forking thread is the parent, and a thread may end earlier.
        self._by_main = threading.current_thread() is threading.main_thread()
        self._parent = os.getpid()
        super().start()
        _started.add(self)

    def run(self) -> None:
        """Works."""
        if self._by_main and not end_with_parent(self._parent):
            return
        super().run()


class WorkerContext(context.ForkContext):
    """Forks workers, which share the tables of clips at no cost and start at once."""

    Process = _Worker


CONTEXT = WorkerContext()


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_NEVER = 2**31 - 1
_ARROWS = "JE_ARROW_MALLOC_CONF"
_USER_SETTINGS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Make this process keep the memory that it frees.

    A training step on a CPU frees and allocates the same large tensors again and again. By default
    glibc returns each to the system, which fills every page with zeros before it hands it out
    again. Results and peak memory stay the same. Allocators other than glibc's, and thresholds that
    the user has set in the environment, are not changed.

    Returns:
        Whether the setting was made.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _USER_SETTINGS):
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(_MMAP_THRESHOLD, _NEVER) and libc.mallopt(_TRIM_THRESHOLD, _NEVER))


def keep_arrow_from_threads() -> None:
    """Keep pyarrow's second allocator from starting a thread; call it before pyarrow is imported.

    That thread does nothing while another allocator is the default, but shares locks with it that
    are taken at every fork. A user's setting is not changed.
    """
    os.environ.setdefault(_ARROWS, "background_thread:false")
