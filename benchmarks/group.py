"""Starts the processes of a DDP run, as a launcher would, on this machine."""

import os
import socket
import subprocess
import sys
from pathlib import Path


def start(argv: list[str], world: int) -> list[subprocess.Popen[str]]:
    """Start `peas fit` as so many processes of one thread each.

    Args:
        argv: Arguments of `fit`.
        world: Number of processes.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "peas", "fit", *argv, f"--trainer.devices={world}"]
    command += ["--trainer.strategy=ddp"] if world > 1 else []
    shared = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parent),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world),
        "NODE_RANK": "0",
    }
    return [
        subprocess.Popen(
            command,
            env={**shared, "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]


def finish(started: list[subprocess.Popen[str]]) -> None:
    """Wait for all; a failure ends the script with its last words."""
    for process in started:
        _, told = process.communicate()
        if process.returncode:
            sys.exit(told[-2000:])
