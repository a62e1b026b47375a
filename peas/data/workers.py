"""Work on the rows of a large table in forked processes, with the results in the rows' order."""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Generic, TypeVar

import torch

from peas.errors import ConfigError, DataError, PeasError
from peas.utils.processes import CONTEXT

Result = TypeVar("Result")

# Results wait in memory for the ones before them, so no chunk runs further ahead than this many
# chunks for each worker.
_AHEAD = 8
PATIENCE = 600.0
"""Seconds after which a worker that does not answer is given up."""
_PER_ROW = 60.0
"""The same for each row of a chunk, where that is more."""


class WorkerDied(PeasError):
    """A worker process was ended from outside or by a crash of a decoder, or gives no answer.

    Args:
        rows: Rows that it was working on.
        what: What it did.
        advice: What to do next.
    """

    def __init__(self, rows: range, what: str, advice: str) -> None:
        super().__init__(
            f"a worker process {what} in rows {rows.start} to {rows.stop - 1}. {advice}"
        )
        self.rows = rows

    def naming(self, clips: Sequence[str]) -> DataError:
        """The same with the names of the first and the last clip.

        Args:
            clips: Name of each row.
        """
        return DataError(f"{self} (clips {clips[self.rows.start]} to {clips[self.rows.stop - 1]})")


def _died(rows: range, exit_code: int) -> WorkerDied:
    how = f"by {signal.Signals(-exit_code).name}" if exit_code < 0 else "without a word"
    advice = "One of these clips crashes its decoder"
    if exit_code == -signal.SIGKILL:
        advice = "The system does that when memory is short: give fewer --workers"
    return WorkerDied(rows, f"was ended {how}", advice)


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
    patience: float | None = None,
) -> Generator[Result, None, None]:
    """Calls `work` on chunks of rows and yields its results in the rows' order.

    Workers are forked, so `work` may hold tables of any size; its results are pickled. The chunks
    do not depend on the number of workers, and every process computes with one thread: so neither
    do the results. All workers end when the iterator is closed, however it is left.

    Args:
        work: Function of consecutive rows.
        rows: Number of rows.
        size: Rows of a chunk.
        workers: Number of processes; 0 = work in this one.
        patience: Seconds in which a worker must have worked on a chunk; None = by its rows.

    Raises:
        WorkerDied: A worker was killed, crashed, or does not answer.
        ConfigError: `workers` is negative.
    """
    if workers < 0:
        raise ConfigError(f"--workers is {workers}: give 0 or more")
    chunks = [range(first, min(first + size, rows)) for first in range(0, rows, size)]
    if workers == 0 or not chunks:
        return _here(work, chunks)
    # Forked now and not at the first result: the caller's progress bar may start a thread.
    patience = patience or max(PATIENCE, size * _PER_ROW)
    return _there(_Pool(work, min(workers, len(chunks)), patience), chunks)


def _here(work: Callable[[range], Result], chunks: list[range]) -> Generator[Result, None, None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield from map(work, chunks)
    finally:
        torch.set_num_threads(before)


def _there(pool: _Pool[Result], chunks: list[range]) -> Generator[Result, None, None]:
    try:
        yield from pool.run(chunks)
    finally:
        pool.end()


@dataclass(eq=False)
class _Worker:
    """A process and our end of its pipe."""

    process: BaseProcess
    pipe: Connection
    chunk: range = range(0)
    since: float = 0.0


class _Pool(Generic[Result]):
    """Processes that each work on one chunk at a time.

    The library's pools do not do: one waits for ever when a worker is killed, the other cannot
    end workers in the middle of a task.
    """

    def __init__(self, work: Callable[[range], Result], workers: int, patience: float) -> None:
        self.patience = patience
        self.workers: list[_Worker] = []
        for _ in range(workers):
            ours, theirs = CONTEXT.Pipe()
            inherited = [ours, *(worker.pipe for worker in self.workers)]
            process = CONTEXT.Process(target=_serve, args=(work, theirs, inherited), daemon=True)
            process.start()
            theirs.close()
            self.workers.append(_Worker(process, ours))

    def run(self, chunks: list[range]) -> Generator[Result, None, None]:
        """Results of the chunks, in their order."""
        done: dict[int, Result] = {}
        place = {chunk.start: number for number, chunk in enumerate(chunks)}
        sent = given = 0
        idle = list(self.workers)
        while given < len(chunks):
            while idle and sent < min(len(chunks), given + _AHEAD * len(self.workers)):
                worker = idle.pop()
                worker.chunk, worker.since = chunks[sent], time.monotonic()
                # A dead worker is met again below, where it is reported.
                with suppress(BrokenPipeError, ConnectionResetError):
                    worker.pipe.send(worker.chunk)
                sent += 1
            busy = {worker.pipe: worker for worker in self.workers if worker not in idle}
            slowest = min(busy.values(), key=lambda worker: worker.since)
            left = slowest.since + self.patience - time.monotonic()
            answered = wait(list(busy), timeout=max(left, 0.0))
            if not answered:
                raise WorkerDied(
                    slowest.chunk,
                    f"has not answered for {self.patience:.0f} s",
                    "The disk, or one of these files, does not answer: try to read them alone",
                )
            for pipe in answered:
                assert isinstance(pipe, Connection)
                worker = busy[pipe]
                done[place[worker.chunk.start]] = self._answer(worker)
                idle.append(worker)
            while given in done:
                yield done.pop(given)
                given += 1

    def _answer(self, worker: _Worker) -> Result:
        try:
            answer = worker.pipe.recv()
        except (EOFError, ConnectionResetError):
            worker.process.join()
            code = worker.process.exitcode or 0
            raise _died(worker.chunk, code) from None
        if isinstance(answer, BaseException):
            raise answer
        result: Result = answer
        return result

    def end(self) -> None:
        """End all processes now, whatever they are doing."""
        for worker in self.workers:
            worker.process.kill()
        for worker in self.workers:
            worker.process.join()
            worker.pipe.close()


def _serve(work: Callable[[range], Result], pipe: Connection, inherited: list[Connection]) -> None:
    """Life of a worker: chunks in, results out, until the other end is closed."""
    # With the parent's ends open in here, the parent's death would go unnoticed.
    for other in inherited:
        other.close()
    # Decoding libraries write warnings of their own, over the progress and in no order; exceptions
    # take the way of results.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    torch.set_num_threads(1)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            chunk = pipe.recv()
            answer: Result | Exception
            try:
                answer = work(chunk)
            except Exception as error:
                if not isinstance(error, PeasError):
                    error.add_note(traceback.format_exc())
                answer = error
            pipe.send(answer)
