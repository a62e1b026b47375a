"""Workers leave signals to the process that started them, and end with it."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from torch.utils.data import Dataset

from peas.data.batch import Item
from peas.data.loader import BadClips, ClipLoader, CollateClips
from peas.errors import DataError
from peas.utils.processes import CONTEXT, signal_that_ended, why_killed


def _wait_for_end(pid):
    for _ in range(200):
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rsplit(")", 1)[1].split()[0] == "Z":
                    return
        except OSError:
            return
        time.sleep(0.05)
    pytest.fail(f"process {pid} lives on")


def _forget(loader):
    """Else PyTorch would report the killed worker again whenever any process ends, in any test."""
    for _ in range(5):
        with contextlib.suppress(RuntimeError):
            loader._iterator._shutdown_workers()
            return
    pytest.fail("the loader's workers cannot be shut down")


def _worker(life=60.0):
    process = CONTEXT.Process(target=time.sleep, args=(life,), daemon=True)
    process.start()
    return process


def test_a_worker_ignores_what_asks_a_run_to_stop():
    process = _worker(0.5)
    # At once: in the middle of its start, too.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        os.kill(process.pid, number)
    process.join(20)
    assert process.exitcode == 0
    assert signal_that_ended(process.pid) is None


def test_the_signal_that_ended_a_worker_is_known():
    process = _worker()
    os.kill(process.pid, signal.SIGKILL)
    process.join(20)
    assert signal_that_ended(process.pid) == signal.SIGKILL
    assert signal_that_ended(os.getpid()) is None


def test_terminate_ends_a_worker():
    process = _worker()
    process.terminate()
    process.join(20)
    assert process.exitcode == -signal.SIGKILL


ORPHANS = """
import os, signal, time
from peas.utils.processes import CONTEXT

for _ in range(3):
    process = CONTEXT.Process(target=time.sleep, args=(60,), daemon=True)
    process.start()
    os.write(1, f"{process.pid}\\n".encode())
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child")
def test_a_worker_ends_when_its_parent_is_killed():
    """In the middle of a read, where no loop of its own looks after the parent."""
    command = subprocess.Popen([sys.executable, "-c", ORPHANS], stdout=subprocess.PIPE, text=True)
    workers = [int(command.stdout.readline()) for _ in range(3)]
    command.kill()
    command.wait()
    for worker in workers:
        _wait_for_end(worker)
    command.stdout.close()


LAUNCHED = """
import os
import re
from peas.utils.processes import end_with_launcher

end_with_launcher()
os.write(1, b"ready\\n")
os.read(0, 1)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child")
@pytest.mark.parametrize(("rank", "parent", "ends"), [("1", 0, True), ("0", 1, False)])
def test_a_process_of_a_run_whose_first_process_is_gone_does_not_wait(rank, parent, ends):
    env = {**os.environ, "LOCAL_RANK": rank, "PEAS_PARENT": str(parent or 2**22)}
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHED], env=env, input="x", capture_output=True, text=True
    )
    assert (done.returncode != 0) == ends
    assert ("ready" in done.stdout) != ends


LAUNCHER = """
import os, subprocess, sys, time

env = {**os.environ, "LOCAL_RANK": "1", "PEAS_PARENT": str(os.getpid())}
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], env=env, stdin=subprocess.PIPE)
os.write(1, f"{child.pid}\\n".encode())
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child")
def test_a_process_of_a_run_ends_with_the_first_one():
    first = subprocess.Popen(
        [
            sys.executable,
            "-c",
            LAUNCHER,
            LAUNCHED.replace("os.read(0, 1)", "import time; time.sleep(60)"),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    other = int(first.stdout.readline())
    assert first.stdout.readline() == "ready\n"
    first.kill()
    first.wait()
    _wait_for_end(other)
    first.stdout.close()


class Slow(Dataset):
    """Eight clips; reading the one numbered `stuck` never ends."""

    def __init__(self, stuck):
        self.stuck = stuck

    def __len__(self):
        return 8

    def __getitem__(self, index):
        import torch

        if index == self.stuck:
            time.sleep(60)
        return Item(torch.zeros(400), 0, f"{index}.wav", silent=False, short=False, labelled=True)


def test_a_worker_that_does_not_answer_is_one_message():
    loader = ClipLoader(
        Slow(5),
        BadClips(),
        root="/the/set",
        batch_size=2,
        num_workers=2,
        timeout=120.0,
        collate_fn=CollateClips(),
    )
    batches = iter(loader)
    assert [next(batches)["id"] for _ in range(2)] == [["0.wav", "1.wav"], ["2.wav", "3.wav"]]
    # The start of the workers may take long on a busy machine; from now on nothing comes.
    loader.timeout = loader._iterator._timeout = 1.0
    with pytest.raises(DataError) as caught:
        next(batches)
    for word in ("/the/set", "worker 0 of 2", " 1 s", "data.init_args.timeout"):
        assert word in str(caught.value)
    workers = [worker.pid for worker in loader._iterator._workers]
    del loader, batches, caught
    for worker in workers:
        _wait_for_end(worker)


def test_workers_of_an_evaluation_are_forked_once():
    loader = ClipLoader(
        Slow(None), BadClips(), batch_size=2, num_workers=1, collate_fn=CollateClips()
    )
    epochs, workers = [], set()
    for _ in range(3):
        epochs.append([batch["id"] for batch in loader])
        workers |= {worker.pid for worker in loader._iterator._workers}
    assert epochs[0] == epochs[1] == epochs[2]
    assert len(workers) == 1
    # An evaluation that was broken off, as a sanity check is, leaves nothing behind.
    next(iter(loader))
    assert [batch["id"] for batch in loader] == epochs[0]


def test_a_worker_that_stops_before_it_hands_over_its_batch_is_one_message(monkeypatch):
    # Past PyTorch's own limit, which is what strikes where the batch was not announced yet.
    monkeypatch.setattr("peas.data.loader.GRACE", 1.0)
    monkeypatch.setattr("peas.utils.processes._reasons", [])
    loader = ClipLoader(
        Slow(-1),
        BadClips(),
        root="/the/set",
        batch_size=1,
        num_workers=1,
        timeout=120.0,
        collate_fn=CollateClips(),
    )
    batches = iter(loader)
    next(batches)
    # The start of a worker may take long on a busy machine; a stopped one never answers.
    loader.timeout = loader._iterator._timeout = 3.0
    # By then, mostly, the next batch is announced, and its sound is still with the worker.
    time.sleep(1.0)
    worker = loader._iterator._workers[0].pid
    os.kill(worker, signal.SIGSTOP)
    # Where nothing else ends the wait, the test fails and does not hang.
    guard = threading.Timer(100.0, os.kill, (worker, signal.SIGKILL))
    guard.start()
    try:
        # PyTorch reports the death of its worker at any place; the command line translates it.
        with pytest.raises((DataError, RuntimeError)) as caught:
            list(batches)
        assert guard.is_alive()
    finally:
        guard.cancel()
    assert re.search(r"/the/set.*worker 0 of 1", why_killed() or str(caught.value))
    _wait_for_end(worker)
    _forget(loader)
