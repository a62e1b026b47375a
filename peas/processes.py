"""What the processes of a run tell one another as objects."""

from typing import Any, TypeVar

import torch

T = TypeVar("T")


def gather(own: T) -> list[T]:
    """What every process has, in their order; all of them must ask.

    Args:
        own: Of this process; anything that can be pickled.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [own]
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, own)
    return parts


def is_first() -> bool:
    """Whether sums that were saved for all processes together go on in this one."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return True
    return bool(torch.distributed.get_rank() == 0)
