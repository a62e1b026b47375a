"""What the benchmarks share: turns, medians, one table, and a line about the machine."""

import argparse
import datetime
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

Row = tuple[str, Sequence[float], int]
"""Name, one value a repeat, digits to print."""


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
"""Seconds that pass, or seconds that this process computes, all threads and the system included.

Where other work shares the cores, the second kind says more, with `--threads 1`: threads that wait
for one that was put aside count as computing.
"""


def seconds_of(work: Callable[[], object], device: str = "cpu", clock: str = "wall") -> float:
    """Time of one call; a CUDA device is waited for before and after."""
    now = CLOCKS[clock]
    if device == "cuda":
        torch.cuda.synchronize()
    start = now()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return now() - start


def interleaved(
    sides: dict[str, Callable[[], float]], repeats: int, first: int = 0
) -> dict[str, list[float]]:
    """Values of every side, which take turns, so that a busy machine slows them alike.

    The first is another one in each round, beginning with the one numbered `first`: what a side
    leaves in the caches favours none.
    """
    values: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for index in range(first, first + repeats):
        shift = index % len(names)
        for name in names[shift:] + names[:shift]:
            values[name].append(sides[name]())
    return values


def quotients(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Ratio of each repeat of one side to the other side's turn beside it."""
    return [a / b for a, b in zip(above, below, strict=True)]


def table(rows: Sequence[Row]) -> str:
    """Markdown: median, smallest and largest value of each row."""
    lines = ["| | median | min | max |", "|---|---:|---:|---:|"]
    for name, values, digits in rows:
        cells = (statistics.median(values), min(values), max(values))
        lines.append(f"| {name} | " + " | ".join(f"{cell:.{digits}f}" for cell in cells) + " |")
    return "\n".join(lines)


def heading(device: str) -> str:
    """Command line, machine, versions and date: what a figure needs to be found again."""
    command = shlex.join(["python", *sys.argv])
    name = torch.cuda.get_device_name() if device == "cuda" else _processor()
    return (
        f"`{command}`\n\n{name}, {torch.get_num_threads()} thread(s), "
        f"{torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}, "
        f"Python {platform.python_version()}, {datetime.date.today().isoformat()}\n"
    )


def has_fast_bf16(device: str) -> bool:
    """Whether the device multiplies bfloat16 matrices itself instead of emulating it."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    flags = _cpuinfo("flags")
    return any(name in flags.split() for name in ("avx512_bf16", "amx_bf16", "bf16"))


def add_common(parser: argparse.ArgumentParser) -> None:
    """Arguments of both training benchmarks."""
    parser.add_argument("--size", choices=("tiny", "small", "base"), default="base")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="default: PyTorch's own choice")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="see timing.py")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16 on our side")


def prepare(options: argparse.Namespace) -> None:
    """Set the threads; refuse a device that is not there and tell of a slow bfloat16."""
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: PyTorch sees no CUDA device here; use --device cpu")
    if options.bf16 and not has_fast_bf16(options.device):
        print(
            "This device has no bfloat16 instructions and emulates them: --bf16 is likely to be "
            "slower than float32 here, and says nothing about devices that have them.\n"
        )


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    names = {key, "Features"} if key == "flags" else {key}
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.split(":")[0].strip() in names), ""
    )
