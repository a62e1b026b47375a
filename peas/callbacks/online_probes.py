"""Online probes: what a pretraining encoder's embeddings of a labelled set are worth."""

import copy
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.nn import functional

from peas.data.clips import ClipTable
from peas.data.columns import Rows
from peas.data.loader import ClipLoader
from peas.data.module import SPLITS, ClipDataModule
from peas.errors import ConfigError
from peas.evaluation import logistic
from peas.evaluation.knn import nearest_classes
from peas.evaluation.rank import lidar, rankme
from peas.tasks.base import BaseTask
from peas.training.distributed import gather

Metric = Literal["knn", "linear", "rankme", "lidar"]
NAMES: dict[str, str] = {
    "knn": "knn/accuracy",
    "linear": "linear/accuracy",
    "rankme": "rank/rankme",
    "lidar": "rank/lidar",
}
"""What each metric is logged as."""
STRENGTH = 1e-2
"""C of the linear probe, which chooses none while pretraining."""


class OnlineProbes(Callback):
    """Logs metrics of the encoder's frozen embeddings of a labelled set, all of one pass.

    Every clip is embedded (`embedding`: mean of the patch tokens after the encoder's last norm) in
    evaluation mode, with the pretraining run's statistics and the labelled set's own clip length.
    Processes share the clips. Neither the run's weights nor its random numbers change.

    | metric | logged as | |
    |---|---|---|
    | `knn` | `knn/accuracy` | `peas.evaluation.knn.nearest_classes` |
    | `linear` | `linear/accuracy` | logistic regression with C = 0.01 |
    | `rankme` | `rank/rankme` | `peas.evaluation.rank.rankme`; uses no label |
    | `lidar` | `rank/lidar` | `peas.evaluation.rank.lidar` of the set's classes |

    They are for monitoring. A run that is reported with a metric of labels must not be selected by
    it, and the labelled set must share no recording with the pretraining set.

    Args:
        data: The labelled set, one class per clip. Its batch sizes and workers are used; its
            `mean` and `std` are not.
        metrics: Which metrics.
        k: Number of neighbours of `knn`.
        every_n_epochs: Epochs between two measurements; the first and the last epoch have one.
        split: `validation` or `test`: those clips by the training clips; `folds`: each fold by the
            others, for sets that have folds, such as ESC-50. Ranks are of all of these clips.

    Raises:
        ConfigError: A value is impossible; the message names the key.
    """

    measured: ClassVar[tuple[Metric, ...]] = ("knn", "linear", "rankme", "lidar")

    def __init__(
        self,
        data: ClipDataModule,
        metrics: Sequence[Metric] = measured,
        k: int = 10,
        every_n_epochs: int = 10,
        split: Literal["validation", "test", "folds"] = "validation",
    ) -> None:
        self.data, self.k, self.every, self.split = data, k, every_n_epochs, split
        self.metrics = tuple(metrics)
        for key, value in (("k", k), ("every_n_epochs", every_n_epochs)):
            if value < 1:
                raise ConfigError(f"{self._key(key)} is {value}: give 1 or more")
        if split not in ("validation", "test", "folds"):
            raise ConfigError(
                f"{self._key('split')} is {split!r}: choose validation, test or folds"
            )
        if not self.metrics or not set(self.metrics) <= set(NAMES):
            raise ConfigError(
                f"{self._key('metrics')} is {list(metrics)}: choose from {', '.join(NAMES)}"
            )
        self._clips: _Clips | None = None
        self._loader: ClipLoader | None = None

    def _key(self, name: str) -> str:
        return f"`{type(self).__name__}.init_args.{name}`"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Before training: prepares the set and reads its tables.

        Raises:
            ConfigError: The set has no classes, several per clip, no folds, or too few clips.
            DataError: The set is missing or contradicts itself.
        """
        if stage != "fit":
            return
        if trainer.local_rank == 0:
            self.data.prepare_data()
        trainer.strategy.barrier("online_probes")
        self.data.trainer = trainer
        if self.data.multi_label:
            raise ConfigError(
                f"{self._key('data')} has clips of several classes, and online probes predict one: "
                "give a set with one class per clip"
            )
        self._clips, self._loader = self._read(), None

    def _read(self) -> "_Clips":
        if self.split == "folds":
            # For its checks: an inventory also holds clips whose sound is missing.
            self.data.clips("train")
            inventory = self.data.inventory()
            if len(inventory.parts) < 2 or set(inventory.parts) <= set(SPLITS):
                raise ConfigError(
                    f"{self._key('split')} is folds, and {self._key('data')} has none (its parts "
                    f"are {', '.join(inventory.parts)}): choose validation or test"
                )
            table, part = inventory.table, inventory.part
        else:
            tables = [self.data.clips("train"), self.data.clips(self.split)]
            table = ClipTable.concatenate(tables)
            part = np.repeat([0, 1], [len(rows) for rows in tables])
        labelled = np.flatnonzero(table.targets.sizes == 1)
        table, part = table.take(labelled), part[labelled]
        sizes = np.bincount(part, minlength=2)
        least = int(sizes[0]) if self.split != "folds" else len(part) - int(sizes.max())
        if least < self.k or sizes.min() == 0:
            raise ConfigError(
                f"{self._key('data')} has {least} labelled clips as neighbours and {sizes.min()} "
                f"in its smallest part, and {self._key('k')} is {self.k}: give a labelled set, or "
                "a smaller k"
            )
        held = range(len(sizes)) if self.split == "folds" else (1,)
        return _Clips(table, part, tuple(held))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Embeds the set and logs the metrics."""
        epoch = trainer.current_epoch
        if epoch % self.every and epoch != (trainer.max_epochs or 0) - 1:
            return
        assert isinstance(pl_module, BaseTask)
        assert self._clips is not None
        # Loaders seed their workers, which must not change the run's random numbers.
        with isolate_rng():
            features, classes, part = self._embed(trainer, pl_module, self._clips)
        for metric in self.metrics:
            value = self._measure(metric, features, classes, part, self._clips.held)
            pl_module.log(NAMES[metric], torch.tensor(value), sync_dist=False)

    def _measure(
        self, metric: str, features: Tensor, classes: Tensor, part: Tensor, held: Sequence[int]
    ) -> float:
        if not bool(features.isfinite().all()):
            # Of a run whose weights are so, which has checks of its own.
            return float("nan")
        if metric == "rankme":
            return rankme(features)
        if metric == "lidar":
            return lidar(features, classes)
        classify: Callable[[Tensor, Tensor, Tensor], Tensor] = (
            self._nearest if metric == "knn" else _linear
        )
        correct = total = 0
        for number in held:
            test, train = part == number, part != number
            predicted = classify(features[train], classes[train], features[test])
            correct += int((predicted == classes[test]).sum())
            total += int(test.sum())
        return correct / max(total, 1)

    def _nearest(self, train: Tensor, classes: Tensor, test: Tensor) -> Tensor:
        return nearest_classes(train, classes, test, self.k)

    @torch.no_grad()
    def _embed(
        self, trainer: Trainer, task: BaseTask, clips: "_Clips"
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings `[N, D]`, classes `[N]` and parts `[N]` of all processes' clips."""
        front_end = copy.deepcopy(task.front_end).build(frames=self.data.frames)
        parts = dict(zip(clips.table.ids, clips.part.tolist(), strict=True))
        training = [(module, module.training) for module in task.model.modules()]
        task.model.eval()
        rows: list[tuple[Tensor, Tensor, list[int]]] = []
        try:
            # Kept: its workers are forked once.
            self._loader = self._loader or self.data.loader(clips.table)
            for batch in self._loader:
                waveform = batch["waveform"].to(task.device)
                log_mel = front_end(waveform, batch["length"].to(task.device)).log_mel
                with trainer.precision_plugin.forward_context():
                    embedded = task.model.embedding(log_mel)
                part = [parts[clip] for clip in batch["id"]]
                rows.append((embedded.float().cpu(), batch["target"], part))
        finally:
            for module, mode in training:
                module.training = mode
        rows = [row for share in gather(rows) for row in share]
        embeddings, classes, numbers = zip(*rows, strict=True)
        flat = [number for batch_parts in numbers for number in batch_parts]
        return torch.cat(embeddings), torch.cat(classes), torch.tensor(flat)


def _linear(train: Tensor, classes: Tensor, test: Tensor) -> Tensor:
    """Classes of clips by logistic regression."""
    scaled, tested = logistic.standardise(train, test)
    model = logistic.fit(scaled, functional.one_hot(classes), STRENGTH)
    return model(tested).argmax(dim=1)


class _Clips(NamedTuple):
    """The labelled clips.

    Attributes:
        table: All of them.
        part: `[N]`, index of each clip's part.
        held: Parts that are classified, each by the clips of all others.
    """

    table: ClipTable
    part: Rows
    held: tuple[int, ...]
