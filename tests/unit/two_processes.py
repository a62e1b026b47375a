"""What the processes of a test run; apart, so that starting them imports little."""

import torch

from peas.masking.peas.error_cache import ErrorCache
from peas.masking.peas.selector import Marginals
from peas.objectives.label_classification import LabelBranch, LabelNorm


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


SHARES = (slice(0, 5), slice(5, 12))
"""Rows of each process, of twelve."""


def branch_on(pooled: torch.Tensor, norm: LabelNorm) -> tuple[LabelBranch, torch.Tensor]:
    """A branch of fixed weights after a backward pass, and its logits."""
    torch.manual_seed(0)
    branch = LabelBranch(8, 16, 3, norm=norm).to(pooled.device)
    logits = branch(pooled)
    logits.square().sum().backward()
    return branch, logits.detach()


def pooled_rows(device: str) -> torch.Tensor:
    """Made-up tokens of twelve clips, no two rows on one scale."""
    source = torch.Generator().manual_seed(1)
    return (torch.randn(12, 8, generator=source) * torch.arange(1, 13)[:, None]).to(device)


def share_norm(rank: int, folder: str, norm: LabelNorm, device: str) -> None:
    """Leaves one process's logits, and gradients and statistics of both together."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    branch, logits = branch_on(pooled_rows(device)[SHARES[rank]], norm)
    told = {"logits": logits}
    for name, parameter in branch.named_parameters():
        torch.distributed.all_reduce(parameter.grad)
        told[name] = parameter.grad
    told.update({name: buffer for name, buffer in branch.named_buffers() if "running" in name})
    torch.save({key: value.cpu() for key, value in told.items()}, f"{folder}/branch{rank}")
    torch.distributed.destroy_process_group()
