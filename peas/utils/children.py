"""Processes that a process starts: they leave its signals to it, and end when it does."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from multiprocessing import context, popen_fork
from multiprocessing.process import BaseProcess
from weakref import WeakSet

from peas.errors import PeasError

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Signals that ask a run to stop. A terminal, `timeout`, systemd and a container's end send them to
every process of the run; only the one that trains answers."""
PARENT = "PEAS_PARENT"
"""Tells the processes that Lightning starts for DDP the number of the one that started them."""

_PR_SET_PDEATHSIG = 1
# Looked up before any fork: the loader of libraries has a lock.
_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


def end_with_parent(parent: int) -> bool:
    """Have the system kill this process as soon as its parent has ended; on Linux only.

    Args:
        parent: Number of the parent.

    Returns:
        False where it had ended before.
    """
    if _prctl is None:
        return True
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    return os.getppid() == parent


def end_with_launcher() -> None:
    """The same for a process that Lightning started for DDP, before it imports anything large.

    Until the process group is up, nothing else tells it that the first process is gone.

    Raises:
        PeasError: The first process has ended.
    """
    launcher = os.environ.get(PARENT)
    launched = launcher is not None and os.environ.get("LOCAL_RANK", "0") != "0"
    if launched and not end_with_parent(int(launcher or 0)):
        raise PeasError("the process that started this one has ended")


def signal_that_ended(pid: int) -> signal.Signals | None:
    """Signal that ended a worker of `CONTEXT`; None where it is another process, or none did.

    Args:
        pid: Number of the process.
    """
    for process in list(_started):
        if process.pid == pid and (process.exitcode or 0) < 0:
            return signal.Signals(-(process.exitcode or 0))
    return None


def kill_workers(reason: str) -> None:
    """Kills every worker of `CONTEXT` that this process has started.

    PyTorch then reports their deaths, at any place of the main thread.

    Args:
        reason: What a user is told in place of that.
    """
    _reasons.append(reason)
    for process in list(_started):
        if process.is_alive():
            process.kill()


def end_workers() -> None:
    """Ends every worker of `CONTEXT`, at the end of a run.

    Python would do so as the process ends, and PyTorch then report their deaths.
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
    """Reason for which this process has killed its workers; empty where it has not."""
    return _reasons[-1] if _reasons else ""


_started: WeakSet[BaseProcess] = WeakSet()
_reasons: list[str] = []


class _Popen(popen_fork.Popen):
    """A fork whose child never gets the signals that ask a run to stop."""

    def _launch(self, process_obj: BaseProcess) -> None:
        # Held back, and not ignored: PyTorch's workers set a handler for SIGTERM of their own.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        try:
            super()._launch(process_obj)  # type: ignore[misc]
        finally:
            # The child never comes here.
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
        # The system counts the thread that forked as the parent, and another one may end earlier.
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
