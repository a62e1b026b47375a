"""Rank of this process, and objects exchanged between the processes of a run."""

import os
from typing import Any, TypeVar

from torch import distributed

T = TypeVar("T")

RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
"""Environment variables with a process's rank; each is 0 in the first one."""


def is_launched_first() -> bool:
    """Whether this process is the first one of its run, before the process group exists."""
    return all(os.environ.get(name) in (None, "", "0") for name in RANKS)


def are_several() -> bool:
    """Whether other processes take part in this run."""
    return distributed.is_available() and distributed.is_initialized()


def gather(own: T) -> list[T]:
    """Objects of all processes, by rank; every process must call it.

    Args:
        own: Of this process; anything that can be pickled.
    """
    if not are_several():
        return [own]
    parts: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(parts, own)
    return parts


def is_first() -> bool:
    """Whether this process restores what was saved for all together."""
    return not are_several() or distributed.get_rank() == 0
