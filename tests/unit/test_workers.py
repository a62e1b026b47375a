"""Chunks in forked processes: results in order, and an end to everything in every case."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from peas.data.workers import WorkerDied, default_workers, in_order
from peas.errors import AudioError, ConfigError, DataError


def _wait_for_end(process):
    for _ in range(200):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail(f"process {process} lives on")


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_results_in_the_order_of_the_rows(workers):
    def work(rows):
        # The first chunks take longest.
        time.sleep(0.02 * max(0, 3 - rows.start))
        return list(rows), torch.get_num_threads()

    results = list(in_order(work, 23, size=2, workers=workers))
    assert [row for rows, _ in results for row in rows] == list(range(23))
    assert [len(rows) for rows, _ in results] == [2] * 11 + [1]
    assert {threads for _, threads in results} == {1}


def test_workers_are_other_processes_and_as_many_as_asked():
    def work(rows):
        time.sleep(0.02)
        return os.getpid()

    assert set(in_order(work, 10, size=1, workers=0)) == {os.getpid()}
    others = set(in_order(work, 30, size=1, workers=3))
    assert len(others) == 3
    assert os.getpid() not in others


def test_threads_are_given_back():
    before = torch.get_num_threads()
    list(in_order(len, 3, size=1, workers=0))
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("workers", [0, 2])
def test_no_rows(workers):
    assert list(in_order(len, 0, size=4, workers=workers)) == []


def test_fast_workers_do_not_run_far_ahead_of_a_slow_one(tmp_path):
    def work(rows):
        if rows.start == 0:
            time.sleep(1.0)
        (tmp_path / str(rows.start)).touch()
        return rows.start

    results = in_order(work, 1000, size=1, workers=2)
    assert next(results) == 0
    assert len(list(tmp_path.iterdir())) <= 20
    results.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_comes_through(workers):
    def work(rows):
        if rows.start == 4:
            raise AudioError("clip 4 is broken")
        return rows

    results = in_order(work, 8, size=2, workers=workers)
    with pytest.raises(AudioError, match="clip 4 is broken"):
        list(results)


def test_a_bug_in_a_worker_shows_its_place():
    def work(rows):
        return 1 / 0

    with pytest.raises(ZeroDivisionError) as caught:
        list(in_order(work, 8, size=2, workers=1))
    assert "in work" in caught.value.__notes__[0]


def test_a_killed_worker_is_an_error_and_no_hang():
    def work(rows):
        if rows.start == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.01)
        return rows

    with pytest.raises(WorkerDied, match=r"SIGKILL.* 6 to 7") as caught:
        list(in_order(work, 40, size=2, workers=2))
    named = caught.value.naming([f"{row}.wav" for row in range(40)])
    assert isinstance(named, DataError)
    assert str(named).endswith("(clips 6.wav to 7.wav)")


def test_a_worker_that_leaves_is_an_error():
    def work(rows):
        os._exit(1)

    with pytest.raises(WorkerDied, match="0 to 2"):
        list(in_order(work, 3, size=3, workers=1))


def test_closing_ends_workers_in_the_middle_of_their_work():
    def work(rows):
        if rows.start:
            time.sleep(60)
        return os.getpid()

    results = in_order(work, 2, size=1, workers=1)
    worker = next(results)
    begun = time.monotonic()
    results.close()
    assert time.monotonic() - begun < 5
    _wait_for_end(worker)


SLOW = """
import os, signal, sys, time
from peas.data.workers import in_order

# A shell that starts the tests in the background has Ctrl-C ignored in all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

def work(rows):
    os.write(1, f"{os.getpid()}\\n".encode())
    time.sleep(60)

try:
    list(in_order(work, 8, size=1, workers=2))
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_ctrl_c_ends_workers_in_the_middle_of_their_work():
    command = subprocess.Popen(
        [sys.executable, "-c", SLOW],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    workers = [int(command.stdout.readline()) for _ in range(2)]
    # As a terminal does: to the command and all its workers.
    os.killpg(command.pid, signal.SIGINT)
    _, errors = command.communicate(timeout=20)
    assert (command.returncode, errors) == (130, "")
    for worker in workers:
        _wait_for_end(worker)


ENDLESS = SLOW.replace("time.sleep(60)", "time.sleep(0.2)").replace("work, 8,", "work, 10**6,")


def test_workers_end_after_their_chunk_when_the_command_is_killed():
    command = subprocess.Popen(
        [sys.executable, "-c", ENDLESS], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    workers = {int(command.stdout.readline()) for _ in range(6)}
    os.kill(command.pid, signal.SIGKILL)
    command.wait()
    for worker in workers:
        _wait_for_end(worker)
    command.stdout.close()


def test_negative_workers():
    with pytest.raises(ConfigError, match="--workers is -1"):
        in_order(len, 3, size=1, workers=-1)


def test_default_workers():
    assert 1 <= default_workers() <= os.cpu_count()


@pytest.mark.parametrize(("number", "memory"), [(signal.SIGKILL, True), (signal.SIGUSR2, False)])
def test_memory_is_named_for_the_signal_that_the_system_sends(number, memory):
    def work(rows):
        os.kill(os.getpid(), number)

    with pytest.raises(WorkerDied, match=number.name) as caught:
        list(in_order(work, 1, size=1, workers=1))
    assert ("memory" in str(caught.value)) == memory


def test_a_worker_that_does_not_answer_is_given_up():
    def work(rows):
        if rows.start == 6:
            time.sleep(60)
        return rows

    begun = time.monotonic()
    with pytest.raises(WorkerDied, match="6 to 7") as caught:
        # Long enough for the others to start on a busy machine.
        list(in_order(work, 8, size=2, workers=2, timeout=3.0))
    assert time.monotonic() - begun < 30
    assert caught.value.rows == range(6, 8)


def test_the_random_numbers_of_a_run_do_not_depend_on_what_is_measured_before():
    before = torch.get_rng_state()
    list(in_order(len, 8, size=2, workers=2))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_worker_that_is_killed_while_its_results_are_used_is_named_with_its_rows():
    def work(rows):
        if rows.start:
            time.sleep(60)
        return os.getpid()

    results = in_order(work, 2, size=1, workers=2)
    first = next(results)
    (other,) = {child.pid for child in multiprocessing.active_children()} - {first}
    os.kill(other, signal.SIGKILL)
    # The caller's own work is not interrupted.
    time.sleep(0.3)
    with pytest.raises(WorkerDied, match="SIGKILL") as caught:
        next(results)
    assert caught.value.rows == range(1, 2)
