"""What a run says that has lost a worker."""

import os
import signal
import time

import pytest

from peas.cli import verbs
from peas.errors import PeasError
from peas.utils.processes import CONTEXT


@pytest.mark.parametrize(
    ("number", "memory"), [(signal.SIGKILL, True), (signal.SIGUSR2, False), (None, False)]
)
def test_the_signal_that_ended_a_worker_is_named(monkeypatch, number, memory):
    worker = CONTEXT.Process(target=time.sleep, args=(0 if number is None else 60,), daemon=True)
    worker.start()
    if number is not None:
        os.kill(worker.pid, number)
    worker.join(20)

    def lose(**_):
        raise RuntimeError(f"DataLoader worker (pid(s) {worker.pid}) exited unexpectedly")

    monkeypatch.setattr(verbs, "PeasCLI", lose)
    with pytest.raises(PeasError) as caught:
        verbs.run(["fit"])
    assert str(worker.pid) in str(caught.value)
    assert (number is None) or number.name in str(caught.value)
    assert ("memory" in str(caught.value)) == memory
    assert "--ckpt_path last" in str(caught.value)
