"""Pictures that explain a masking strategy: the PEAS paper's Figure 2 for clips of the run."""

from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from peas.callbacks.figure import draw
from peas.callbacks.masking import MaskingContext, MaskingStrategy
from peas.callbacks.picture_files import save_picture
from peas.callbacks.progress import DrawsInSteps
from peas.callbacks.siblings import siblings
from peas.callbacks.spec_augment import BlockMasking
from peas.data.batch import Batch
from peas.data.module import ClipDataModule
from peas.errors import ConfigError
from peas.masking.blocks import blocks_to_mask, cross
from peas.masking.peas.scores import error_maps
from peas.masking.peas.selector import (
    DRAWS,
    AxisPlan,
    Selection,
    marginals,
    random_plan,
    window_scores,
)
from peas.tasks.augmentation import roll_time
from peas.tasks.base import BaseTask
from peas.training.randomness import run_seed
from peas.utils.text import some


class ClipView(NamedTuple):
    """Everything that one picture shows, on the CPU. T frames, F mel bins."""

    title: str
    log_mel: Tensor
    """`[T, F]` what the model would see without a mask."""
    masked: Tensor
    """`[T, F]` what it sees."""
    empty: Tensor
    """`[F]` bool, mel bins without sound."""
    conventional: Tensor | None = None
    """`[T, F]` bool, a conventional SpecAugment mask with the same random numbers. None, as what
    follows, where the masks are not made of blocks."""
    time: AxisPlan | None = None
    """Plan of this clip, one row."""
    freq: AxisPlan | None = None
    drawn_by: str = "G(E(x))"
    """What made the reconstruction."""
    reconstruction: Tensor | None = None
    """`[T, F]`, None when the model cannot reconstruct."""
    e_rec: Tensor | None = None
    e_pred: Tensor | None = None
    time_scores: Tensor | None = None
    """`[T - w + 1]` mean e_pred of every window."""
    freq_scores: Tensor | None = None


class Pictures(DrawsInSteps):
    """Draws chosen training clips as PNG and PDF into `pictures/` of the run, and to W&B.

    Shows a clip with the very mask that the training step gets, in the first epoch, the last
    one, and every `every_n_epochs` between. Only training clips have such a mask.

    Args:
        clips: Ids of training clips, or how many: then the first ones that the run trains on.
        every_n_epochs: Epochs between two pictures of a clip.
    """

    def __init__(self, clips: int | list[str] = 2, every_n_epochs: int = 10) -> None:
        self.wanted = clips
        self.every = max(1, every_n_epochs)
        self._ids: list[str] = list(clips) if isinstance(clips, list) else []
        self._batch: Batch | None = None
        self._told = False

    def state_dict(self) -> dict[str, Any]:
        """The chosen clips, so that a resumed run draws the same ones."""
        return {"ids": self._ids}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on with the same clips, unless others are named."""
        if isinstance(self.wanted, int):
            self._ids = state_dict["ids"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses clips that the run does not train on.

        Raises:
            ConfigError: `clips` names some.
        """
        data = getattr(trainer, "datamodule", None)
        if isinstance(self.wanted, int) or not isinstance(data, ClipDataModule):
            return
        absent = sorted(set(self.wanted) - set(data.training_clips(run_seed()).ids))
        if absent:
            raise ConfigError(
                f"`Pictures.init_args.clips` names {some(absent)}, which are no training clips of "
                "this run: name some of those, by their ids, or give a number"
            )

    def on_train_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Keeps hold of the batch for the hook that has none."""
        self._batch = batch if self._due(trainer) else None

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Draws the chosen clips of this batch, with the weights that chose its mask.

        Each process draws those that it has; the first one chooses where a number is wanted.
        """
        batch, self._batch = self._batch, None
        strategy = next(iter(siblings(trainer, MaskingStrategy)), None)  # type: ignore[type-abstract]
        if batch is None or strategy is None or "mask" not in batch:
            return
        assert isinstance(pl_module, BaseTask)
        if isinstance(self.wanted, int) and trainer.is_global_zero:
            # A clip may come twice where clips are drawn by weight.
            new = [clip for clip in dict.fromkeys(batch["id"]) if clip not in self._ids]
            self._ids += new[: max(0, self.wanted - len(self._ids))]
        chosen = [index for index, clip in enumerate(batch["id"]) if clip in self._ids]
        with self.drawing():
            for index in chosen:
                view = _view(trainer, pl_module, strategy, batch, index)
                save_picture(trainer, draw(view), batch["id"][index])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lets all processes know the chosen clips, and says when there are too few, once."""
        if not isinstance(self.wanted, int) or not self._due(trainer):
            return
        self._ids = trainer.strategy.broadcast(self._ids)
        if 0 < len(self._ids) < self.wanted and not self._told:
            self._told = True
            rank_zero_warn(
                f"`Pictures.init_args.clips` is {self.wanted}, and the first process trained on "
                f"{len(self._ids)} clips in the epoch: those are drawn"
            )

    def _due(self, trainer: Trainer) -> bool:
        epoch, last = trainer.current_epoch, (trainer.max_epochs or 0) - 1
        return epoch == last or epoch % self.every == 0


def _view(
    trainer: Trainer, task: BaseTask, strategy: MaskingStrategy, batch: Batch, index: int
) -> ClipView:
    """Collects one clip of the batch and asks the model for its errors."""
    one = slice(index, index + 1)
    x, valid, masked = batch["log_mel"][one], batch["valid"][one], batch["masked_log_mel"][one]
    clean = batch["clean"]
    if strategy.stage == "before_noise" and "roll" in batch:
        # Its mask was chosen before the noise and the roll: show the clip in its own time.
        x, valid = clean.log_mel[one], clean.valid[one]
        masked = roll_time(masked, -batch["roll"][one])
    sounding = task.front_end.sounding_bins(clean.log_mel, clean.valid)[one]
    view = ClipView(
        f"{batch['id'][index]}, epoch {trainer.current_epoch + 1}, {type(strategy).__name__}",
        x[0].cpu(),
        masked[0].cpu(),
        ~sounding[0].cpu(),
    )
    if isinstance(strategy, BlockMasking):
        time, freq = (_row(plan, index) for plan in batch["mask_plan"])
        conventional = _conventional(strategy, MaskingContext(task, batch), x, one)
        view = view._replace(conventional=conventional, time=time, freq=freq)
    if not task.model.can_reconstruct:
        return view
    training = task.model.training
    task.model.eval()
    with torch.no_grad(), trainer.precision_plugin.forward_context():
        maps = error_maps(task.model.reconstruct, x)
        drawn = task.model.reconstruct(x)
    task.model.train(training)
    assert maps.e_rec is not None
    assert maps.e_pred is not None
    probe = task.model.pixel_probe is not None
    view = view._replace(
        drawn_by="a linear pixel probe" if probe else "G(E(x))",
        reconstruction=drawn[0].float().cpu(),
        e_rec=maps.e_rec[0].cpu(),
        e_pred=maps.e_pred[0].cpu(),
    )
    if not isinstance(strategy, BlockMasking):
        return view
    time_ok, freq_ok = strategy.countable(task, x, valid, sounding)
    lines = marginals(maps.e_pred, time_ok, freq_ok)
    return view._replace(
        time_scores=window_scores(lines.time, max(1, strategy.max_time), time_ok)[0].cpu(),
        freq_scores=window_scores(lines.freq, max(1, strategy.max_freq), freq_ok)[0].cpu(),
    )


def _conventional(strategy: BlockMasking, context: MaskingContext, x: Tensor, one: slice) -> Tensor:
    """`[T, F]` bool: one random block an axis for a clip, of the strategy's mask parameters."""
    lines = (
        blocks_to_mask(
            random_plan(context.rand(axis, 1, DRAWS)[one], Selection(width), size).blocks, size
        )
        for axis, width, size in (
            ("time", strategy.max_time, x.shape[1]),
            ("freq", strategy.max_freq, x.shape[2]),
        )
    )
    return cross(*lines)[0].cpu()


def _row(plan: AxisPlan, index: int) -> AxisPlan:
    one = slice(index, index + 1)
    return AxisPlan(
        type(plan.blocks)(plan.blocks.start[one].cpu(), plan.blocks.width[one].cpu()),
        plan.window_start[one].cpu(),
        plan.window_width[one].cpu(),
        plan.adaptive[one].cpu(),
    )
