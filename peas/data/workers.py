"""Work on the rows of a large table in DataLoader workers, with results in the rows' order."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import threading
import traceback
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from peas.errors import ConfigError, DataError, PeasError
from peas.utils.processes import CONTEXT, signal_that_ended

Result = TypeVar("Result")

TIMEOUT = 600.0
"""Seconds after which a chunk that no worker delivers is an error."""
_TIMEOUT_PER_ROW = 60.0
"""The same for each row of a chunk, where that is more."""
# Results wait in memory for those before them.
_PREFETCH = 8


class WorkerDied(PeasError):
    """A worker process was killed, crashed in a decoder, or does not respond.

    Args:
        rows: Rows that it was working on.
        what: What happened.
        advice: What to do next.
    """

    def __init__(self, rows: range, what: str, advice: str) -> None:
        super().__init__(f"a worker {what} at rows {rows.start} to {rows.stop - 1}. {advice}")
        self.rows = rows

    def naming(self, clips: Sequence[str]) -> DataError:
        """The same error with the names of the first and the last clip.

        Args:
            clips: Name of each row.
        """
        return DataError(f"{self} (clips {clips[self.rows.start]} to {clips[self.rows.stop - 1]})")


def default_workers() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_order(
    work: Callable[[range], Result],
    rows: int,
    *,
    size: int,
    workers: int,
    timeout: float | None = None,
) -> Generator[Result, None, None]:
    """Call `work` on chunks of rows and yield its results in the rows' order.

    Workers are forked at once, so `work` may hold tables of any size; its results are pickled.
    Chunks do not depend on the number of workers, and every process computes with one thread, so
    neither do the results. Closing the generator ends the workers.

    Args:
        work: Function of consecutive rows.
        rows: Number of rows.
        size: Rows of a chunk.
        workers: Number of processes; 0 = this one.
        timeout: Seconds a worker may take for a chunk; None = by its rows.

    Raises:
        WorkerDied: A worker was killed, crashed, or does not respond.
        ConfigError: `workers` is negative.
    """
    if workers < 0:
        raise ConfigError(f"--workers is {workers}: give 0 or more")
    chunks = [range(first, min(first + size, rows)) for first in range(0, rows, size)]
    if workers == 0 or not chunks:
        return _here(work, chunks)
    return _results(_Pool(work, chunks, workers, timeout or max(TIMEOUT, size * _TIMEOUT_PER_ROW)))


def _here(work: Callable[[range], Result], chunks: list[range]) -> Generator[Result, None, None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield from map(work, chunks)
    finally:
        torch.set_num_threads(before)


def _results(pool: _Pool[Result]) -> Generator[Result, None, None]:
    try:
        yield from pool.run()
    finally:
        pool.end()


class _Chunks(Dataset[Any], Generic[Result]):
    """Results of the chunks; errors are values, as the loader would only keep their text."""

    def __init__(
        self, work: Callable[[range], Result], chunks: list[range], current: Tensor
    ) -> None:
        self.work = work
        self.chunks = chunks
        self.current = current

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, number: int) -> Result | Exception:
        info = get_worker_info()
        assert info is not None
        self.current[info.id] = torch.tensor([os.getpid(), number])
        try:
            return self.work(self.chunks[number])
        except Exception as error:
            if not isinstance(error, PeasError):
                error.add_note(traceback.format_exc())
            return error


class _Pool(Generic[Result]):
    """A `DataLoader` of chunks, and which of them each of its workers is at."""

    def __init__(
        self, work: Callable[[range], Result], chunks: list[range], workers: int, timeout: float
    ) -> None:
        self.chunks = chunks
        self.timeout = timeout
        workers = min(workers, len(chunks))
        # Process id and chunk of each worker.
        self.current: Tensor = torch.zeros(workers, 2, dtype=torch.int64)
        self.current.share_memory_()  # type: ignore[no-untyped-call]
        before = set(multiprocessing.active_children())
        with warnings.catch_warnings():
            # More workers than cores are the user's choice.
            warnings.filterwarnings("ignore", "This DataLoader will create")
            loader: DataLoader[Any] = DataLoader(
                _Chunks(work, chunks, self.current),
                batch_size=None,
                collate_fn=_unchanged,
                num_workers=workers,
                prefetch_factor=_PREFETCH,
                worker_init_fn=_silence,
                multiprocessing_context=CONTEXT,
                timeout=timeout,
                # Its own: the global one would give other weights to a run that measures first.
                generator=torch.Generator(),
            )
            self.batches = iter(loader)
        self.processes = set(multiprocessing.active_children()) - before

    def run(self) -> Generator[Result, None, None]:
        """Results of the chunks, in their order."""
        for number in range(len(self.chunks)):
            for process in self.processes:
                if process.exitcode is not None:
                    raise self._died(number, f"(pid {process.pid})")
            try:
                result = next(self.batches)
            except RuntimeError as error:
                raise self._died(number, str(error)) from None
            if isinstance(result, Exception):
                raise result
            # PyTorch's handler would raise in the caller's work, without the rows.
            with _children_ignored():
                yield cast(Result, result)

    def _died(self, number: int, message: str) -> WorkerDied:
        """What PyTorch reports, with the rows that the worker was working on."""
        listed = re.search(r"\(pid(?:\(s\))? ([\d, ]+)\)", message)
        dead = {int(pid) for pid in listed.group(1).split(",")} if listed else set()
        for process in self.processes:
            if process.pid in dead:
                # The exit code is there once the process is joined.
                process.join(1.0)
                sign = signal_that_ended(int(process.pid or 0))
                how = f"was killed by {sign.name}" if sign else "ended by itself"
                advice = "One of these clips crashes its decoder"
                if sign is signal.SIGKILL:
                    advice = "The system does that when memory is short: give fewer --workers"
                # A worker that has begun nothing yet is not in the list.
                chunk = dict(self.current.tolist()).get(process.pid, number)
                return WorkerDied(self.chunks[chunk], how, advice)
        return WorkerDied(
            self.chunks[number],
            f"has not responded for {self.timeout:.0f} s",
            "The disk, or one of these files, hangs: try to read them alone",
        )

    def end(self) -> None:
        """Kill the workers now, whatever they are doing."""
        with _children_ignored():
            for process in self.processes:
                process.kill()
            for process in self.processes:
                process.join()
            del self.batches


@contextmanager
def _children_ignored() -> Generator[None]:
    """PyTorch's handler would report workers that are killed here."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if main else None
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGCHLD, before)


def _unchanged(result: Any) -> Any:
    return result


def _silence(_: int) -> None:
    """Decoders write warnings of their own, over the progress bar."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
