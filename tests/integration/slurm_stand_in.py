"""Plays SLURM's controller for one job: environment, signal, requeue."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

HERE = Path(__file__).parent
SCRIPT = HERE.parents[1] / "configs" / "cluster" / "slurm.sh"


class Pause(Callback):
    """Holds training before a batch until the controller has sent its signal.

    Args:
        folder: Where the two tell each other.
        at: Epoch and batch.
    """

    def __init__(self, folder: str, at: tuple[int, int]) -> None:
        self.folder = Path(folder)
        self.at = tuple(at)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        if (trainer.current_epoch, batch_idx) == self.at:
            (self.folder / "reached").touch()
            while not (self.folder / "sent").exists():
                time.sleep(0.01)


def environment(folder: Path, **variables: str) -> dict[str, str]:
    """Variables of a job of one task, with the stand-ins before every real command."""
    job = {"JOB_ID": "71234", "JOB_NAME": "peas", "NTASKS": "1", "NTASKS_PER_NODE": "1"}
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("SLURM")},
        "PATH": f"{HERE / 'slurm'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(HERE),
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "SLURM_STAND_IN": str(folder),
        "SLURM_NNODES": "1",
        **{f"SLURM_{name}": value for name, value in job.items()},
        **variables,
    }


def submitted(folder: Path, *argv: str, **variables: str) -> tuple[int, str, int]:
    """Runs the batch script as SLURM would, and again whenever its job asks for it.

    Args:
        folder: Of the stand-ins' notes.
        *argv: Arguments of the script.
        **variables: Its environment.

    Returns:
        Status of the last start, what all of them printed, and the number of starts.
    """
    log = folder / "job.log"
    for start in range(1, 4):
        env = environment(folder, SLURM_RESTART_COUNT=str(start - 1), **variables)
        with log.open("a") as file:
            job = subprocess.Popen(
                ["bash", str(SCRIPT), *argv], stdout=file, stderr=subprocess.STDOUT, env=env
            )
        try:
            _watch(job, folder)
        finally:
            job.kill()
        asked = folder / "asked"
        if not asked.exists():
            break
        assert asked.read_text() == "requeue 71234\n"
        asked.unlink()
    return job.returncode, log.read_text(), start


def _watch(job: subprocess.Popen[bytes], folder: Path) -> None:
    """Waits for the end; the warning is sent once, and a job that asked for requeue is ended."""
    until = time.monotonic() + 120
    ending = False
    while job.poll() is None:
        assert time.monotonic() < until, (folder / "job.log").read_text()
        time.sleep(0.02)
        if (folder / "reached").exists() and not (folder / "sent").exists():
            job.send_signal(signal.SIGUSR1)
            # The stand-in passes it on within a moment, while the task waits.
            time.sleep(0.3)
            (folder / "sent").touch()
        if not ending and (folder / "asked").exists():
            job.send_signal(signal.SIGTERM)
            ending = True
