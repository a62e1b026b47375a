"""Official code beside ours: a process of its own that steps when it is asked to.

`Peer` is the side that asks. The functions below it are the side that answers; they need nothing of
`peas`, because an official code brings packages that cannot be imported beside its own.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self, TextIO

import torch


class Peer:
    """The official code in its own process.

    Attributes:
        parameters: Number of trained parameters.
        peak_mib: Peak memory up to the latest step, of the process or of CUDA's tensors.
    """

    def __init__(self, options: argparse.Namespace, work: Path, script: str) -> None:
        command = [sys.executable, str(Path(__file__).with_name(script))]
        command += ["--peer", str(options.peer), "--work", str(work), "--size", options.size]
        command += ["--device", options.device, "--clock", options.clock]
        if options.peer_timm:
            command += ["--peer-timm", str(options.peer_timm)]
        if options.threads:
            command += ["--threads", str(options.threads)]
        self._errors = (work / "peer.log").open("w+")
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )
        self.parameters = int(self._answer()["parameters"])
        self.peak_mib = 0.0

    def __enter__(self) -> Self:
        """Stays until the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the process."""
        self._process.communicate()
        self._errors.close()

    def step(self, command: str = "step") -> float:
        """Seconds of one training step, or of another that the worker knows."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        answer = self._answer()
        self.peak_mib = answer["peak_mib"]
        return answer["seconds"]

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            last = "\n".join(self._errors.read().splitlines()[-12:])
            raise SystemExit(f"the official code stopped (see --help about its timm):\n{last}")
        answer: dict[str, float] = json.loads(line)
        return answer


def require_checkout(folder: Path | None, file: str, name: str) -> None:
    """Ends with a sentence unless a folder is a checkout, or there is none to be compared with.

    Args:
        folder: What was given as `--peer`.
        file: A file of the repository.
        name: Of the repository.
    """
    if folder is not None and not (folder / file).is_file():
        raise SystemExit(
            f"--peer {folder}: no {file} there; give a checkout of the official {name} repository"
        )


def resident_peak() -> float:
    """Peak resident memory in MiB of this program: `getrusage` counts its parent's as well."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10


def worker(about: str | None) -> tuple[argparse.Namespace, TextIO]:
    """Settings of an answering process, and where its answers go.

    Args:
        about: Its docstring.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--peer", type=Path, required=True)
    parser.add_argument("--peer-timm", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--size", required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--clock", choices=("wall", "cpu"), required=True)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    # The official code prints while it builds; only answers may reach the pipe.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    if options.threads:
        torch.set_num_threads(options.threads)
    return options, answers


def serve(
    options: argparse.Namespace, answers: TextIO, parameters: int, step: Callable[[str], object]
) -> None:
    """Steps whenever a line comes, and answers with its seconds and the peak memory so far.

    Args:
        options: From `worker`.
        answers: From `worker`.
        parameters: Number of trained parameters, told first.
        step: Takes the line.
    """
    now = time.process_time if options.clock == "cpu" else time.perf_counter
    cuda = options.device == "cuda"
    print(json.dumps({"parameters": parameters}), file=answers)
    for line in sys.stdin:
        start = now()
        step(line.strip())
        if cuda:
            torch.cuda.synchronize()
        seconds = now() - start
        peak = torch.cuda.max_memory_allocated() / 2**20 if cuda else resident_peak()
        print(json.dumps({"seconds": seconds, "peak_mib": peak}), file=answers)
