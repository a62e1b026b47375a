"""Random draws that depend on the run's seed and place in training, and on nothing else.

A draw is made for the *global* batch on the CPU, and each rank takes its clips' rows. So masks,
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
    """CPU generator for one named stream of draws at one global micro-batch.

    Args:
        seed: Seed of the run.
        stream: Name of the consumer, so that two consumers never share draws.
        epoch: Epoch, from 0.
        step: Index of the global micro-batch in the epoch, from 0.
    """
    return torch.Generator().manual_seed(stable_hash(seed, stream, epoch, step))


def uniform_rows(
    rows: Tensor, global_size: int, shape: tuple[int, ...], source: torch.Generator
) -> Tensor:
    """Uniform draws in [0, 1) for some rows of the global batch.

    Args:
        rows: `[B]` rows of this rank's clips in the global batch.
        global_size: Number of rows of the global batch.
        shape: Shape of the draws of one clip.
        source: Generator from `generator`.

    Returns:
        `[B, *shape]` float32 on the CPU.
    """
    draws = torch.rand((global_size, *shape), generator=source)
    return draws[rows.cpu()]


def uniform_by_name(names: Sequence[str], seed: int, stream: str, shape: tuple[int, ...]) -> Tensor:
    """Uniform draws in [0, 1) that a clip's name decides, whatever epoch or batch it is in.

    Evaluation takes them, so that its figures compare between epochs and numbers of processes.

    Args:
        names: `id` of the batch.
        seed: Seed of the run.
        stream: Name of the consumer.
        shape: Shape of the draws of one clip.

    Returns:
        `[B, *shape]` float32 on the CPU.
    """
    hashes = (stable_hash(seed, "evaluation", stream, name) for name in names)
    return torch.stack(
        [torch.rand(shape, generator=torch.Generator().manual_seed(value)) for value in hashes]
    )
