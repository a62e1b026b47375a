"""Heads of MAM-CLAP and SupMAM: they serve pretraining and are thrown away afterwards."""

from typing import Literal

import torch
from torch import Tensor, nn

LabelNorm = Literal["batch", "sync", "none"]


class FeatureHead(nn.Module):
    """The head h of MAM-CLAP: a linear layer and a LayerNorm, shared by visible and hidden patches.

    Args:
        width: Width of its tokens.
        features: Width D of the teacher's features.
        unit: Whether the targets have unit length. The norm's scale then begins at 1 / sqrt(D),
            else thousands of steps would go into shrinking it.
    """

    def __init__(self, width: int, features: int, *, unit: bool) -> None:
        super().__init__()
        self.fc = nn.Linear(width, features)
        self.norm = nn.LayerNorm(features, eps=1e-6)
        nn.init.xavier_uniform_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)
        if unit:
            nn.init.constant_(self.norm.weight, features**-0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """Y: `[..., W]` to `[..., D]`."""
        features: Tensor = self.norm(self.fc(tokens))
        return features


class LabelBranch(nn.Module):
    """SupMAM's classification branch: linear, BatchNorm, ReLU, linear.

    Args:
        width: Width D of the encoder's tokens.
        hidden: Width between the layers; SupMAE's published code has four times the encoder's.
        classes: Number of classes C.
        norm: `batch`: each process by itself, as in the papers' code; `sync`: over all processes;
            `none`: no norm.
    """

    def __init__(self, width: int, hidden: int, classes: int, norm: LabelNorm = "batch") -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.norm: nn.Module = nn.Identity()
        if norm == "batch":
            self.norm = nn.BatchNorm1d(hidden)
        elif norm == "sync":
            self.norm = nn.SyncBatchNorm(hidden)
        self.act = nn.ReLU()
        self.fc2 = nn.Linear(hidden, classes)
        for layer in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, pooled: Tensor) -> Tensor:
        """p_v: `[B, D]` to logits `[B, C]`."""
        logits: Tensor = self.fc2(self.act(self.norm(self.fc1(pooled))))
        return logits

    def nothing(self) -> Tensor:
        """A zero that every weight of the branch takes part in.

        A process whose batch has no labels must still give every weight a gradient, or
        DistributedDataParallel stops.
        """
        return torch.stack([p.sum() for p in self.parameters()]).sum() * 0.0
