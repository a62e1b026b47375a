"""Random numbers that depend on the run's seed, epoch and step, and on nothing else.

They are generated for the *global* batch on the CPU, and each rank takes its clips' rows. So masks,
noise and mixup do not change with the number of processes, the device or a restart.
"""

import hashlib
import os
from collections.abc import Sequence

import torch
from torch import Tensor


def run_seed() -> int:
    """Seed of this run: what `seed_everything` was given, or 0."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


def stable_hash(*parts: str | int) -> int:
    """Non-negative 63-bit hash that is the same in every process and Python version."""
    text = "\x1f".join(str(part) for part in parts)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(seed: int, stream: str, epoch: int, step: int) -> torch.Generator:
    """CPU generator for one named stream at one global micro-batch.

    Args:
        seed: Seed of the run.
        stream: Name of the consumer, so that two consumers never share random numbers.
        epoch: Epoch, from 0.
        step: Index of the global micro-batch in the epoch, from 0.
    """
    return torch.Generator().manual_seed(stable_hash(seed, stream, epoch, step))


def uniform_rows(
    rows: Tensor, global_size: int, shape: tuple[int, ...], source: torch.Generator
) -> Tensor:
    """Uniform random numbers in [0, 1) for some rows of the global batch.

    Args:
        rows: `[B]` rows of this rank's clips in the global batch.
        global_size: Number of rows of the global batch.
        shape: Shape of one clip's numbers.
        source: Generator from `generator`.

    Returns:
        `[B, *shape]` float32 on the CPU.
    """
    numbers = torch.rand((global_size, *shape), generator=source)
    return numbers[rows.cpu()]


def uniform_by_name(names: Sequence[str], seed: int, stream: str, shape: tuple[int, ...]) -> Tensor:
    """Uniform random numbers in [0, 1) that depend on a clip's name, and not on epoch or batch.

    For evaluation, whose metrics then compare between epochs and numbers of processes.

    Args:
        names: `id` of the batch.
        seed: Seed of the run.
        stream: Name of the consumer.
        shape: Shape of one clip's numbers.

    Returns:
        `[B, *shape]` float32 on the CPU.
    """
    hashes = (stable_hash(seed, "evaluation", stream, name) for name in names)
    return torch.stack(
        [torch.rand(shape, generator=torch.Generator().manual_seed(value)) for value in hashes]
    )
