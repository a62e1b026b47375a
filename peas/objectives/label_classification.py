"""SupMAM's objective: the visible patches are classified."""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from peas.errors import ConfigError
from peas.evaluation.baselines import LabelPrior
from peas.masking.patches import random_patches
from peas.models.encoder import Need
from peas.models.patches import gather_tokens, visible_indices
from peas.objectives.base import BuildInfo, Objective, Term, View
from peas.objectives.losses import LabelLoss, as_soft, label_loss

LabelNorm = Literal["batch", "sync", "none"]


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
        """A zero that depends on every weight of the branch.

        A process whose batch has no labels must still give every weight a gradient, or
        DistributedDataParallel stops.
        """
        return torch.stack([p.sum() for p in self.parameters()]).sum() * 0.0


class LabelClassification(Objective):
    """The classification branch on the mean of the visible patches (SupMAM-CLAP, equation 2).

    Clips without a label are left out and counted (`train/unlabelled`). Logs
    `val/baseline_classification`, the loss of a constant prediction of the class frequencies.

    Args:
        weight: lambda.
        loss: `soft`: cross entropy against the labels divided by their number; `multi_hot`:
            undivided; `bce`.
        temperature: tau, by which the branch's logits are divided.
        hidden: Width of the branch's hidden layer; null = four times the encoder's.
        norm: `batch`, `sync` (over processes) or `none`.
        visible_fraction: Share of the visible patches that the branch's pooling takes.

    Raises:
        ConfigError: A value is impossible.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"labels"})
    baselines = ("baseline_classification",)
    sums = ("unlabelled",)
    fixed = ("hidden", "norm")
    branch: LabelBranch
    prior: LabelPrior

    def __init__(
        self,
        weight: float = 1.0,
        loss: LabelLoss = "soft",
        temperature: float = 10.0,
        hidden: int | None = None,
        norm: LabelNorm = "batch",
        visible_fraction: float = 1.0,
    ) -> None:
        super().__init__(weight)
        if not 0 < visible_fraction <= 1:
            raise ConfigError(
                f"`LabelClassification.init_args.visible_fraction` is {visible_fraction}: "
                "0 < it <= 1"
            )
        if not temperature > 0:
            raise ConfigError(
                f"`LabelClassification.init_args.temperature` is {temperature}: it must be positive"
            )
        self.loss: LabelLoss = loss
        self.temperature, self.visible_fraction = temperature, visible_fraction
        self.hidden = hidden
        self.norm: LabelNorm = norm
        if norm == "batch":
            # Of one clip it has no variance.
            self.min_batch_size = 2

    def build(self, info: BuildInfo) -> None:
        """Makes branch and prior."""
        if not info.classes:
            raise ConfigError(
                "`model.init_args.objectives` has a LabelClassification, and the data has no "
                "classes: choose data with labels, or take it out"
            )
        hidden = self.hidden or 4 * info.width
        self.branch = LabelBranch(info.width, hidden, info.classes, self.norm)
        self.prior = LabelPrior(info.classes, self.loss)

    def forward(self, view: View) -> Term:
        """The branch's loss on the labelled clips."""
        tokens = view.visible_tokens
        if self.visible_fraction < 1:
            visible = view.visible.shape[1]
            taken = max(1, round(visible * self.visible_fraction))
            index = visible_indices(random_patches(view.rand("pooled", visible), taken))
            tokens = gather_tokens(tokens, index.to(tokens.device))
        pooled = tokens.mean(dim=1)
        labelled = view.batch["labelled"]
        target = as_soft(view.batch["target"], self.branch.fc2.out_features)[labelled]
        count = labelled.sum().float()
        everywhere = view.total(count)
        # A BatchNorm cannot do with one clip. One over all processes waits for each of them, so
        # all take part, or none.
        normed = not isinstance(self.branch.norm, nn.Identity)
        needed = 2 if self.branch.training and normed else 1
        enough = everywhere if isinstance(self.branch.norm, nn.SyncBatchNorm) else count
        left_out = len(labelled) - count
        if int(enough) < needed:
            target, left_out = target[:0], count.new_full((), len(labelled))
            loss = self.branch.nothing() + 0.0 * pooled.sum()
        elif not len(target):
            logits = self.branch(pooled[labelled])
            loss = self.branch.nothing() + 0.0 * (logits.sum() + pooled.sum())
        else:
            logits = self.branch(pooled[labelled])
            loss = label_loss(logits, target, self.loss, self.temperature)
            # DDP averages over processes: so each clip weighs the same, whichever has it.
            loss = loss * count * view.processes / everywhere
        return Term(loss, clips=len(target), sums={"unlabelled": left_out}, targets=target)

    def evaluate(self, term: Term) -> None:
        """Counts the labels."""
        if term.targets is not None:
            self.prior.update(term.targets)

    def baseline(self) -> dict[str, Tensor]:
        """`baseline_classification`."""
        metrics = {"baseline_classification": self.prior.compute()}
        self.prior.reset()
        return metrics
