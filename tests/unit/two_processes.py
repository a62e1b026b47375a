"""What the processes of a test run; apart, so that starting them imports little."""

import torch

from peas.augment.windows import Marginals
from peas.callbacks.error_cache import ErrorCache


def lines(count: int, seed: int = 0, frames: int = 20) -> Marginals:
    """Made-up marginals."""
    source = torch.Generator().manual_seed(seed)
    return Marginals(
        torch.rand(count, frames, generator=source), torch.rand(count, 8, generator=source)
    )


def share_scores(rank: int, folder: str) -> None:
    """Scores clips in two epochs and leaves what each process then knows."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    cache = ErrorCache()
    for epoch in range(2):
        cache.store([f"{epoch}-{rank}-{n}" for n in range(3)], lines(3, seed=10 * epoch + rank))
        if epoch == 1 and rank == 1:
            cache.store(["0-0-1"], lines(1, seed=99))
        cache.gather()
    if rank == 1:  # The other process has nothing new.
        cache.store(["late"], lines(1, seed=7))
    cache.gather()
    torch.save(cache.state_dict(), f"{folder}/state{rank}")
    torch.distributed.destroy_process_group()
